package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// S4 is a diagonal, time-invariant state space for each channel, from (batch, length, channels) to the same: algorithm 1 of Gu
// and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", as S4D has it (Gu et al., "On the
// Parameterization and Initialization of Diagonal State Space Models").
//
//	h'(t) = A h(t) + u(t),  y(t) = C h(t) + D u(t),  in steps of length Δ
//
// Whole sequences are convolved by FFT; with a state, or where sequences start within, it takes steps. Both are one function
// (op.S4; docs/s4.md). Δ starts within the range of WithDtRange, A as WithA says, C normally distributed, D at 1; B is 1, since
// only its product with C enters y.
type S4 struct {
	Base
	LogDelta            *Param // "log_dt" (channels): log Δ
	LogDecay, Frequency *Param // "log_A_real", "A_imag" (channels, modes): A = -exp(log_A_real) + i·A_imag; Frequency is nil for S4DReal
	C, D                *Param // "C" (channels, state): the real parts, and the imaginary ones behind them; "D" (channels)
	channels, state     int
	bilinear            bool
}

// NewS4 returns a time-invariant state space. WithStateSize sets N, the real numbers in the state of a channel, 64 by default:
// N/2 complex modes, or with S4DReal N real ones.
func NewS4(channels int, opts ...Option) *S4 {
	l := &S4{channels: channels}
	o, err := collect("S4", opts, false, positive("S4", "channels", channels))
	l.state, l.bilinear = orDefault(o.StateSize, 64), o.Bilinear
	if err == nil {
		err = positive("S4", "state size", l.state)
	}
	low, high, wrong := o.dtRange()
	if err == nil && wrong != nil {
		err = fmt.Errorf("layer: S4: %w", wrong)
	}
	if err == nil {
		var a []complex128
		if a, err = o.A.Values(l.state); err == nil {
			l.start(o, a, low, high)
		}
	}
	l.Init(nameOr(o.Name, "S4"), err, l.params...)
	return l
}

func (l *S4) start(o Options, a []complex128, low, high float64) {
	add := func(name string, draw func() float64, shape ...int) *Param {
		p := NewParam(Join(o.Name, name), o.New(draw, shape...), false)
		l.params = append(l.params, p)
		return p
	}
	each := func(of func(a complex128) float64) func() float64 {
		n := -1
		return func() float64 {
			n = (n + 1) % len(a)
			return of(a[n])
		}
	}
	step := LogUniform(o.Rand(Join(o.Name, "log_dt")), low, high)
	l.LogDelta = add("log_dt", func() float64 { return math.Log(step()) }, l.channels)
	l.LogDecay = add("log_A_real", each(func(a complex128) float64 { return math.Log(-real(a)) }), l.channels, len(a))
	spread := 1.0
	if len(a) < l.state {
		l.Frequency = add("A_imag", each(func(a complex128) float64 { return imag(a) }), l.channels, len(a))
		spread = math.Sqrt2 / 2 // of each part
	}
	r := o.Rand(Join(o.Name, "C"))
	l.C = add("C", func() float64 { return spread * r.NormFloat64() }, l.channels, l.state)
	l.D = add("D", Constant(1), l.channels)
}

// StateShape is (batch, channels, state), a channel's numbers in the order of C.
func (l *S4) StateShape(batch int) tensor.Shape { return tensor.Shape{batch, l.channels, l.state} }

// Apply convolves x (batch, length, channels).
func (l *S4) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new one starts where start (batch, length) is non-zero. Start may be nil; if it is
// not, the layer takes steps.
func (l *S4) ApplyStart(x, start *G.Node) (*G.Node, error) {
	in, cfg, err := l.inputs(x, nil, start)
	if err != nil {
		return nil, err
	}
	return op.S4(in, cfg)
}

// ApplyWithState takes steps from a state (batch, channels, state), nil for zeros, and returns the one after x beside the result.
func (l *S4) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	in, cfg, err := l.inputs(x, state, start)
	if err != nil {
		return nil, nil, err
	}
	return op.S4WithState(in, cfg)
}

func (l *S4) inputs(x, state, start *G.Node) (in op.S4Inputs, cfg op.S4Config, err error) {
	if err := l.Use(x); err != nil {
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

// Fwd is Apply as golgi has it.
func (l *S4) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*S4)(nil)
