package layer

import (
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
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
// Δ starts within the configured range, A as configured, C normally distributed, and D at 1. B is fixed at 1, since only its product
// with C enters y.
//
// Its state has one slot: scan (channels, state), with the numbers of a channel in the order of C.
type S4 = build.OverTime[S4Parts, Params]

// S4Parts is what an S4 is made of.
type S4Parts struct {
	LogDelta            *Param // "log_dt" (channels): log Δ
	LogDecay, Frequency *Param // "log_A_real", "A_imag" (channels, modes): A = -exp(log_A_real) + i·A_imag; Frequency is nil for S4DReal
	C, D                *Param // "C" (channels, state): the real parts, then the imaginary parts; "D" (channels)
	channels, state     int
	bilinear            bool
}

// S4Config configures an S4. A zero field stands for its default.
type S4Config struct {
	Channels     int     // required
	State        int     // N, real numbers in the state of a channel: N/2 complex modes, or N real modes with S4DReal; 64
	A            StartA  // initial diagonal; S4DLin
	Bilinear     bool    // discretise by the bilinear rule instead of the zero-order hold
	DtMin, DtMax float64 // range of the initial steps Δ; 0.001 to 0.1
}

// NewS4 returns a time-invariant state space.
func NewS4(cfg S4Config, opts ...Option) *S4 {
	return newMixer("S4", opts, []any{"channels", cfg.Channels}, func(l *S4, p *S4Parts, o build.Options) (Params, error) {
		p.channels, p.state, p.bilinear = cfg.Channels, build.OrDefault(cfg.State, 64), cfg.Bilinear
		if err := build.Axes("state size", p.state); err != nil {
			return nil, err
		}
		low, high, err := dtRange(cfg.DtMin, cfg.DtMax)
		if err != nil {
			return nil, err
		}
		modes, err := cfg.A.modes(p.state)
		if err != nil {
			return nil, err
		}
		var a []complex128
		if !o.Zeros {
			if a, err = cfg.A.Values(p.state); err != nil {
				return nil, err
			}
		}
		build.MixWith(l, p.channels, []Slot{{Name: "scan", Shape: tensor.Shape{p.channels, p.state}}}, p.mix)
		return p.start(o, modes, a, low, high), nil
	})
}

// start draws the weights. a is the diagonal of A, or nil if all weights are zero.
func (p *S4Parts) start(o build.Options, modes int, a []complex128, low, high float64) (params Params) {
	add := func(name string, draw func() float64, shape ...int) *Param {
		params = append(params, NewParam(build.Join(o.Name, name), o.New(draw, shape...), false))
		return params[len(params)-1]
	}
	each := func(of func(a complex128) float64) func() float64 {
		n := -1
		return func() float64 {
			n = (n + 1) % modes
			return of(a[n])
		}
	}
	step := build.LogUniform(o.Rand(build.Join(o.Name, "log_dt")), low, high)
	p.LogDelta = add("log_dt", func() float64 { return math.Log(step()) }, p.channels)
	p.LogDecay = add("log_A_real", each(func(a complex128) float64 { return math.Log(-real(a)) }), p.channels, modes)
	spread := 1.0
	if modes < p.state {
		p.Frequency = add("A_imag", each(func(a complex128) float64 { return imag(a) }), p.channels, modes)
		spread = math.Sqrt2 / 2 // of each part
	}
	r := o.Rand(build.Join(o.Name, "C"))
	p.C = add("C", func() float64 { return spread * r.NormFloat64() }, p.channels, p.state)
	p.D = add("D", build.Constant(1), p.channels)
	return params
}

func (p *S4Parts) mix(s *build.Steps, x *G.Node) *G.Node {
	w := weights(s, p.LogDelta, p.LogDecay, p.Frequency, p.C, p.D)
	in := op.S4Inputs{U: x, LogDelta: w[0], LogDecay: w[1], Frequency: w[2], C: w[3], D: w[4], InitialState: s.Take(), Start: s.Start}
	return build.Run(s, in, op.S4Config{Bilinear: p.bilinear}, op.S4, op.S4WithState)
}

// Mixer returns an S4 of this configuration for a number of channels.
func (c S4Config) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewS4(c, opts...)
}
