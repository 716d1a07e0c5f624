//go:build !amd64 || noasm

package blas

func current() *kernels { return nil }

func narrowKernel(Type) *narrowSet { return nil }

func wordProducts() bool { return false }

func quantizeUnits(x, to []float32) int { return 0 }

func roundVectors(x, to []float32) int { return 0 }

func panelKernel(Type) *panelSet { return nil }
