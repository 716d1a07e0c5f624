//go:build !amd64 || noasm

package blas

func current() *kernels { return nil }
