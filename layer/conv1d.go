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
type Conv1D struct {
	Base
	Weight *Param // "weight" (channels, 1, width)
	Bias   *Param // "bias" (channels), or nil
	width  int
	cfg    op.ConvConfig
}

// Conv1DConfig configures a Conv1D.
type Conv1DConfig struct {
	Channels, Width int // required
	NoBias, NoSiLU  bool
	Reverse         bool // each output sees the steps after it instead of those before; the layer then has no state
}

// NewConv1D returns a convolution.
func NewConv1D(cfg Conv1DConfig, opts ...Option) *Conv1D {
	return newLayer("convolution", opts, []any{"channels", cfg.Channels, "width", cfg.Width}, func(l *Conv1D, o build.Options) (params Params, err error) {
		l.width, l.cfg.SiLU = cfg.Width, !cfg.NoSiLU
		l.Weight, l.Bias, params = affine(o, !cfg.NoBias, 1/math.Sqrt(float64(cfg.Width)), cfg.Channels, 1, cfg.Width)
		var slots []Slot
		if cfg.Width > 1 {
			slots = []Slot{{Name: "conv", Shape: tensor.Shape{cfg.Width - 1, cfg.Channels}}}
		}
		if build.OverTime(l, cfg.Channels, slots, l.mix); cfg.Reverse {
			readFromEnd(l)
		}
		return params, nil
	})
}

func (l *Conv1D) mix(s *build.Steps, x *G.Node) *G.Node {
	in := op.ConvInputs{X: x, Weight: l.Weight.Node(s.Graph), Start: s.Start}
	if l.Bias != nil {
		in.Bias = l.Bias.Node(s.Graph)
	}
	if l.width > 1 {
		in.Context = s.Take()
	}
	return build.Run(s, in, l.cfg, op.CausalConv, op.CausalConvWithContext)
}

// Err returns what is wrong with the layer, or nil.
func (l *Conv1D) Err() error { return build.Err(l) }

// Slots returns the parts of the layer's state.
func (l *Conv1D) Slots() []Slot { return build.Slots(l) }

// Apply applies the layer to whole sequences, as Mixer has it.
func (l *Conv1D) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return build.Apply(l, x, opts)
}

// ApplyWithState continues from a state, as Mixer has it.
func (l *Conv1D) ApplyWithState(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error) {
	return build.ApplyWithState(l, x, state, opts)
}

// Fwd is Apply in the form of golgi's layers.
func (l *Conv1D) Fwd(x G.Input) G.Result { return build.Fwd(l, x) }

var _ Mixer = (*Conv1D)(nil)
