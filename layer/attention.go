package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// Attention is causal attention with several heads and rotary positions. Its input and its result are (batch, length, channels). It
// projects its input to queries, keys and values, applies op.Attention, and projects the result. Each step sees all steps before
// it, so the time grows with the square of the length.
//
// With a window, each step sees only the last steps. The layer then has a state of one slot: window (window-1, 2·channels + 1), for
// each of these steps its key, its value, and 1 if there was a step. Without a window, it is an error to apply the layer with a
// state, because a state of fixed size cannot hold all keys and values.
type Attention = build.OverTime[AttentionParts, Params]

// AttentionParts is what an Attention is made of.
type AttentionParts struct {
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (channels, channels)
	cfg                          op.AttentionConfig
}

// AttentionConfig configures an Attention. A zero field stands for its default.
type AttentionConfig struct {
	Channels int // required
	// Heads is the number of heads. The default is Channels/64, at least 1, or the next smaller number that divides Channels into heads
	// of even dimension.
	Heads    int
	Window   int     // steps that each step sees, itself included, at least 2; 0 for all
	Rotary   float64 // base of the rotary positions; 10000
	NoRotary bool    // no positions
	Bias     bool    // the projections have a bias
}

// NewAttention returns attention.
func NewAttention(cfg AttentionConfig, opts ...Option) *Attention {
	return newMixer("attention", opts, []any{"channels", cfg.Channels}, func(l *Attention, p *AttentionParts, o build.Options) (Params, error) {
		n := cfg.Channels
		p.cfg = op.AttentionConfig{Heads: build.OrDefault(cfg.Heads, defaultHeads(n)), Window: cfg.Window, Rotary: build.OrDefault(cfg.Rotary, 10000)}
		if cfg.NoRotary {
			p.cfg.Rotary = 0
		}
		switch h := p.cfg.Heads; {
		case h < 1 || n%h != 0:
			return nil, fmt.Errorf("heads is %d, want a number that divides the channels, %d", h, n)
		case cfg.NoRotary && cfg.Rotary != 0:
			return nil, fmt.Errorf("the rotary base is %v with NoRotary, want 0", cfg.Rotary)
		case !cfg.NoRotary && !(p.cfg.Rotary > 1 && !math.IsInf(p.cfg.Rotary, 1)):
			return nil, fmt.Errorf("the rotary base is %v, want a number above 1, or 0 for the default", cfg.Rotary)
		case !cfg.NoRotary && n/h%2 != 0:
			return nil, fmt.Errorf("rotary positions need an even head dimension, and %d/%d is %d", n, h, n/h)
		case cfg.Window < 0 || cfg.Window == 1:
			return nil, fmt.Errorf("the window is %d, want at least 2, or 0 for none", cfg.Window)
		}
		if err := size.Of(o.Dtype.Size(), cfg.Window, 2*n+1).Fits("the keys and values of a sequence"); err != nil {
			return nil, fmt.Errorf("the window is %d: %w", cfg.Window, err)
		}
		p.QProj, p.KProj = projection(o, "q_proj", n, n, cfg.Bias), projection(o, "k_proj", n, n, cfg.Bias)
		p.VProj, p.OutProj = projection(o, "v_proj", n, n, cfg.Bias), projection(o, "out_proj", n, n, cfg.Bias)
		build.MixWith(l, n, []Slot{{Name: "window", Shape: tensor.Shape{cfg.Window - 1, 2*n + 1}}}, p.mix)
		if cfg.Window == 0 {
			build.WithoutState(l, "attention without a window has a state that would grow with every step, want a Window of at least 2 (in package nn, Config.Window)")
		}
		return together(p.QProj, p.KProj, p.VProj, p.OutProj)
	})
}

func defaultHeads(channels int) int {
	heads := max(channels/64, 1)
	for heads > 1 && channels%(2*heads) != 0 {
		heads--
	}
	return heads
}

func (p *AttentionParts) mix(s *build.Steps, x *G.Node) *G.Node {
	in := op.AttentionInputs{
		Q: s.Do(p.QProj.Apply(x)), K: s.Do(p.KProj.Apply(x)), V: s.Do(p.VProj.Apply(x)), // (batch, length, channels)
		Context: s.Take(), Start: s.Start,
	}
	return s.Do(p.OutProj.Apply(build.Run(s, in, p.cfg, op.Attention, op.AttentionWithContext)))
}

// Mixer returns an Attention of this configuration for a number of channels.
func (c AttentionConfig) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewAttention(c, opts...)
}
