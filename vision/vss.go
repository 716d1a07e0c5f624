package vision

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
)

// vssBlock is a block of VMamba and VM-UNet: x + SS2D(norm x), then, if it has an MLP, x + MLP(norm2 x).
type vssBlock struct {
	norm, norm2 *layer.LayerNorm
	mixer       *layer.SS2D
	mlp         *layer.MLP // or nil
	drop        drop
}

// vssNames are the names of a block's first norm and mixer.
type vssNames struct{ norm, mixer string }

// newVSSBlock returns a block. hidden is the number of channels inside of its MLP, 0 for none.
func newVSSBlock(o build.Options, names vssNames, cfg layer.SS2DConfig, hidden int, d drop) (*vssBlock, layer.Params, error) {
	b := &vssBlock{
		norm:  layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Channels}, o.Part(names.norm)...),
		mixer: layer.NewSS2D(cfg, o.Part(names.mixer)...), drop: d,
	}
	parts := []build.Part[layer.Params]{b.norm, b.mixer}
	if hidden > 0 {
		b.norm2 = layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Channels}, o.Part("norm2")...)
		b.mlp = layer.NewMLP(layer.MLPConfig{Channels: cfg.Channels, Hidden: hidden}, o.Part("mlp")...)
		parts = append(parts, b.norm2, b.mlp)
		normal(o, b.mlp.FC1, b.mlp.FC2)
	}
	normal(o, b.mixer.InProj, b.mixer.OutProj)
	params, err := build.Together(parts...)
	return b, params, err
}

func (b *vssBlock) apply(s *build.Steps, x *G.Node) *G.Node {
	x = b.drop.add(s, x, s.Do(b.mixer.Apply(s.Do(b.norm.Apply(x)))), 0)
	if b.mlp != nil {
		x = b.drop.add(s, x, s.Do(b.mlp.Apply(s.Do(b.norm2.Apply(x)))), 1)
	}
	return x
}
