package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// GroupedLinear applies a matrix of its own to each group of channels: x (batch, …, groups·in) and weight (groups, out, in) give (batch, …,
// groups·out), group g of which is the group g of x times the transpose of weight[g]. Matrix products are computed as in Linear.
//
// Errors: an operand that is missing, or of another type or shape.
func GroupedLinear(x, weight *G.Node) (*G.Node, error) {
	c := newChecker("grouped linear", "x", x)
	s, rows, channels := c.rows("x", x, "groups·in")
	w := c.required("weight", weight, "(groups, out, in)", 0, 0, 0)
	if c.err == nil && (channels%w[0] != 0 || channels/w[0] != w[2]) {
		c.errorf("weight has shape %v, want (groups, out, in) with groups·in = %d, the channels of x", w, channels)
	}
	s[len(s)-1] = w[0] * w[1]
	f := groupedLinear[float32]{rows, w[0], w[2], w[1]}
	return c.apply1(f, groupedLinear[float64](f), s)
}

type groupedLinear[T kernel.Float] struct{ rows, groups, in, out int }

func (f groupedLinear[T]) kernel(in []value[T]) *kernel.GroupedLinear[T] {
	return &kernel.GroupedLinear[T]{Rows: f.rows, Groups: f.groups, In: f.in, Out: f.out, X: in[0].Data, Weight: in[1].Data, Gemm: gemm[T]()}
}

func (f groupedLinear[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f groupedLinear[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1])
}

func (f groupedLinear[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	if p == cuda.BF16 {
		return nil, groupedForward[cuda.BFloat16](f, s, p, in, out[0])
	}
	return nil, groupedForward[float32](f, s, p, in, out[0])
}

func (f groupedLinear[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	if p == cuda.BF16 {
		return groupedBackward[cuda.BFloat16](f, s, p, in, dout[0], grad)
	}
	return groupedBackward[float32](f, s, p, in, dout[0], grad)
}

// each calls product for each group, with the first element of the group in x, in weight and in y.
func (f groupedLinear[T]) each(product func(x, weight, y int) error) error {
	for g := range f.groups {
		if err := product(g*f.in, g*f.out*f.in, g*f.out); err != nil {
			return err
		}
	}
	return nil
}

func groupedForward[A cuda.Activation, T kernel.Float](f groupedLinear[T], s *cuda.Stream, p cuda.Precision, in []onDevice, y array) error {
	a, free, err := as[A](s, in...)
	if err != nil {
		return err
	}
	defer free()
	return f.each(func(x, w, to int) error {
		weight := matrix(from(a[1], w), f.in)
		weight.Transposed = true
		return cuda.MatMul(s, p, f.rows, f.out, f.in, matrix(from(a[0], x), f.groups*f.in), weight, 0, matrix(from(y, to), f.groups*f.out))
	})
}

func groupedBackward[A cuda.Activation, T kernel.Float](f groupedLinear[T], s *cuda.Stream, p cuda.Precision, in []onDevice, dy array, grad []array) error {
	a, free, err := as[A](s, in[0], in[1], onDevice{Array: dy, Shape: tensor.Shape{f.rows, f.groups * f.out}})
	if err != nil {
		return err
	}
	defer free()
	return f.each(func(x, w, to int) error {
		d := matrix(from(a[2], to), f.groups*f.out)
		if err := cuda.MatMul(s, p, f.rows, f.in, f.out, d, matrix(from(a[1], w), f.in), 0, matrix(from(grad[0], x), f.groups*f.in)); err != nil {
			return err
		}
		d.Transposed = true
		return cuda.MatMul(s, p, f.out, f.in, f.rows, d, matrix(from(a[0], x), f.groups*f.in), 0, matrix(from(grad[1], w), f.in))
	})
}

// from returns the elements of an array from one on.
func from[T cuda.Element](a cuda.Array[T], first int) cuda.Array[T] {
	return a.Slice(first, a.Len()-first)
}
