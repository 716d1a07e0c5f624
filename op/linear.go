package op

import (
	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
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
	rows, width := s[0]*s[1], s[2]
	c.required("weight", weight, "(out, in)", 0, width)
	if c.err != nil {
		return nil, c.err
	}
	s[2] = weight.Shape()[0]
	c.optional("bias", bias, "(out)", s[2])
	if c.err != nil {
		return nil, c.err
	}
	f := linear[float32]{product{rows, width, s[2]}}
	return apply1(f, linear[float64](f), c.dt, numbers("x weight bias", x, weight, bias), s)
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

type linear[T kernel.Float] struct{ product }

// product is the product of rows vectors with the transpose of a matrix (out, in).
type product struct{ rows, in, out int }

func (linear[T]) String() string { return "linear" }

func (f linear[T]) kernel(in []value[T]) *kernel.Linear[T] {
	return &kernel.Linear[T]{
		Rows: f.rows, In: f.in, Out: f.out, X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data, Gemm: gemm[T](),
	}
}

func (f linear[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f linear[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1], grad[2])
}

// stepRows is the largest number of rows for which the product that reads a weight once for all rows is used. It is the product of decoding.
const stepRows = 32

func (f linear[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (*kept, error) {
	if !keep && f.rows <= stepRows && f.in <= cuda.StepProductMost {
		return nil, f.step(s, p, in, out[0])
	}
	if err := f.multiply(s, p, in, out[0]); err != nil || in[2].Absent() {
		return nil, err
	}
	return nil, cuda.AddBias(s, f.rows, f.out, out[0], f.out, in[2].Array)
}

func (f linear[T]) multiply(s *cuda.Stream, p cuda.Precision, in []onDevice, to array) error {
	if p != cuda.BF16 {
		return multiply(s, p, f.product, in[0].Array, in[1].Array, to, f.out)
	}
	half, free, err := halves(s, in[0], in[1])
	if err != nil {
		return err
	}
	defer free()
	return multiply(s, p, f.product, half[0], half[1], to, f.out)
}

// step computes the product of few rows. The rows stay in float32.
func (f linear[T]) step(s *cuda.Stream, p cuda.Precision, in []onDevice, y array) error {
	if p != cuda.BF16 {
		return cuda.StepProduct(s, f.rows, f.in, f.out, in[0].Array, array{}, 0, in[1].Array, in[2].Array, array{}, y)
	}
	half, free, err := halves(s, in[1])
	if err != nil {
		return err
	}
	defer free()
	return cuda.StepProduct(s, f.rows, f.in, f.out, in[0].Array, array{}, 0, half[0], in[2].Array, array{}, y)
}

func (f linear[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, _ any) error {
	if !grad[2].Absent() {
		if err := cuda.ColumnSums(s, f.rows, f.out, dout[0], f.out, grad[2]); err != nil {
			return err
		}
	}
	if p != cuda.BF16 {
		return multiplyBackward(s, p, f.product, in[0].Array, in[1].Array, dout[0], f.out, grad[0], grad[1])
	}
	half, free, err := halves(s, in[0], in[1], onDevice{Array: dout[0]})
	if err != nil {
		return err
	}
	defer free()
	return multiplyBackward(s, p, f.product, half[0], half[1], half[2], f.out, grad[0], grad[1])
}

// padded returns a row stride for logits that no user sees, in elements. It makes a row a multiple of 16 bytes; tensor cores read other rows
// slowly.
func (f product) padded() int { return (f.out + 7) / 8 * 8 }

// multiply writes the product of x and weight into to, whose rows are stride elements apart.
func multiply[C, T cuda.Activation](
	s *cuda.Stream, p cuda.Precision, f product, x, weight cuda.Array[T], to cuda.Array[C], stride int,
) error {
	w := matrix(weight, f.in)
	w.Transposed = true
	return cuda.MatMul(s, p, f.rows, f.out, f.in, matrix(x, f.in), w, 0, matrix(to, stride))
}

// multiplyBackward computes the gradients of x and weight from dy. It divides the rows of dy into two parts, the first a multiple of eight. Without
// this cuBLAS does not use tensor cores along the rows of dy, and its other kernels have a fifth of their speed.
func multiplyBackward[T cuda.Activation](
	s *cuda.Stream, p cuda.Precision, f product, x, weight, dy cuda.Array[T], stride int, dx, dweight array,
) error {
	whole := f.out / 8 * 8
	for _, part := range [][2]int{{0, whole}, {whole, f.out}} {
		from, n := part[0], part[1]-part[0]
		if n == 0 {
			continue
		}
		d, w := matrix(dy.Slice(from, dy.Len()-from), stride), matrix(weight.Slice(from*f.in, n*f.in), f.in)
		if err := cuda.MatMul(s, p, f.rows, f.in, n, d, w, float32(min(from, 1)), matrix(dx, f.in)); err != nil {
			return err
		}
		d.Transposed = true
		if err := cuda.MatMul(s, p, n, f.in, f.rows, d, matrix(x, f.in), 0, matrix(dweight.Slice(from*f.in, n*f.in), f.in)); err != nil {
			return err
		}
	}
	return nil
}
