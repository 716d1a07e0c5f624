package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// LSTMInputs holds the operands of a long short-term memory. Optional operands may be nil.
type LSTMInputs struct {
	Z      *G.Node // (batch, length, 4·channels): the input's part of the gates, in the order i, f, g, o
	Weight *G.Node // (4·channels, channels): the product with h is the state's part of the gates

	H, C  *G.Node // optional: (batch, channels), the state before the first step
	Start *G.Node // optional: (batch, length); a non-zero element starts a new sequence from a zero state at its step
}

// LSTM computes the recurrence of a long short-term memory. For each batch, over time t:
//
//	i, f, o = σ(Z_t + Weight·h_{t-1}),  g = tanh(Z_t + Weight·h_{t-1}),  each with its quarter of the rows
//	c_t = f c_{t-1} + i g
//	h_t = o tanh(c_t)
//
// It returns y, the h of all steps (batch, length, channels), and the state after the last step, h and c (batch, channels). To process a
// sequence in pieces, pass h and c as the H and C of the next piece.
//
// Errors: an operand that is missing, or of another type or shape than listed in LSTMInputs.
//
// Sources: Hochreiter and Schmidhuber, "Long Short-Term Memory"; Gers et al., "Learning to Forget", for the forget gate.
func LSTM(in LSTMInputs) (y, h, c *G.Node, err error) {
	k := newChecker("LSTM", "Z", in.Z)
	s := k.required("Z", in.Z, "(batch, length, 4·channels)", 0, 0, 0)
	f := &lstm[float32]{batch: s[0], length: s[1], channels: s[2] / 4}
	if s[2]%4 != 0 {
		k.errorf("Z has %d channels, want a multiple of 4, 4·channels", s[2])
	}
	k.required("Weight", in.Weight, "(4·channels, channels)", s[2], f.channels)
	k.optional("H", in.H, "(batch, channels)", f.batch, f.channels)
	k.optional("C", in.C, "(batch, channels)", f.batch, f.channels)
	k.start(in.Start, f.batch, f.length)
	state := tensor.Shape{f.batch, f.channels}
	nodes, err := k.apply(f, (*lstm[float64])(f), tensor.Shape{f.batch, f.length, f.channels}, state, state)
	if err != nil {
		return nil, nil, nil, err
	}
	return nodes[0], nodes[1], nodes[2], nil
}

type lstm[T kernel.Float] struct{ batch, length, channels int }

func (f *lstm[T]) kernel(in []value[T]) *kernel.LSTM[T] {
	return &kernel.LSTM[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels,
		Z: in[0].Data, R: in[1].Data, H: in[2].Data, C: in[3].Data, Start: in[4].Marks,
	}
}

func (f *lstm[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], out[1], out[2]) }

func (f *lstm[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], dout[1], dout[2], grad[0], grad[1], grad[2], grad[3])
}

func (f *lstm[T]) onDevice(p cuda.Precision, in []onDevice) *cuda.LSTM {
	return &cuda.LSTM{
		Batch: f.batch, Length: f.length, Channels: f.channels, Precision: p,
		Z: in[0].Array, R: in[1].Array, H: in[2].Array, C: in[3].Array, Start: in[4].Marks,
	}
}

func (f *lstm[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	return f.onDevice(p, in).Forward(s, out[0], out[1], out[2], keep)
}

func (f *lstm[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	return f.onDevice(p, in).Backward(s, values.(*cuda.LSTMKept), dout[0], dout[1], dout[2], grad[0], grad[1], grad[2], grad[3])
}
