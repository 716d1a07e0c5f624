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
type LSTM = build.OverTime[LSTMParts, Params]

// LSTMParts is what an LSTM is made of.
type LSTMParts struct {
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
	return newMixer("LSTM", opts, []any{"channels", cfg.Channels}, func(l *LSTM, p *LSTMParts, o build.Options) (Params, error) {
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
		p.Input, p.Recurrent = weight("weight_ih"), weight("weight_hh")
		p.Bias = NewParam(build.Join(o.Name, "bias"), o.New(forget, 4*channels), false)
		build.MixWith(l, channels, []Slot{{Name: "h", Shape: tensor.Shape{channels}}, {Name: "c", Shape: tensor.Shape{channels}}}, p.mix)
		return Params{p.Input, p.Recurrent, p.Bias}, nil
	})
}

func (p *LSTMParts) mix(s *build.Steps, x *G.Node) *G.Node {
	w := weights(s, p.Input, p.Recurrent, p.Bias)
	z := s.Do(op.Linear(x, w[0], w[2])) // (batch, length, 4·channels)
	y, h, c, err := op.LSTM(op.LSTMInputs{Z: z, Weight: w[1], H: s.Take(), C: s.Take(), Start: s.Start})
	s.Put(h, c)
	return s.Do(y, err)
}

// Mixer returns an LSTM for a number of channels.
func (LSTMConfig) Mixer(channels int, opts ...Option) Mixer {
	return NewLSTM(LSTMConfig{channels}, opts...)
}
