package op

import (
	gonumblas "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Linear returns x·weightᵀ + bias: x (batch, …, in), weight (out, in), bias (out) or nil, and the result in the shape of
// x with out in place of in. The matrix products are computed by package blas, or by the BLAS that the program has set with gorgonia.Use.
//
// Errors: an operand that is missing, or of another type or shape.
func Linear(x, weight, bias *G.Node) (*G.Node, error) {
	c := newChecker("linear", "x", x)
	s, rows, in := c.rows("x", x, "in")
	out := c.required("weight", weight, "(out, in)", 0, in)[0]
	c.optional("bias", bias, "(out)", out)
	s[len(s)-1] = out
	f := linear[float32]{product{rows, in, out}}
	return c.apply1(f, linear[float64](f), s)
}

// chosenBLAS returns the BLAS for matrix products: package blas, unless the user has set another than gonum's with gorgonia.Use.
func chosenBLAS() G.BLAS {
	chosen := G.WhichBLAS()
	if _, isDefault := chosen.(gonum.Implementation); isDefault {
		return blas.Implementation{}
	}
	return chosen
}

// gemm returns the matrix product of a type in that BLAS.
func gemm[T kernel.Float]() kernel.Gemm[T] {
	if g, ok := any(kernel.Gemm[float32](chosenBLAS().Sgemm)).(kernel.Gemm[T]); ok {
		return g
	}
	return any(kernel.Gemm[float64](chosenBLAS().Dgemm)).(kernel.Gemm[T])
}

// gemmWith returns the product with the transpose of a weight, B of the product.
func gemmWith[T kernel.Float](weight value[T]) kernel.Gemm[T] {
	w := weight.Narrow
	if w == nil {
		return gemm[T]()
	}
	return any(kernel.Gemm[float32](func(_, _ gonumblas.Transpose, m, _, _ int, _ float32, a []float32, lda int, _ []float32, _ int, beta float32, c []float32, ldc int) {
		w.Mul(c, ldc, a, lda, m, beta != 0)
	})).(kernel.Gemm[T])
}

type linear[T kernel.Float] struct{ product }

// product is the product of rows vectors with the transpose of a matrix (out, in).
type product struct{ rows, in, out int }

func (f linear[T]) kernel(in []value[T]) *kernel.Linear[T] {
	return &kernel.Linear[T]{
		Rows: f.rows, In: f.in, Out: f.out, X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data, Gemm: gemmWith(in[1]),
	}
}

func (linear[T]) TakesNarrow(i int) bool { return i == 1 }

func (f linear[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f linear[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1], grad[2])
}

func (f linear[T]) onDevice(p cuda.Precision, in []onDevice, training bool) (*cuda.Linear, error) {
	l := &cuda.Linear{Rows: f.rows, In: f.in, Out: f.out, Precision: p, X: in[0].Array, Weight: in[1].Array, Bias: in[2].Array}
	if n := in[1].Narrow; n != nil {
		l.Narrow = n.OnDevice()
	}
	if p != cuda.BF16 || in[1].Weight == nil {
		return l, nil
	}
	var err error
	l.Half, err = in[1].Weight.HalfFor(training)
	return l, err
}

func (f linear[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	l, err := f.onDevice(p, in, keep)
	if err != nil {
		return nil, err
	}
	return nil, l.Forward(s, out[0])
}

func (f linear[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	l, err := f.onDevice(p, in, true)
	if err != nil {
		return err
	}
	return l.Backward(s, dout[0], grad[0], grad[1], grad[2])
}
