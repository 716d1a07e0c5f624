package layer

import (
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Conv1D is a causal depthwise convolution over time. Its input and its result are (batch, length, channels). Each output of a
// channel is a weighted sum of the last width inputs of the channel. A SiLU follows unless NoSiLU is set. Weights and bias start
// uniform within ±1/√width.
//
// Its state has one slot: conv (width-1, channels), the last inputs. A convolution of width 1 has none.
type Conv1D = build.OverTime[Conv1DParts, Params]

// Conv1DParts is what a Conv1D is made of.
type Conv1DParts struct {
	Weight *Param // "weight" (channels, 1, width)
	Bias   *Param // "bias" (channels), or nil
	width  int
	cfg    op.CausalConvConfig
}

// Conv1DConfig configures a Conv1D.
type Conv1DConfig struct {
	Channels, Width int // required
	NoBias, NoSiLU  bool
	Reverse         bool // each output sees the steps after it instead of those before; the layer then has no state
}

// NewConv1D returns a convolution.
func NewConv1D(cfg Conv1DConfig, opts ...Option) *Conv1D {
	sizes := []any{"channels", cfg.Channels, "width", cfg.Width}
	return newMixer("convolution", opts, sizes, func(l *Conv1D, p *Conv1DParts, o build.Options) (params Params, err error) {
		p.width, p.cfg.SiLU = cfg.Width, !cfg.NoSiLU
		p.Weight, p.Bias, params = affine(o, !cfg.NoBias, 1/math.Sqrt(float64(cfg.Width)), cfg.Channels, 1, cfg.Width)
		var slots []Slot
		if cfg.Width > 1 {
			slots = []Slot{{Name: "conv", Shape: tensor.Shape{cfg.Width - 1, cfg.Channels}}}
		}
		if build.MixWith(l, cfg.Channels, slots, p.mix); cfg.Reverse {
			readFromEnd(l, cfg.Channels, p.mix)
		}
		return params, nil
	})
}

func (p *Conv1DParts) mix(s *build.Steps, x *G.Node) *G.Node {
	in := op.CausalConvInputs{X: x, Weight: p.Weight.Node(s.Graph), Start: s.Start}
	if p.Bias != nil {
		in.Bias = p.Bias.Node(s.Graph)
	}
	if p.width > 1 {
		in.Context = s.Take()
	}
	return build.Run(s, in, p.cfg, op.CausalConv, op.CausalConvWithContext)
}
