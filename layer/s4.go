package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// S4 is a diagonal, time-invariant state space for each channel. Its input and its result are (batch, length, channels). It is
// algorithm 1 of Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", in the form of S4D (Gu et al.,
// "On the Parameterization and Initialization of Diagonal State Space Models").
//
//	h'(t) = A h(t) + u(t),  y(t) = C h(t) + D u(t),  in steps of length Δ
//
// The layer convolves whole sequences by FFT. With a state, or where sequences start inside the input, it goes step by step. Both
// ways compute the same function (op.S4; docs/s4.md).
//
// Δ starts within the range of WithDtRange, A as WithA sets it, C normally distributed, and D at 1. B is fixed at 1, since only
// its product with C enters y.
type S4 struct {
	Base
	LogDelta            *Param // "log_dt" (channels): log Δ
	LogDecay, Frequency *Param // "log_A_real", "A_imag" (channels, modes): A = -exp(log_A_real) + i·A_imag; Frequency is nil for S4DReal
	C, D                *Param // "C" (channels, state): the real parts, then the imaginary parts; "D" (channels)
	channels, state     int
	bilinear            bool
}

// NewS4 returns a time-invariant state space. WithStateSize sets N, the number of real numbers in the state of a channel, 64 by
// default: N/2 complex modes, or N real modes with S4DReal.
func NewS4(channels int, opts ...Option) *S4 {
	return build("S4", opts, false, []any{"channels", channels}, func(l *S4, o Options) (Params, error) {
		l.channels, l.state, l.bilinear = channels, orDefault(o.StateSize, 64), o.Bilinear
		if err := axes("state size", l.state); err != nil {
			return nil, err
		}
		low, high, err := o.dtRange()
		if err != nil {
			return nil, err
		}
		modes, err := o.A.modes(l.state)
		if err != nil {
			return nil, err
		}
		var a []complex128
		if !o.Zeros {
			if a, err = o.A.Values(l.state); err != nil {
				return nil, err
			}
		}
		return l.start(o, modes, a, low, high), nil
	})
}

// start draws the weights. a is the diagonal of A, or nil if all weights are zero.
func (l *S4) start(o Options, modes int, a []complex128, low, high float64) (params Params) {
	add := func(name string, draw func() float64, shape ...int) *Param {
		p := NewParam(Join(o.Name, name), o.New(draw, shape...), false)
		params = append(params, p)
		return p
	}
	each := func(of func(a complex128) float64) func() float64 {
		n := -1
		return func() float64 {
			n = (n + 1) % modes
			return of(a[n])
		}
	}
	step := LogUniform(o.Rand(Join(o.Name, "log_dt")), low, high)
	l.LogDelta = add("log_dt", func() float64 { return math.Log(step()) }, l.channels)
	l.LogDecay = add("log_A_real", each(func(a complex128) float64 { return math.Log(-real(a)) }), l.channels, modes)
	spread := 1.0
	if modes < l.state {
		l.Frequency = add("A_imag", each(func(a complex128) float64 { return imag(a) }), l.channels, modes)
		spread = math.Sqrt2 / 2 // of each part
	}
	r := o.Rand(Join(o.Name, "C"))
	l.C = add("C", func() float64 { return spread * r.NormFloat64() }, l.channels, l.state)
	l.D = add("D", Constant(1), l.channels)
	return params
}

// Err returns what is wrong with the layer, or nil.
func (l *S4) Err() error { return Err(l) }

// StateShape returns (batch, channels, state), with the numbers of a channel in the order of C. It returns nil if the layer is
// invalid.
func (l *S4) StateShape(batch int) tensor.Shape {
	if l.Err() != nil {
		return nil
	}
	return tensor.Shape{batch, l.channels, l.state}
}

// Apply convolves x (batch, length, channels).
func (l *S4) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil; if it
// is not, the layer goes step by step.
func (l *S4) ApplyStart(x, start *G.Node) (*G.Node, error) {
	in, cfg, err := l.inputs(x, nil, start)
	if err != nil {
		return nil, err
	}
	return op.S4(in, cfg)
}

// ApplyWithState goes step by step from a state (batch, channels, state), nil for zeros. It returns the result and the state
// after x.
func (l *S4) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	in, cfg, err := l.inputs(x, state, start)
	if err != nil {
		return nil, nil, err
	}
	return op.S4WithState(in, cfg)
}

func (l *S4) inputs(x, state, start *G.Node) (in op.S4Inputs, cfg op.S4Config, err error) {
	if err := Use(l, x); err != nil {
		return in, cfg, err
	}
	if s := x.Shape(); len(s) != 3 || s[2] != l.channels {
		return in, cfg, fmt.Errorf("%s: the input has shape %v, want (batch, length, channels) with %d channels", l.Name(), s, l.channels)
	}
	w, err := Effective(x.Graph(), l.LogDelta, l.LogDecay, l.Frequency, l.C, l.D)
	if err != nil {
		return in, cfg, err
	}
	in = op.S4Inputs{U: x, LogDelta: w[0], LogDecay: w[1], Frequency: w[2], C: w[3], D: w[4], InitialState: state, Start: start}
	return in, op.S4Config{Bilinear: l.bilinear}, nil
}

// Fwd is Apply in the form of golgi's layers.
func (l *S4) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*S4)(nil)
