package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// Mamba is the mixer of a Mamba block, without the block's norm and residual connection; mamba_ssm calls it Mamba (Gu and Dao, "Mamba:
// Linear-Time Sequence Modeling with Selective State Spaces", figure 3 and section 3.4). Its input and its result are (batch, length,
// channels).
//
//	x → in_proj → split u, z;  u → causal convolution, SiLU → S6, with the gate z → out_proj
//
// With S4, the core is a time-invariant state space instead of S6, and the gate follows it (section 4.6.1).
//
// The layer is built from separate operators, and is the definition of the block. nn.MambaBlock computes norm, mixer and residual
// connection in one operator, in less than half of the time and a third of the memory.
//
// With Reverse, the layer reads each sequence from its end to its beginning. With Bidirectional, it does both: a second convolution and a
// second S6 read the same u from the end, and the gated results are added before out_proj (Zhu et al., "Vision Mamba", algorithm 1, whose
// code names the second weights "conv1d_b", "A_b_log", "D_b", "x_proj_b" and "dt_proj_b", as here). In both cases it has no state. With Slices,
// a third convolution and a third S6 ("conv1d_s", "A_s_log", …) read the same u in the order of op.Slices, and their gated result is added too
// (Xing et al., "SegMamba", section 2.2).
//
// The weights have the names of the Hugging Face layout. Its state has the slots conv (width-1, inner), unless the width is 1, and
// scan (inner, state).
type Mamba = build.OverTime[MambaParts, Params]

// MambaParts is what a Mamba is made of.
type MambaParts struct {
	InProj, OutProj *Linear // "in_proj" (2·inner, channels), "out_proj" (channels, inner)
	Conv            *Conv1D // "conv1d"
	S6              *S6     // its weights have no prefix; nil with an S4
	S4              *S4     // "s4"; nil with an S6
	ConvB           *Conv1D // "conv1d_b"; nil unless Bidirectional
	S6B             *S6     // nil unless Bidirectional
	ConvS           *Conv1D // "conv1d_s"; nil without Slices
	S6S             *S6     // nil without Slices
	Gamma           *Param  // "gamma" (channels); nil without LayerScale
	average         bool
	slices          int
	inner           int
}

// MambaConfig configures a Mamba. A zero field stands for its default.
type MambaConfig struct {
	Channels int // required
	Inner    int // channels of convolution and core; 2·Channels
	State    int // N, the size of the state of each channel; 16
	Width    int // of the causal convolution; 4
	Rank     int // of the projection that computes Δ in S6; Channels/16, rounded up

	DtMin, DtMax float64 // range of the initial steps Δ; 0.001 to 0.1
	DtFloor      float64 // the smallest initial step of S6; 1e-4
	DtScale      float64 // scale of the initial weight of dt_proj of S6; 1
	Depth        int     // layers of the model, by whose root the initial out_proj of S6 is divided; 1

	Bias       bool // in_proj and out_proj have a bias
	NoConvBias bool // the convolution has no bias
	S4         bool // the core is S4 instead of S6

	Reverse       bool // each step sees those after it instead of those before
	Bidirectional bool // each step sees all steps; not with Reverse or S4
	Average       bool // with Bidirectional: half of the sum of the two directions, as in Vim
	// Slices adds, with Bidirectional, a third pass over so many slices of the sequence; 0 for none. The number must divide the length. The call
	// option WithSlices gives another number.
	Slices     int
	LayerScale float64 // initial value of a weight for each channel, by which the result is multiplied; 0 for none
}

// NewMamba returns the mixer of a Mamba block.
func NewMamba(cfg MambaConfig, opts ...Option) *Mamba {
	cfg.Inner = build.OrDefault(cfg.Inner, size.Product(2, cfg.Channels))
	cfg.State, cfg.Width = build.OrDefault(cfg.State, 16), build.OrDefault(cfg.Width, 4)
	cfg.Rank, cfg.Depth = build.OrDefault(cfg.Rank, (cfg.Channels+15)/16), build.OrDefault(cfg.Depth, 1)
	sizes := []any{"channels", cfg.Channels, "inner", cfg.Inner, "state", cfg.State, "width", cfg.Width, "rank", cfg.Rank}
	return newMixer("Mamba", opts, sizes, func(l *Mamba, p *MambaParts, o build.Options) (params Params, err error) {
		if cfg.Depth < 1 {
			return nil, fmt.Errorf("depth is %d, want at least 1, or 0 for 1", cfg.Depth)
		}
		if cfg.Bidirectional && (cfg.Reverse || cfg.S4) {
			return nil, fmt.Errorf("the layer is bidirectional and has Reverse or S4, want neither")
		}
		if cfg.Slices < 0 || !cfg.Bidirectional && (cfg.Slices > 0 || cfg.Average) {
			return nil, fmt.Errorf("field Slices is %d and Average %t, want 0 and false, or Bidirectional with a number that is not negative", cfg.Slices, cfg.Average)
		}
		if math.IsNaN(cfg.LayerScale) || math.IsInf(cfg.LayerScale, 0) {
			return nil, fmt.Errorf("field LayerScale is %v, want a finite number", cfg.LayerScale)
		}
		n := cfg.Inner
		p.inner, p.average, p.slices = n, cfg.Average, cfg.Slices
		p.InProj, p.OutProj = projection(o, "in_proj", cfg.Channels, 2*n, cfg.Bias), projection(o, "out_proj", n, cfg.Channels, cfg.Bias)
		p.Conv = NewConv1D(Conv1DConfig{Channels: n, Width: cfg.Width, NoBias: cfg.NoConvBias}, o.Part("conv1d")...)
		var core Mixer
		if cfg.S4 {
			p.S4 = NewS4(S4Config{Channels: n, State: cfg.State, DtMin: cfg.DtMin, DtMax: cfg.DtMax}, o.Part("s4")...)
			core, params = p.S4, nil
		} else {
			s6 := S6Config{
				Channels: n, State: cfg.State, Rank: cfg.Rank,
				DtMin: cfg.DtMin, DtMax: cfg.DtMax, DtFloor: build.OrDefault(cfg.DtFloor, 1e-4), DtScale: cfg.DtScale,
			}
			p.S6 = NewS6(s6, o.Part("")...)
			core = p.S6
			if cfg.Bidirectional {
				p.ConvB = NewConv1D(Conv1DConfig{Channels: n, Width: cfg.Width, NoBias: cfg.NoConvBias, Reverse: true}, o.Part("conv1d_b")...)
				s6.Reverse, s6.suffix = true, "_b"
				p.S6B = NewS6(s6, o.Part("")...)
			}
			if cfg.Slices > 0 {
				p.ConvS = NewConv1D(Conv1DConfig{Channels: n, Width: cfg.Width, NoBias: cfg.NoConvBias}, o.Part("conv1d_s")...)
				s6.Reverse, s6.suffix = false, "_s"
				p.S6S = NewS6(s6, o.Part("")...)
			}
		}
		build.MixWith(l, cfg.Channels, append(p.Conv.Slots(), core.Slots()...), p.mix)
		switch {
		case cfg.Reverse:
			readFromEnd(l, cfg.Channels, p.mix)
		case cfg.Bidirectional:
			build.WithoutState(l, reversedState)
		}
		var scale Params
		if cfg.LayerScale != 0 {
			p.Gamma = NewParam(build.Join(o.Name, "gamma"), o.New(build.Constant(cfg.LayerScale), cfg.Channels), false)
			scale = Params{p.Gamma}
		}
		if params, err = together(p.InProj, p.Conv, core, p.OutProj); err != nil || cfg.S4 {
			return append(params, scale...), err
		}
		// Every layer adds to the residual stream. Dividing by √Depth keeps the initial size of the sum independent of the depth.
		if out := p.OutProj.Weight; !o.Zeros {
			bound := 1 / math.Sqrt(float64(n)) / math.Sqrt(float64(cfg.Depth))
			out.Value = o.New(build.Uniform(o.Rand(out.Name), bound), cfg.Channels, n)
		}
		// The order of the Hugging Face layout begins with A_log and D.
		first := len(p.InProj.Params()) + len(p.Conv.Params())
		params = append(append(Params{p.S6.Parts.ALog, p.S6.Parts.D}, params[:first]...), params[first+2:]...)
		var more []build.Part[Params]
		if cfg.Bidirectional {
			more = append(more, p.ConvB, p.S6B)
		}
		if cfg.Slices > 0 {
			more = append(more, p.ConvS, p.S6S)
		}
		rest, err := together(more...)
		return append(append(params, rest...), scale...), err
	})
}

func (p *MambaParts) mix(s *build.Steps, x *G.Node) *G.Node {
	xz := s.Do(p.InProj.Apply(x)) // (batch, length, 2·inner)
	var y *G.Node                 // (batch, length, inner)
	if p.S6B != nil {
		y = p.bidirectional(s, xz)
	} else {
		parts := split(s, xz, p.inner, p.inner)
		u, z := s.Mix(p.Conv, parts[0]), parts[1] // (batch, length, inner)
		if p.S6 != nil {
			y = p.S6.Parts.scan(s, u, z)
		} else {
			y = s.Do(op.Gate(z, s.Mix(p.S4, u), op.SiLU))
		}
	}
	y = s.Do(p.OutProj.Apply(y)) // (batch, length, channels)
	if p.Gamma != nil {
		y = s.Do(op.Scale(y, p.Gamma.Node(s.Graph), 1))
	}
	return y
}

// bidirectional returns the gated results of both directions, and of the pass over slices, added.
func (p *MambaParts) bidirectional(s *build.Steps, xz *G.Node) *G.Node {
	direction := func(conv *Conv1D, core *S6) op.DirectionWeights {
		c, k := conv.Parts, core.Parts
		w := weights(s, c.Weight, c.Bias, k.XProj.Weight, k.DtProj.Weight, k.DtProj.Bias, k.ALog, k.D)
		return op.DirectionWeights{Conv: w[0], ConvBias: w[1], XProj: w[2], DtProj: w[3], DtBias: w[4], ALog: w[5], D: w[6]}
	}
	in := op.BidirectionalInputs{XZ: xz, Forward: direction(p.Conv, p.S6), Backward: direction(p.ConvB, p.S6B), Start: s.Start}
	y := s.Do(op.BidirectionalMamba(in, op.BidirectionalConfig{Average: p.average && p.S6S == nil}))
	if p.S6S == nil {
		return y
	}
	y = s.Do(op.Add(y, p.sliced(s, xz)))
	if p.average {
		y = s.Do(op.Scale(y, nil, 0.5))
	}
	return y
}

// sliced returns the gated result of the pass over slices.
func (p *MambaParts) sliced(s *build.Steps, xz *G.Node) *G.Node {
	if xz == nil {
		return nil
	}
	if s.Start != nil {
		return s.Do(nil, fmt.Errorf("start is given, want none for a layer with Slices: a slice would cross the boundaries between sequences"))
	}
	parts := split(s, xz, p.inner, p.inner)
	x, z := parts[0], parts[1]
	if x == nil {
		return nil
	}
	order := op.Slices(build.OrDefault(s.Slices, p.slices), x.Shape()[1])
	u := s.Mix(p.ConvS, s.Do(op.Reorder(x, order)))
	y := s.Do(op.Reorder(p.S6S.Parts.scan(s, u, nil), order.Inverse()))
	return s.Do(op.Gate(z, y, op.SiLU))
}

// WithSlices sets the number of slices of a Mamba with Slices for one application.
func WithSlices(n int) CallOption {
	return func(c *build.Call) {
		if c.Slices = n; n < 1 {
			c.Err = fmt.Errorf("slices are %d, want at least 1", n)
		}
	}
}

// Mixer returns a Mamba of this configuration for a number of channels.
func (c MambaConfig) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewMamba(c, opts...)
}

// Weights returns the weights of a layer with S6 inside, by what they are in a Mamba block. Those that the layer does not have, and Norm,
// are nil. The weights of an invalid layer, or of one with another core, are all nil.
func (p *MambaParts) Weights() (w op.BlockWeights[*Param]) {
	if p.S6 == nil {
		return w
	}
	conv, core := p.Conv.Parts, p.S6.Parts
	w.InProj, w.InBias, w.Conv, w.ConvBias = p.InProj.Weight, p.InProj.Bias, conv.Weight, conv.Bias
	w.ALog, w.D, w.XProj, w.DtProj, w.DtBias = core.ALog, core.D, core.XProj.Weight, core.DtProj.Weight, core.DtProj.Bias
	w.OutProj, w.OutBias = p.OutProj.Weight, p.OutProj.Bias
	return w
}
