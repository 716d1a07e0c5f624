package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// GatedMLP mixes the channels of each step: down_proj(f(gate_proj(x)) ⊙ up_proj(x)). x and the result are (batch, length, channels).
// With SiLU, the default f, it is SwiGLU; with op.GELU it is GeGLU (Shazeer, "GLU Variants Improve Transformer", equation 6). It has
// no state, and a start has no effect on it, since no step sees another one.
type GatedMLP = build.OverTime[GatedMLPParts, Params]

// GatedMLPParts is what a GatedMLP is made of.
type GatedMLPParts struct {
	GateProj, UpProj, DownProj *Linear // "gate_proj" and "up_proj" (hidden, channels), "down_proj" (channels, hidden)
	activation                 op.Activation
}

// GatedMLPConfig configures a GatedMLP. A zero field stands for its default.
type GatedMLPConfig struct {
	Channels int // required
	// Hidden is the number of channels inside. The default is 8/3 of Channels, rounded up to a multiple of 8; the MLP then has as many
	// weights as a plain MLP with 4·Channels inside.
	Hidden     int
	Activation op.Activation // f; op.SiLU
	Bias       bool          // the projections have a bias
}

// NewGatedMLP returns a gated MLP.
func NewGatedMLP(cfg GatedMLPConfig, opts ...Option) *GatedMLP {
	channels, hidden := cfg.Channels, cfg.Hidden
	if hidden == 0 && size.Axis(channels) == nil {
		hidden = (8*channels/3 + 7) / 8 * 8
	}
	sizes := []any{"channels", channels, "hidden", hidden}
	return newMixer("gated MLP", opts, sizes, func(l *GatedMLP, p *GatedMLPParts, o build.Options) (Params, error) {
		if p.activation = cfg.Activation; !p.activation.Known() {
			return nil, fmt.Errorf("the activation is %d, want op.SiLU, op.GELU, op.ReLU, op.Sigmoid or op.LeakyReLU", int(p.activation))
		}
		p.GateProj = projection(o, "gate_proj", channels, hidden, cfg.Bias)
		p.UpProj = projection(o, "up_proj", channels, hidden, cfg.Bias)
		p.DownProj = projection(o, "down_proj", hidden, channels, cfg.Bias)
		build.MixWith(l, channels, nil, p.mix)
		return together(p.GateProj, p.UpProj, p.DownProj)
	})
}

func (p *GatedMLPParts) mix(s *build.Steps, x *G.Node) *G.Node {
	gate := s.Do(p.GateProj.Apply(x))          // (batch, length, hidden)
	up := s.Do(p.UpProj.Apply(x))              // (batch, length, hidden)
	h := s.Do(op.Gate(gate, up, p.activation)) // (batch, length, hidden)
	return s.Do(p.DownProj.Apply(h))           // (batch, length, channels)
}

// Mixer returns a GatedMLP of this configuration for a number of channels.
func (c GatedMLPConfig) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewGatedMLP(c, opts...)
}
