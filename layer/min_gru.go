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
type MinGRU struct {
	Base
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
	return newLayer("minGRU", opts, []any{"channels", channels}, func(l *MinGRU, o build.Options) (Params, error) {
		l.Gate = projection(o, "gate", channels, channels, cfg.Bias)
		l.Candidate = projection(o, "candidate", channels, channels, cfg.Bias)
		build.OverTime(l, channels, []Slot{{Name: "h", Shape: tensor.Shape{channels}}}, l.mix)
		return together(l.Gate, l.Candidate)
	})
}

func (l *MinGRU) mix(s *build.Steps, x *G.Node) *G.Node {
	z := s.Do(l.Gate.Apply(x))
	candidate := s.Do(l.Candidate.Apply(x))
	y, h, err := op.MinGRU(op.MinGRUInputs{Z: z, Candidate: candidate, H: s.Take(), Start: s.Start})
	s.Put(h)
	return s.Do(y, err)
}

// Mixer returns a MinGRU of this configuration for a number of channels.
func (c MinGRUConfig) Mixer(channels int, opts ...Option) Mixer {
	c.Channels = channels
	return NewMinGRU(c, opts...)
}

// Err returns what is wrong with the layer, or nil.
func (l *MinGRU) Err() error { return build.Err(l) }

// Slots returns the parts of the layer's state.
func (l *MinGRU) Slots() []Slot { return build.Slots(l) }

// Apply applies the layer to whole sequences, as Mixer has it.
func (l *MinGRU) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return build.Apply(l, x, opts)
}

// ApplyWithState continues from a state, as Mixer has it.
func (l *MinGRU) ApplyWithState(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error) {
	return build.ApplyWithState(l, x, state, opts)
}

// Fwd is Apply in the form of golgi's layers.
func (l *MinGRU) Fwd(x G.Input) G.Result { return build.Fwd(l, x) }

var _ Mixer = (*MinGRU)(nil)
