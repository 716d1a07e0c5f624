package kernel

import "gonum.org/v1/gonum/blas"

// GroupedLinear is y = x·Wᵀ for Groups matrices, each with its own channels of x and y, for Rows vectors x. The groups are computed one after another,
// each as a matrix product with strides.
type GroupedLinear[T Float] struct {
	Rows, Groups, In, Out int // In and Out of one group
	X                     []T // (rows, groups·in)
	Weight                []T // (groups, out, in)
	Gemm                  Gemm[T]
}

// Forward writes y (rows, groups·out).
func (l *GroupedLinear[T]) Forward(y []T) {
	for g := range l.Groups {
		l.Gemm(blas.NoTrans, blas.Trans, l.Rows, l.Out, l.In, 1, l.X[g*l.In:], l.Groups*l.In, l.Weight[g*l.Out*l.In:], l.In,
			0, y[g*l.Out:], l.Groups*l.Out)
	}
}

// Backward writes the gradients dx (rows, groups·in) and dWeight (groups, out, in), from the gradient dy of y.
func (l *GroupedLinear[T]) Backward(dy, dx, dWeight []T) {
	for g := range l.Groups {
		d, stride, w := dy[g*l.Out:], l.Groups*l.Out, g*l.Out*l.In
		l.Gemm(blas.NoTrans, blas.NoTrans, l.Rows, l.In, l.Out, 1, d, stride, l.Weight[w:], l.In, 0, dx[g*l.In:], l.Groups*l.In)
		l.Gemm(blas.Trans, blas.NoTrans, l.Out, l.In, l.Rows, 1, d, stride, l.X[g*l.In:], l.Groups*l.In, 0, dWeight[w:], l.In)
	}
}
