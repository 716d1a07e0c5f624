package vision

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// vssBlock is a block of VMamba and VM-UNet: x + SS2D(norm x), then, if it has an MLP, x + MLP(norm2 x).
type vssBlock struct {
	norm, norm2 *layer.LayerNorm
	mixer       norm       // layer.SS2D or attention
	mlp         *layer.MLP // or nil
	drop        drop
}

// vssNames are the names of a block's first norm and mixer.
type vssNames struct{ norm, mixer string }

// newVSSBlock returns a block. hidden is the number of channels inside of its MLP, 0 for none. With global, attention is in the place of SS2D.
func newVSSBlock(o build.Options, names vssNames, cfg layer.SS2DConfig, hidden int, global bool, d drop) (*vssBlock, layer.Params, error) {
	b := &vssBlock{norm: layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Channels}, o.Part(names.norm)...), drop: d}
	if global {
		heads := 1
		if cfg.Channels%32 == 0 {
			heads = cfg.Channels / 32
		}
		b.mixer = attention{layer.NewAttention(layer.AttentionConfig{Channels: cfg.Channels, Heads: heads, NoRotary: true}, o.Part(names.mixer)...)}
	} else {
		mixer := layer.NewSS2D(cfg, o.Part(names.mixer)...)
		normal(o, mixer.InProj, mixer.OutProj)
		b.mixer = mixer
	}
	parts := []build.Part[layer.Params]{b.norm, b.mixer}
	if hidden > 0 {
		b.norm2 = layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Channels}, o.Part("norm2")...)
		b.mlp = layer.NewMLP(layer.MLPConfig{Channels: cfg.Channels, Hidden: hidden}, o.Part("mlp")...)
		parts = append(parts, b.norm2, b.mlp)
		normal(o, b.mlp.FC1, b.mlp.FC2)
	}
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

// attention applies a layer.Attention to the cells of a map, row by row.
type attention struct{ *layer.Attention }

func (a attention) Apply(x *G.Node) (*G.Node, error) {
	if x == nil {
		return a.Attention.Apply(nil)
	}
	shape := x.Shape().Clone()
	s := build.Steps{Graph: x.Graph()}
	y := s.Mix(a.Attention, s.Do(op.Reshape(x, shape[0], shape[1]*shape[2], shape[3])))
	return s.Result(op.Reshape(y, shape...))
}
