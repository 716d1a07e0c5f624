package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// LSTM is a long short-term memory (Hochreiter and Schmidhuber, "Long Short-Term Memory", with the forget gate of Gers et al.,
// "Learning to Forget"). Its input and its result are (batch, length, channels). op.LSTM has the equations. The weights start
// uniform within ±1/√channels, the bias of the forget gate starts at 1, and the other biases start at 0.
type LSTM struct {
	Base
	Input     *Param // "weight_ih" (4·channels, channels), in the order i, f, g, o
	Recurrent *Param // "weight_hh" (4·channels, channels)
	Bias      *Param // "bias" (4·channels)
	channels  int
}

// NewLSTM returns a long short-term memory.
func NewLSTM(channels int, opts ...Option) *LSTM {
	return build("LSTM", opts, false, []any{"channels", channels}, func(l *LSTM, o Options) (Params, error) {
		l.channels = channels
		weight := func(name string) *Param {
			name = Join(o.Name, name)
			return NewParam(name, o.New(Uniform(o.Rand(name), 1/math.Sqrt(float64(channels))), 4*channels, channels), true)
		}
		n := -1
		forget := func() float64 {
			if n++; n/channels == 1 {
				return 1
			}
			return 0
		}
		l.Input, l.Recurrent = weight("weight_ih"), weight("weight_hh")
		l.Bias = NewParam(Join(o.Name, "bias"), o.New(forget, 4*channels), false)
		return Params{l.Input, l.Recurrent, l.Bias}, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *LSTM) Err() error { return Err(l) }

// StateShape returns (batch, 2·channels): h, followed by c. It returns nil if the layer is invalid.
func (l *LSTM) StateShape(batch int) tensor.Shape {
	if l.Err() != nil {
		return nil
	}
	return tensor.Shape{batch, 2 * l.channels}
}

// Apply applies the layer to x (batch, length, channels).
func (l *LSTM) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil.
func (l *LSTM) ApplyStart(x, start *G.Node) (*G.Node, error) {
	y, _, err := l.ApplyWithState(x, nil, start)
	return y, err
}

// ApplyWithState continues from a state (batch, 2·channels), nil for zeros. It returns the result and the state after x.
func (l *LSTM) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	if err := Use(l, x); err != nil {
		return nil, nil, err
	}
	if s := x.Shape(); len(s) != 3 || s[2] != l.channels {
		return nil, nil, fmt.Errorf("%s: the input has shape %v, want (batch, length, channels) with %d channels", l.Name(), s, l.channels)
	}
	w, err := Effective(x.Graph(), l.Input, l.Recurrent, l.Bias)
	if err != nil {
		return nil, nil, err
	}
	z, err := op.Linear(x, w[0], w[2])
	if err != nil {
		return nil, nil, err
	}
	return op.LSTM(op.LSTMInputs{Z: z, Weight: w[1], InitialState: state, Start: start})
}

// Fwd is Apply in the form of golgi's layers.
func (l *LSTM) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*LSTM)(nil)
