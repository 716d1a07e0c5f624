package nn

import (
	"fmt"
	"strings"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// Kind is the kind of a layer of a stack. Each layer computes y = x + mixer(norm(x)). The first six kinds are the rows of the
// Mamba paper's table of architectures (section 4.6.1): three architectures, each with a time-invariant state space (S4) or a
// selective one (S6) inside.
type Kind string

// The kinds.
const (
	Mamba     Kind = "mamba"     // a MambaBlock: the Mamba architecture with S6 inside; the default
	MambaS4   Kind = "mamba-s4"  // the Mamba architecture with S4 inside
	H3        Kind = "h3"        // layer.H3 with S4 inside
	H3S6      Kind = "h3-s6"     // layer.H3 with S6 inside
	S4        Kind = "s4"        // no gate: layer.S4, GELU, a linear layer
	S6        Kind = "s6"        // no gate: layer.S6, GELU, a linear layer
	Attention Kind = "attention" // layer.Attention
	LSTM      Kind = "lstm"      // layer.LSTM, a linear layer; a recurrence without a state space, for comparison
	SwiGLU    Kind = "swiglu"    // layer.GatedMLP with SiLU
	GeGLU     Kind = "geglu"     // layer.GatedMLP with GELU
	MinGRU    Kind = "mingru"    // layer.MinGRU, a linear layer
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{Mamba, MambaS4, H3, H3S6, S4, S6, Attention, LSTM, SwiGLU, GeGLU, MinGRU}
}

// ParseKinds reads a pattern: the names of kinds, separated by commas, as in "mamba,mamba,attention,swiglu".
func ParseKinds(text string) ([]Kind, error) {
	var pattern []Kind
	for name := range strings.SplitSeq(text, ",") {
		k := Kind(strings.TrimSpace(name))
		if err := k.check(); err != nil {
			return nil, err
		}
		pattern = append(pattern, k)
	}
	return pattern, nil
}

func (k Kind) check() error {
	var names []string
	for _, known := range Kinds() {
		if k == known {
			return nil
		}
		names = append(names, string(known))
	}
	return fmt.Errorf("nn: %q is no kind of layer, want one of %s", string(k), strings.Join(names, ", "))
}

// kind returns the kind of layer i of a stack.
func (c Config) kind(i int) Kind {
	if len(c.Pattern) == 0 {
		return Mamba
	}
	return c.Pattern[i%len(c.Pattern)]
}

// newStackLayer returns layer i of a stack.
func newStackLayer(i int, kind Kind, cfg Config, opts ...Option) layer.Mixer {
	cfg.Pattern = nil // a pattern is for the stack
	if kind == Mamba {
		b := NewMambaBlock(cfg, opts...)
		b.drop.layer = i
		return b
	}
	r := newResidual(kind, cfg, opts...)
	r.Parts.drop.layer = i
	return r
}

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
	case MinGRU:
		return newNoGate(cfg, o, layer.MinGRUConfig{Bias: cfg.Bias}, "mingru", false)
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

// residual is a layer of any kind but Mamba: a norm, a mixer and a residual connection.
type residual = build.OverTime[residualParts, layer.Params]

type residualParts struct {
	norm  *layer.RMSNorm
	mixer layer.Mixer
	drop  drop
}

func newResidual(kind Kind, cfg Config, opts ...Option) *residual {
	cfg, o, err := collect(cfg, opts)
	return build.New("nn: "+string(kind), cfg.sizes(), o, err, func(r *residual, o build.Options) (layer.Params, error) {
		p := &r.Parts
		p.norm, p.mixer, p.drop = newNorm(cfg, o, "norm"), newMixer(kind, cfg, o), drop{cfg.Dropout, cfg.DropPath, o.Seed, 0}
		build.MixWith(r, cfg.DModel, p.mixer.Slots(), p.mix)
		return build.Together[layer.Params](p.norm, p.mixer)
	})
}

func (p *residualParts) mix(s *build.Steps, x *G.Node) *G.Node {
	return p.drop.add(s, x, s.Mix(p.mixer, s.Do(p.norm.Apply(x))))
}

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
