package nn

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// newMixer returns the mixer of a kind that is not Mamba.
func newMixer(kind Kind, cfg Config, o build.Options) layer.Mixer {
	opts := o.Part("mixer")
	// DState counts real numbers; a complex mode of S4 has two.
	s4 := layer.S4Config{State: cfg.DState, DtMin: cfg.DtMin, DtMax: cfg.DtMax}
	s6 := layer.S6Config{State: cfg.DState, Rank: cfg.DtRank, DtMin: cfg.DtMin, DtMax: cfg.DtMax}
	h3 := layer.H3Config{Channels: cfg.DModel, Inner: s4, Heads: cfg.NHead, Shift: cfg.DConv, Bias: cfg.Bias}
	mlp := layer.GatedMLPConfig{Channels: cfg.DModel, Hidden: cfg.DHidden, Bias: cfg.Bias}
	switch kind {
	case S4:
		return newNoGate(cfg, o, s4, "s4", true)
	case S6:
		return newNoGate(cfg, o, s6, "s6", true)
	case LSTM:
		return newNoGate(cfg, o, layer.LSTMConfig{}, "lstm", false)
	case H3S6:
		h3.Inner = s6
		return layer.NewH3(h3, opts...)
	case H3:
		return layer.NewH3(h3, opts...)
	case MambaS4:
		m := cfg.mamba()
		m.S4 = true
		return layer.NewMamba(m, opts...)
	case GeGLU:
		mlp.Activation = op.GELU
		return layer.NewGatedMLP(mlp, opts...)
	case SwiGLU:
		return layer.NewGatedMLP(mlp, opts...)
	default:
		return layer.NewAttention(layer.AttentionConfig{Channels: cfg.DModel, Heads: cfg.NHead, Window: cfg.Window, Bias: cfg.Bias}, opts...)
	}
}

// mamba returns the configuration of the mixer of a Mamba block.
func (c Config) mamba() layer.MambaConfig {
	return layer.MambaConfig{
		Channels: c.DModel, Inner: c.inner(), State: c.DState, Width: c.DConv, Rank: c.DtRank,
		DtMin: c.DtMin, DtMax: c.DtMax, DtFloor: c.DtInitFloor, DtScale: c.DtScale, Depth: c.NLayer,
		Bias: c.Bias, NoConvBias: c.NoConvBias,
	}
}

// noGate is the architecture without a gate: out_proj(GELU(inner(x))) if the inner layer is linear, else out_proj(inner(x)).
type noGate struct {
	layer.Base
	inner   layer.Mixer
	outProj *layer.Linear
	linear  bool
}

func newNoGate(cfg Config, o build.Options, inner layer.Inner, name string, linear bool) *noGate {
	return build.New("nn: no gate", cfg.sizes(), o, nil, func(m *noGate, o build.Options) (layer.Params, error) {
		m.linear = linear
		m.inner = inner.Mixer(cfg.DModel, o.Part("mixer."+name)...)
		m.outProj = layer.NewLinear(layer.LinearConfig{In: cfg.DModel, Out: cfg.DModel, Bias: cfg.Bias}, o.Part("mixer.out_proj")...)
		build.OverTime(m, cfg.DModel, m.inner.Slots(), m.mix)
		return build.Together[layer.Params](m.inner, m.outProj)
	})
}

func (m *noGate) mix(s *build.Steps, x *G.Node) *G.Node {
	y := s.Mix(m.inner, x)
	if m.linear {
		y = s.Do(op.Activate(y, op.GELU))
	}
	return s.Do(m.outProj.Apply(y))
}

func (m *noGate) Slots() []layer.Slot { return build.Slots(m) }
func (m *noGate) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return build.Apply(m, x, opts)
}
func (m *noGate) ApplyWithState(x *G.Node, state layer.State, opts ...CallOption) (*G.Node, layer.State, error) {
	return build.ApplyWithState(m, x, state, opts)
}
