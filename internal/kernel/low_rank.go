package kernel

import (
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// LowRank is y = w + scale·b·a for matrices w (out, in), b (out, rank) and a (rank, in).
type LowRank[T Float] struct {
	Out, In, Rank int
	Scale         T
	W             []T // (out, in)
	B             []T // (out, rank)
	A             []T // (rank, in)
	Gemm          Gemm[T]
}

// Forward writes y (out, in).
func (l *LowRank[T]) Forward(y []T) {
	work.ParallelRange(len(y), piece, func(from, to int) { copy(y[from:to], l.W[from:to]) })
	l.Gemm(blas.NoTrans, blas.NoTrans, l.Out, l.In, l.Rank, l.Scale, l.B, l.Rank, l.A, l.In, 1, y, l.In)
}

// Backward writes the gradients of b and a. The gradient of w is dy itself.
func (l *LowRank[T]) Backward(dy, db, da []T) {
	l.Gemm(blas.NoTrans, blas.Trans, l.Out, l.Rank, l.In, l.Scale, dy, l.In, l.A, l.In, 0, db, l.Rank)
	l.Gemm(blas.Trans, blas.NoTrans, l.Rank, l.In, l.Out, l.Scale, l.B, l.Rank, dy, l.In, 0, da, l.In)
}
