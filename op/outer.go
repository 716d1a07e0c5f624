package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// OuterProduct returns the outer product of k and v for each step and head, with heads of size = channels/heads: k and v are (batch, length,
// channels), and the result is (batch, length, heads·size·size). Its channel (h, i, j) is
//
//	s_hij = k_hi v_hj
//
// With heads = channels it is the elementwise product. Use it instead of gorgonia.OuterProd, whose gradients are wrong.
//
// Errors: an operand that is missing, or of another type or shape; a number of heads that does not divide the channels.
func OuterProduct(k, v *G.Node, heads int) (*G.Node, error) {
	c := newChecker("outer product", "k", k)
	size, s := headSize(c, "k", k, heads)
	c.required("v", v, "(batch, length, channels)", s...)
	return c.apply1(outer[float32]{size}, outer[float64]{size}, tensor.Shape{s[0], s[1], s[2] * size})
}

// Contract returns the product of a vector q and a matrix s for each step and head: q is (batch, length, channels), s (batch, length,
// heads·size·size) in the layout of OuterProduct, and the result is (batch, length, channels):
//
//	y_hj = Σ_i q_hi s_hij
//
// Errors: those of OuterProduct.
func Contract(q, s *G.Node, heads int) (*G.Node, error) {
	c := newChecker("contraction", "q", q)
	size, shape := headSize(c, "q", q, heads)
	c.required("s", s, "(batch, length, heads·size·size)", shape[0], shape[1], shape[2]*size)
	return c.apply1(contraction[float32]{size}, contraction[float64]{size}, shape)
}

// headSize returns the size of a head of n, and the shape of n.
func headSize(c *checker, name string, n *G.Node, heads int) (size int, shape tensor.Shape) {
	shape = c.required(name, n, "(batch, length, channels)", 0, 0, 0)
	if heads < 1 || shape[2]%heads != 0 {
		c.errorf("heads is %d, want a number that divides the channels, %d", heads, shape[2])
	}
	return shape[2] / max(heads, 1), shape
}

type outer[T kernel.Float] struct{ size int }

func (f outer[T]) Forward(in []value[T], out [][]T) {
	kernel.OuterProduct(out[0], in[0].Data, in[1].Data, f.size)
}

func (f outer[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.MatrixVector(grad[0], dout[0], in[1].Data, f.size)
	kernel.VectorMatrix(grad[1], in[0].Data, dout[0], f.size)
}

func (f outer[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.OuterProduct(s, f.size, in[0].Array, in[1].Array, out[0])
}

func (f outer[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	if err := cuda.MatrixVector(s, f.size, dout[0], in[1].Array, grad[0]); err != nil {
		return err
	}
	return cuda.VectorMatrix(s, f.size, in[0].Array, dout[0], grad[1])
}

type contraction[T kernel.Float] struct{ size int }

func (f contraction[T]) Forward(in []value[T], out [][]T) {
	kernel.VectorMatrix(out[0], in[0].Data, in[1].Data, f.size)
}

func (f contraction[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.MatrixVector(grad[0], in[1].Data, dout[0], f.size)
	kernel.OuterProduct(grad[1], in[0].Data, dout[0], f.size)
}

func (f contraction[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.VectorMatrix(s, f.size, in[0].Array, in[1].Array, out[0])
}

func (f contraction[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	if err := cuda.MatrixVector(s, f.size, in[1].Array, dout[0], grad[0]); err != nil {
		return err
	}
	return cuda.OuterProduct(s, f.size, in[0].Array, dout[0], grad[1])
}
