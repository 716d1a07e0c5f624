package op

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// LowRank returns weight + scale·b·a, a matrix with an update of low rank: weight (out, in), a (rank, in), b (out, rank), and the result
// (out, in). The gradient of the weight is the gradient of the result, without a copy. Matrix products are computed as in Linear.
//
// Errors: an operand that is missing, or of another type or shape; a scale that is not finite.
//
// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
func LowRank(weight, a, b *G.Node, scale float64) (*G.Node, error) {
	c := newChecker("low rank", "weight", weight)
	s := c.required("weight", weight, "(out, in)", 0, 0)
	c.passes()
	rank := c.required("a", a, "(rank, in)", 0, s[1])[0]
	c.required("b", b, "(out, rank)", s[0], rank)
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		c.errorf("scale is %v, want a finite number", scale)
	}
	f := lowRank[float32]{s[0], s[1], rank, scale}
	return c.apply1(f, lowRank[float64](f), s)
}

type lowRank[T kernel.Float] struct {
	out, in, rank int
	scale         float64
}

func (f lowRank[T]) kernel(in []value[T]) *kernel.LowRank[T] {
	return &kernel.LowRank[T]{
		Out: f.out, In: f.in, Rank: f.rank, Scale: T(f.scale), W: in[0].Data, A: in[1].Data, B: in[2].Data, Gemm: gemm[T](),
	}
}

func (f lowRank[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f lowRank[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[2], grad[1])
}

// ForwardOn computes in strict float32: the product is small, and the weight is not rounded.
func (f lowRank[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	if err := out[0].CopyOf(s, in[0].Array); err != nil {
		return nil, err
	}
	return nil, cuda.MatMulScaled(s, cuda.Strict, f.out, f.in, f.rank, float32(f.scale), matrix(in[2].Array, f.rank), matrix(in[1].Array, f.in), 1,
		matrix(out[0], f.in))
}

func (f lowRank[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	d, a, b := matrix(dout[0], f.in), matrix(in[1].Array, f.in), matrix(in[2].Array, f.rank)
	a.Transposed, b.Transposed = true, true
	if err := cuda.MatMulScaled(s, cuda.Strict, f.rank, f.in, f.out, float32(f.scale), b, d, 0, matrix(grad[1], f.in)); err != nil {
		return err
	}
	return cuda.MatMulScaled(s, cuda.Strict, f.out, f.rank, f.in, float32(f.scale), d, a, 0, matrix(grad[2], f.rank))
}

// matrix returns a row-major matrix with rows of stride elements.
func matrix[T cuda.Activation](a cuda.Array[T], stride int) cuda.Matrix[T] {
	return cuda.Matrix[T]{Data: a, Stride: stride}
}
