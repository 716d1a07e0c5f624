// Package work has the worker goroutines and the working memory that the packages of arithmetic share.
package work
