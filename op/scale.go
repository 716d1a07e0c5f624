package op

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Scale returns by·weight·x: x (batch, …, channels), weight (channels) or nil for 1, and the result in the shape of x. With a weight it is the scale of
// a layer's result (Touvron et al., "Going deeper with Image Transformers", section 2).
//
// Errors: an x that is missing; an operand of another type or shape; a by that is not finite.
func Scale(x, weight *G.Node, by float64) (*G.Node, error) {
	c := newChecker("scale", "x", x)
	s, _, channels := c.rows("x", x, "channels")
	c.optional("weight", weight, "(channels)", channels)
	if math.IsNaN(by) || math.IsInf(by, 0) {
		c.errorf("by is %v, want a finite number", by)
	}
	f := scale[float32]{by}
	return c.apply1(f, scale[float64](f), s)
}

type scale[T kernel.Float] struct{ by float64 }

func (f scale[T]) Forward(in []value[T], out [][]T) {
	kernel.Scale(out[0], in[0].Data, in[1].Data, T(f.by))
}

func (f scale[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.ScaleBackward(grad[0], grad[1], dout[0], in[0].Data, in[1].Data, T(f.by))
}

func (f scale[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.Scale(s, float32(f.by), in[0].Array, in[1].Array, out[0])
}

func (f scale[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.ScaleBackward(s, float32(f.by), in[0].Array, in[1].Array, dout[0], grad[0], grad[1])
}
