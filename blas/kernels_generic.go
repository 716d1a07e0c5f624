//go:build !amd64 || noasm

package blas

func current() *kernels { return nil }

func narrowKernel(Type) *narrowSet { return nil }

func wordProducts() bool { return false }

func panelKernel(Type) *panelSet { return nil }
