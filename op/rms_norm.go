package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// RMSNorm returns x / sqrt(mean(x²) + eps) · weight, where the mean is over the last axis: x (batch, …, channels),
// weight (channels), and the result has x's shape.
//
// Errors: an operand that is missing, or of another type or shape; an eps that is negative or not finite.
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.
func RMSNorm(x, weight *G.Node, eps float64) (*G.Node, error) {
	c := newChecker("RMS norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	c.required("weight", weight, "(channels)", channels)
	c.eps(eps)
	f := rmsNorm[float32]{rows, channels, eps}
	return c.apply1(f, rmsNorm[float64](f), shape)
}

type rmsNorm[T kernel.Float] struct {
	rows, channels int
	eps            float64
}

func (f rmsNorm[T]) kernel(in []value[T]) *kernel.RMSNorm[T] {
	return &kernel.RMSNorm[T]{Channels: f.channels, Eps: f.eps, X: in[0].Data, Weight: in[1].Data}
}

func (f rmsNorm[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f rmsNorm[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1])
}

func (rmsNorm[T]) Repeatable() bool { return true }

func (f rmsNorm[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.RMSNormForward(s, f.rows, f.channels, float32(f.eps), in[0].Array, in[1].Array, out[0])
}

func (f rmsNorm[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.RMSNormBackward(s, f.rows, f.channels, float32(f.eps), in[0].Array, in[1].Array, dout[0], array{}, grad[0], grad[1])
}
