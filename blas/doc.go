// Package blas is a draft.
package blas
