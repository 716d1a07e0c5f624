package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Reverse returns x (batch, length, channels) with each sequence in reverse order over time. A new sequence begins where start (batch, length),
// of float32, float64 or int, is not 0; start may be nil. Sequences stay where they are, so the same start marks those of the result. A layer
// between two Reverses reads each sequence from its end to its beginning.
//
// Errors: an x that is missing; an operand of another type or shape.
func Reverse(x, start *G.Node) (*G.Node, error) {
	c := newChecker("reverse", "x", x)
	s := c.required("x", x, "(batch, length, channels)", 0, 0, 0)
	c.start(start, s[0], s[1])
	f := reverse[float32]{s[0], s[1], s[2]}
	return c.apply1(f, reverse[float64](f), s)
}

type reverse[T kernel.Float] struct{ batch, length, channels int }

func (f reverse[T]) Forward(in []value[T], out [][]T) {
	kernel.Reverse(out[0], in[0].Data, f.batch, f.length, f.channels, in[1].Marks)
}

func (f reverse[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.Reverse(grad[0], dout[0], f.batch, f.length, f.channels, in[1].Marks)
}

func (f reverse[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.Reverse(s, f.batch, f.length, f.channels, in[0].Array, out[0], in[1].Marks)
}

func (reverse[T]) Linear() {}

func (f reverse[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.Reverse(s, f.batch, f.length, f.channels, dout[0], grad[0], in[1].Marks)
}
