package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// MinGRUInputs holds the operands of a minimal gated recurrent unit. Optional operands may be nil.
type MinGRUInputs struct {
	Z, Candidate *G.Node // (batch, length, channels): the gate before its sigmoid, and the candidate h̃

	H     *G.Node // optional: (batch, channels), the state before the first step
	Start *G.Node // optional: (batch, length); a non-zero element starts a new sequence from a zero state at its step
}

// MinGRU computes the recurrence of a minimal gated recurrent unit. For each batch and channel, over time t:
//
//	u = σ(Z_t),  h_t = (1 - u) h_{t-1} + u Candidate_t
//
// It returns y, the h of all steps (batch, length, channels), and h after the last step (batch, channels). To process a sequence in pieces,
// pass h as the H of the next piece.
//
// Errors: an operand that is missing, or of another type or shape than listed in MinGRUInputs.
//
// Source: Feng et al., "Were RNNs All We Needed?", section 3.1.
func MinGRU(in MinGRUInputs) (y, h *G.Node, err error) {
	c := newChecker("minGRU", "Z", in.Z)
	s := c.required("Z", in.Z, "(batch, length, channels)", 0, 0, 0)
	c.required("Candidate", in.Candidate, "(batch, length, channels)", s...)
	c.optional("H", in.H, "(batch, channels)", s[0], s[2])
	c.start(in.Start, s[0], s[1])
	f := minGRU[float32]{s[0], s[1], s[2]}
	return c.apply2(f, minGRU[float64](f), s, tensor.Shape{s[0], s[2]})
}

type minGRU[T kernel.Float] struct{ batch, length, channels int }

// On the host.

func (f minGRU[T]) kernel(in []value[T]) *kernel.MinGRU[T] {
	return &kernel.MinGRU[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Z: in[0].Data, Candidate: in[1].Data, H: in[2].Data, Start: in[3].Marks,
	}
}

func (f minGRU[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], out[1]) }

func (f minGRU[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], dout[1], grad[0], grad[1], grad[2])
}

// On a device. The gradient of a result that nothing uses is absent.

func (f minGRU[T]) onDevice(in []onDevice) *cuda.MinGRU {
	return &cuda.MinGRU{
		Batch: f.batch, Length: f.length, Channels: f.channels, Z: in[0].Array, Candidate: in[1].Array, H: in[2].Array, Start: in[3].Marks,
	}
}

func (f minGRU[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(in).Forward(s, out[0], out[1])
}

func (f minGRU[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice(in).Backward(s, dout[0], dout[1], grad[0], grad[1], grad[2])
}
