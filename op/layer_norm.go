package op

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// LayerNorm returns (x - mean) / sqrt(variance + eps) · weight + bias, with mean and variance over the last axis: x (batch, …, channels), weight
// (channels) or nil for ones, bias (channels) or nil for zeros, and the result has x's shape. The variance is divided by the number of channels.
//
// Errors: an operand that is missing, or of another type or shape; an eps that is negative or not finite.
//
// Source: Ba et al., "Layer Normalization".
func LayerNorm(x, weight, bias *G.Node, eps float64) (*G.Node, error) {
	c := newChecker("layer norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	c.optional("weight", weight, "(channels)", channels)
	c.optional("bias", bias, "(channels)", channels)
	c.eps(eps)
	f := layerNorm[float32]{rows, channels, eps}
	return c.apply1(f, layerNorm[float64](f), shape)
}

func (c *checker) eps(eps float64) {
	if !(eps >= 0) || math.IsInf(eps, 1) {
		c.errorf("eps is %v, want a finite number that is not negative", eps)
	}
}

type layerNorm[T kernel.Float] struct {
	rows, channels int
	eps            float64
}

func (f layerNorm[T]) kernel(in []value[T]) *kernel.LayerNorm[T] {
	return &kernel.LayerNorm[T]{Channels: f.channels, Eps: f.eps, X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data}
}

func (f layerNorm[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f layerNorm[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1], grad[2])
}

func (f layerNorm[T]) onDevice(in []onDevice) *cuda.LayerNorm {
	return &cuda.LayerNorm{Rows: f.rows, Width: f.channels, Eps: float32(f.eps), X: in[0].Array, Weight: in[1].Array, Bias: in[2].Array}
}

func (layerNorm[T]) Repeatable() bool { return true }

func (f layerNorm[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(in).Forward(s, out[0])
}

func (f layerNorm[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice(in).Backward(s, dout[0], grad[0], grad[1], grad[2])
}
