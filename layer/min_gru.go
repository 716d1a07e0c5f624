package layer

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// MinGRU is a minimal gated recurrent unit (Feng et al., "Were RNNs All We Needed?", section 3.1). Its input and its result are (batch,
// length, channels):
//
//	z = W_z x,  h̃ = W_h x,  h(t) = (1 - σ(z)) h(t-1) + σ(z) h̃
//
// Its state has the slot h (channels).
type MinGRU = build.OverTime[MinGRUParts, Params]

// MinGRUParts is what a MinGRU is made of.
type MinGRUParts struct {
	Gate, Candidate *Linear // "gate" and "candidate" (channels, channels): W_z and W_h
}

// MinGRUConfig configures a MinGRU. A zero field stands for its default.
type MinGRUConfig struct {
	Channels int  // required
	Bias     bool // the projections have a bias
}

// NewMinGRU returns a minimal gated recurrent unit.
func NewMinGRU(cfg MinGRUConfig, opts ...Option) *MinGRU {
	channels := cfg.Channels
	return newMixer("minGRU", opts, []any{"channels", channels}, func(l *MinGRU, p *MinGRUParts, o build.Options) (Params, error) {
		p.Gate = projection(o, "gate", channels, channels, cfg.Bias)
		p.Candidate = projection(o, "candidate", channels, channels, cfg.Bias)
		build.MixWith(l, channels, []Slot{{Name: "h", Shape: tensor.Shape{channels}}}, p.mix)
		return together(p.Gate, p.Candidate)
	})
}

func (p *MinGRUParts) mix(s *build.Steps, x *G.Node) *G.Node {
	z := s.Do(p.Gate.Apply(x))
	candidate := s.Do(p.Candidate.Apply(x))
	y, h, err := op.MinGRU(op.MinGRUInputs{Z: z, Candidate: candidate, H: s.Take(), Start: s.Start})
	s.Put(h)
	return s.Do(y, err)
}

// Mixer returns a MinGRU of this configuration for a number of channels.
func (c MinGRUConfig) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewMinGRU(c, opts...)
}
