package layer

import (
	"fmt"
	"reflect"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// H3 is the layer of Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", algorithm 1. Its input
// and its result are (batch, length, channels). It has two state spaces, with a multiplicative gate after each.
//
//	q, k, v = q_proj(x), k_proj(x), v_proj(x);  k̄ = shift(k)
//	for each head:  S = inner(k̄ vᵀ);  o = qᵀ S
//	y = out_proj(o)
//
// The shift state space stores the last inputs unchanged. With a learned C it is a causal convolution, and the paper's D is part
// of the last weight of that convolution. The inner layer mixes each element of the products over time. Any Mixer can be the inner
// layer.
//
// Its state has the slots shift (shift-1, channels), the last keys, unless the shift is 1, and those of the inner layer, whose names
// begin with "inner.".
type H3 = build.OverTime[H3Parts, Params]

// H3Parts is what an H3 is made of.
type H3Parts struct {
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (channels, channels)
	Shift                        *Conv1D // "shift", without SiLU
	Inner                        Mixer   // "inner"
	channels, heads              int
}

// H3Config configures an H3. A zero field stands for its default.
type H3Config struct {
	Channels int   // required
	Inner    Inner // configuration of the inner layer, such as S6Config{}; required
	// Heads is the number of heads. The default is Channels: the products are element by element. With fewer heads, the inner layer has
	// Channels·Channels/Heads channels.
	Heads int
	Shift int  // keys that the shift reads, the current one included; 4
	Bias  bool // the projections have a bias
}

// NewH3 returns an H3.
func NewH3(cfg H3Config, opts ...Option) *H3 {
	return newMixer("H3", opts, []any{"channels", cfg.Channels}, func(l *H3, p *H3Parts, o build.Options) (Params, error) {
		n, shift := cfg.Channels, build.OrDefault(cfg.Shift, 4)
		p.channels, p.heads = n, build.OrDefault(cfg.Heads, n)
		if err := build.Axes("heads", p.heads, "shift", shift); err != nil {
			return nil, err
		}
		if n%p.heads != 0 {
			return nil, fmt.Errorf("heads is %d, want a number that divides the channels, %d", p.heads, n)
		}
		if isNil(cfg.Inner) {
			return nil, fmt.Errorf("the inner layer is missing, want its configuration, such as S6Config{}")
		}
		if p.Inner = cfg.Inner.Mixer(size.Product(n, n/p.heads), o.Part("inner")...); isNil(p.Inner) {
			return nil, fmt.Errorf("the configuration of the inner layer returns nil, want a layer")
		}
		if err := p.Inner.Err(); err != nil {
			return nil, fmt.Errorf("inner layer: %w", err)
		}
		p.QProj, p.KProj = projection(o, "q_proj", n, n, cfg.Bias), projection(o, "k_proj", n, n, cfg.Bias)
		p.VProj, p.OutProj = projection(o, "v_proj", n, n, cfg.Bias), projection(o, "out_proj", n, n, cfg.Bias)
		p.Shift = NewConv1D(Conv1DConfig{Channels: n, Width: shift, NoBias: true, NoSiLU: true}, o.Part("shift")...)
		var slots []Slot
		if shift > 1 {
			slots = []Slot{{Name: "shift", Shape: tensor.Shape{shift - 1, n}}}
		}
		for _, s := range p.Inner.Slots() {
			slots = append(slots, Slot{Name: "inner." + s.Name, Shape: s.Shape})
		}
		build.MixWith(l, n, slots, p.mix)
		return together(p.QProj, p.KProj, p.VProj, p.Shift, p.Inner, p.OutProj)
	})
}

func (p *H3Parts) mix(s *build.Steps, x *G.Node) *G.Node {
	q := s.Do(p.QProj.Apply(x))                            // (batch, length, channels)
	k := s.Mix(p.Shift, s.Do(p.KProj.Apply(x)))            // (batch, length, channels)
	v := s.Do(p.VProj.Apply(x))                            // (batch, length, channels)
	kv := s.Do(op.OuterProduct(k, v, p.heads))             // (batch, length, channels·channels/heads)
	o := s.Do(op.Contract(q, s.Mix(p.Inner, kv), p.heads)) // (batch, length, channels)
	return s.Do(p.OutProj.Apply(o))
}

// isNil reports whether v is nil, or a nil pointer.
func isNil(v any) bool {
	r := reflect.ValueOf(v)
	return !r.IsValid() || r.Kind() == reflect.Pointer && r.IsNil()
}

// Mixer returns an H3 of this configuration for a number of channels.
func (c H3Config) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewH3(c, opts...)
}
