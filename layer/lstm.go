package layer

import (
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// LSTM is a long short-term memory (Hochreiter and Schmidhuber, "Long Short-Term Memory", with the forget gate of Gers et al.,
// "Learning to Forget"). Its input and its result are (batch, length, channels). op.LSTM has the equations. The weights start
// uniform within ±1/√channels, the bias of the forget gate starts at 1, and the other biases start at 0.
//
// Its state has the slots h (channels) and c (channels).
type LSTM struct {
	Base
	Input     *Param // "weight_ih" (4·channels, channels), in the order i, f, g, o
	Recurrent *Param // "weight_hh" (4·channels, channels)
	Bias      *Param // "bias" (4·channels)
}

// LSTMConfig configures an LSTM.
type LSTMConfig struct {
	Channels int // required
}

// NewLSTM returns a long short-term memory.
func NewLSTM(cfg LSTMConfig, opts ...Option) *LSTM {
	return newLayer("LSTM", opts, []any{"channels", cfg.Channels}, func(l *LSTM, o build.Options) (Params, error) {
		channels := cfg.Channels
		weight := func(name string) *Param {
			name = build.Join(o.Name, name)
			return NewParam(name, o.New(build.Uniform(o.Rand(name), 1/math.Sqrt(float64(channels))), 4*channels, channels), true)
		}
		n := -1
		forget := func() float64 {
			if n++; n/channels == 1 {
				return 1
			}
			return 0
		}
		l.Input, l.Recurrent = weight("weight_ih"), weight("weight_hh")
		l.Bias = NewParam(build.Join(o.Name, "bias"), o.New(forget, 4*channels), false)
		build.OverTime(l, channels, []Slot{{Name: "h", Shape: tensor.Shape{channels}}, {Name: "c", Shape: tensor.Shape{channels}}}, l.mix)
		return Params{l.Input, l.Recurrent, l.Bias}, nil
	})
}

func (l *LSTM) mix(s *build.Steps, x *G.Node) *G.Node {
	w := weights(s, l.Input, l.Recurrent, l.Bias)
	z := s.Do(op.Linear(x, w[0], w[2])) // (batch, length, 4·channels)
	y, h, c, err := op.LSTM(op.LSTMInputs{Z: z, Weight: w[1], H: s.Take(), C: s.Take(), Start: s.Start})
	s.Put(h, c)
	return s.Do(y, err)
}

// Mixer returns an LSTM for a number of channels.
func (LSTMConfig) Mixer(channels int, opts ...Option) Mixer {
	return NewLSTM(LSTMConfig{channels}, opts...)
}

// Err returns what is wrong with the layer, or nil.
func (l *LSTM) Err() error { return build.Err(l) }

// Slots returns the parts of the layer's state.
func (l *LSTM) Slots() []Slot { return build.Slots(l) }

// Apply applies the layer to whole sequences, as Mixer has it.
func (l *LSTM) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) { return build.Apply(l, x, opts) }

// ApplyWithState continues from a state, as Mixer has it.
func (l *LSTM) ApplyWithState(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error) {
	return build.ApplyWithState(l, x, state, opts)
}

// Fwd is Apply in the form of golgi's layers.
func (l *LSTM) Fwd(x G.Input) G.Result { return build.Fwd(l, x) }

var _ Mixer = (*LSTM)(nil)
