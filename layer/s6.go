package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// S6 is the selective state space of Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 2.
// Its input and its result are (batch, length, channels). It computes the steps Δ and the matrices B and C from its input:
//
//	dt, B, C = split(x_proj(x));  Δ = softplus(dt_proj(dt));  y = scan(u = x, Δ, A = -exp(A_log), B, C, D)
//
// The scan is op.SelectiveScan. S6 is the inner part of Mamba, without its convolution, gate and projections. The weights start with
// A_n = -n (S4D-Real), D = 1, and Δ within the configured range.
//
// Its state has one slot: scan (channels, state).
type S6 = build.OverTime[S6Parts, Params]

// S6Parts is what an S6 is made of.
type S6Parts struct {
	ALog, D               *Param  // "A_log" (channels, state) and "D" (channels)
	XProj, DtProj         *Linear // "x_proj" (rank+2·state, channels), "dt_proj" (channels, rank) with a bias
	channels, state, rank int
	cfg                   op.ScanConfig
}

// S6Config configures an S6. A zero field stands for its default.
type S6Config struct {
	Channels     int     // required
	State        int     // N, the size of the state of each channel; 16
	Rank         int     // of the projection that computes Δ; Channels/16, rounded up
	DtMin, DtMax float64 // range of the initial steps Δ; 0.001 to 0.1
	DtFloor      float64 // the smallest initial step; none
	DtScale      float64 // scale of the initial weight of dt_proj; 1
	Reverse      bool    // the scan goes from the last step to the first; the layer then has no state
	suffix       string  // of the names of the weights
}

// NewS6 returns a selective state space.
func NewS6(cfg S6Config, opts ...Option) *S6 {
	return newMixer("S6", opts, []any{"channels", cfg.Channels}, func(l *S6, p *S6Parts, o build.Options) (Params, error) {
		p.channels, p.state, p.rank = cfg.Channels, build.OrDefault(cfg.State, 16), build.OrDefault(cfg.Rank, (cfg.Channels+15)/16)
		if err := build.Axes("state size", p.state, "rank of Δ", p.rank); err != nil {
			return nil, err
		}
		low, high, err := dtRange(cfg.DtMin, cfg.DtMax)
		if err != nil {
			return nil, err
		}
		scale := build.OrDefault(cfg.DtScale, 1)
		for _, f := range []struct {
			name  string
			value float64
		}{{"DtScale", scale}, {"DtFloor", cfg.DtFloor}} {
			if !(f.value >= 0) || math.IsInf(f.value, 1) {
				return nil, fmt.Errorf("%s is %v, want a finite number that is not negative", f.name, f.value)
			}
		}
		n := 0
		p.ALog = NewParam(build.Join(o.Name, "A"+cfg.suffix+"_log"), o.New(func() float64 {
			n = n%p.state + 1
			return math.Log(float64(n)) // S4D-Real: A_n = -n
		}, p.channels, p.state), false)
		p.D = NewParam(build.Join(o.Name, "D"+cfg.suffix), o.New(build.Constant(1), p.channels), false)
		p.XProj = projection(o, "x_proj"+cfg.suffix, p.channels, p.rank+2*p.state, false)
		p.DtProj = projection(o, "dt_proj"+cfg.suffix, p.rank, p.channels, true)
		p.cfg = op.ScanConfig{DeltaSoftplus: true, Reverse: cfg.Reverse}
		build.MixWith(l, p.channels, []Slot{{Name: "scan", Shape: tensor.Shape{p.channels, p.state}}}, p.mix)
		if cfg.Reverse {
			build.WithoutState(l, reversedState)
		}
		params, err := together(p.XProj, p.DtProj)
		if err != nil {
			return nil, err
		}
		if !o.Zeros {
			// The bias of dt_proj is the inverse softplus of steps whose logarithm is uniform. So softplus of the bias, the initial Δ without
			// its part from the input, is in the range.
			weight, bias := p.DtProj.Weight, p.DtProj.Bias
			weight.Value = o.New(build.Uniform(o.Rand(weight.Name), scale/math.Sqrt(float64(p.rank))), p.channels, p.rank)
			step := build.LogUniform(o.Rand(bias.Name), low, high)
			bias.Value = o.New(func() float64 { return build.InverseSoftplus(max(step(), cfg.DtFloor)) }, p.channels)
		}
		return append(Params{p.ALog, p.D}, params...), nil
	})
}

func (p *S6Parts) mix(s *build.Steps, x *G.Node) *G.Node { return p.scan(s, x, nil) }

// scan applies the layer to u (batch, length, channels), with a gate z in the shape of u, or nil.
func (p *S6Parts) scan(s *build.Steps, u, z *G.Node) *G.Node { return p.scanWith(s, u, z, false) }

// scanWith is scan that, with twice, adds the bias of dt_proj two times.
func (p *S6Parts) scanWith(s *build.Steps, u, z *G.Node, twice bool) *G.Node {
	w := weights(s, p.XProj.Weight, p.DtProj.Weight, p.DtProj.Bias, p.ALog, p.D)
	dtBC := split(s, s.Do(op.Linear(u, w[0], nil)), p.rank, p.state, p.state)
	dt, b, c := dtBC[0], dtBC[1], dtBC[2] // (batch, length, rank), (batch, length, state) twice
	var bias *G.Node
	if twice {
		bias = w[2]
	}
	delta := s.Do(op.Linear(dt, w[1], bias)) // (batch, length, channels), to which the scan adds the bias
	a := s.Do(op.NegExp(w[3]))               // (channels, state)
	in := op.ScanInputs{U: u, Delta: delta, A: a, B: b, C: c, D: w[4], Z: z, DeltaBias: w[2], InitialState: s.Take(), Start: s.Start}
	return build.Run(s, in, p.cfg, op.SelectiveScan, op.SelectiveScanWithState)
}

// Mixer returns an S6 of this configuration for a number of channels.
func (c S6Config) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewS6(c, opts...)
}
