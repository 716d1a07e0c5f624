package nn

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// noGate is the architecture without a gate: out_proj(GELU(inner(x))) if the inner layer is linear, else out_proj(inner(x)).
type noGate = build.OverTime[noGateParts, layer.Params]

type noGateParts struct {
	inner   layer.Mixer
	outProj *layer.Linear
	linear  bool
}

func newNoGate(cfg Config, o build.Options, inner layer.Inner, name string, linear bool) *noGate {
	return build.New("nn: no gate", cfg.sizes(), o, nil, func(m *noGate, o build.Options) (layer.Params, error) {
		p := &m.Parts
		p.inner, p.linear = inner.Mixer(cfg.DModel, o.Part("mixer."+name)...), linear
		p.outProj = layer.NewLinear(layer.LinearConfig{In: cfg.DModel, Out: cfg.DModel, Bias: cfg.Bias}, o.Part("mixer.out_proj")...)
		build.MixWith(m, cfg.DModel, p.inner.Slots(), p.mix)
		return build.Together[layer.Params](p.inner, p.outProj)
	})
}

func (p *noGateParts) mix(s *build.Steps, x *G.Node) *G.Node {
	y := s.Mix(p.inner, x)
	if p.linear {
		y = s.Do(op.Activate(y, op.GELU))
	}
	return s.Do(p.outProj.Apply(y))
}
