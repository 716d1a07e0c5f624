package kernel

import (
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// Gemm is a matrix product with BLAS's arguments: C = alpha·op(A)·op(B) + beta·C, row-major.
type Gemm[T Float] func(tA, tB blas.Transpose, m, n, k int, alpha T, a []T, lda int, b []T, ldb int, beta T, c []T, ldc int)

// Linear is y = x·Wᵀ + bias, for Rows vectors x.
type Linear[T Float] struct {
	Rows, In, Out int
	X             []T // (rows, in)
	Weight        []T // (out, in)
	Bias          []T // (out), or nil
	Gemm          Gemm[T]
}

// Forward writes y (rows, out).
func (l *Linear[T]) Forward(y []T) {
	var beta T
	if l.Bias != nil {
		beta = 1
		work.ParallelRange(l.Rows, max(piece/l.Out, 1), func(from, to int) {
			for i := from; i < to; i++ {
				copy(y[i*l.Out:(i+1)*l.Out], l.Bias)
			}
		})
	}
	l.Gemm(blas.NoTrans, blas.Trans, l.Rows, l.Out, l.In, 1, l.X, l.In, l.Weight, l.In, beta, y, l.Out)
}

// Backward writes the gradients dx (rows, in), dWeight (out, in) and, unless it is nil, dBias (out), from the gradient dy of y.
func (l *Linear[T]) Backward(dy, dx, dWeight, dBias []T) {
	l.Gemm(blas.NoTrans, blas.NoTrans, l.Rows, l.In, l.Out, 1, dy, l.Out, l.Weight, l.In, 0, dx, l.In)
	l.Gemm(blas.Trans, blas.NoTrans, l.Out, l.In, l.Rows, 1, dy, l.Out, l.X, l.In, 0, dWeight, l.In)
	if dBias != nil {
		sumRows(dBias, dy)
	}
}
