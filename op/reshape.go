package op

import (
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Reshape returns a copy of x in another shape with as many elements, in the same order: a grid (batch, height, width, channels) as a sequence
// (batch, height·width, channels), and back.
//
// Use it instead of gorgonia.Reshape, whose result shares the memory of x: Gorgonia then overwrites x without knowing it.
//
// Errors: an x that is missing, or not of float32 or float64; a shape without axes, with an axis below 1, or with another number of elements.
func Reshape(x *G.Node, shape ...int) (*G.Node, error) {
	c := newChecker("reshape", "x", x)
	if c.err != nil {
		return nil, c.err
	}
	c.numbers("x", x)
	elements := x.Shape().TotalSize()
	rest := elements
	for i, axis := range shape {
		if axis < 1 {
			c.errorf("axis %d of the shape is %d, want at least 1", i, axis)
			break
		}
		if rest%axis != 0 {
			rest = 0
			break
		}
		rest /= axis
	}
	if len(shape) == 0 || rest != 1 {
		c.errorf("the shape is %v, want one of %d elements, those of x %v", shape, elements, x.Shape())
	}
	return c.apply1(reshape[float32]{}, reshape[float64]{}, slices.Clone(shape))
}

type reshape[T kernel.Float] struct{}

func (reshape[T]) Forward(in []value[T], out [][]T) { copy(out[0], in[0].Data) }

func (reshape[T]) Backward(_ []value[T], dout, grad [][]T) { copy(grad[0], dout[0]) }

func (reshape[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, out[0].CopyOf(s, in[0].Array)
}

func (reshape[T]) Linear() {}

func (reshape[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	return grad[0].CopyOf(s, dout[0])
}
