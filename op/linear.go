package op

import (
	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/kernel"
)

// Linear returns x·weightᵀ + bias: x (batch, length, in), weight (out, in), bias (out) or nil, and the result (batch, length, out). All
// operands have gradients. The matrix products are computed by package blas, or by the BLAS that the program has set with gorgonia.Use.
//
// Errors: an operand that is missing, or of another type or shape.
func Linear(x, weight, bias *G.Node) (*G.Node, error) {
	c := newChecker("linear", "x", x)
	c.required("x", x, "(batch, length, in)", 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := x.Shape()
	c.required("weight", weight, "(out, in)", 0, s[2])
	if c.err != nil {
		return nil, c.err
	}
	s[2] = weight.Shape()[0]
	c.optional("bias", bias, "(out)", s[2])
	if c.err != nil {
		return nil, c.err
	}
	return apply1(linear{}, operands{[]string{"x", "weight", "bias"}, G.Nodes{x, weight, bias}}, c.dt, s)
}

// product returns the BLAS for matrix products: package blas, unless the user has set another than gonum's with gorgonia.Use.
func product() G.BLAS {
	chosen := G.WhichBLAS()
	if _, isDefault := chosen.(gonum.Implementation); isDefault {
		return blas.Implementation{}
	}
	return chosen
}

type linear struct{}

func (linear) String() string         { return "linear" }
func (linear) differentiable() []bool { return []bool{true, true, true} }

func (linear) forward(in, out []operand) {
	if out[0].is32() {
		linearKernel(in, product().Sgemm).Forward(floats[float32](out[0]))
	} else {
		linearKernel(in, product().Dgemm).Forward(floats[float64](out[0]))
	}
}

func (linear) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		linearBackward(in, dout, grad, product().Sgemm)
	} else {
		linearBackward(in, dout, grad, product().Dgemm)
	}
}

func linearBackward[T kernel.Float](in, dout, grad []operand, gemm kernel.Gemm[T]) {
	linearKernel(in, gemm).Backward(floats[T](dout[0]), floats[T](grad[0]), floats[T](grad[1]), floats[T](grad[2]))
}

func linearKernel[T kernel.Float](in []operand, gemm kernel.Gemm[T]) *kernel.Linear[T] {
	s := in[0].shape
	return &kernel.Linear[T]{
		Rows: s[0] * s[1], In: s[2], Out: in[1].shape[0],
		X: floats[T](in[0]), Weight: floats[T](in[1]), Bias: floats[T](in[2]), Gemm: gemm,
	}
}
