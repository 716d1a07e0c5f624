package nn

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

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
