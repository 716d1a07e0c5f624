package nn

import (
	"fmt"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

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
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{Mamba, MambaS4, H3, H3S6, S4, S6, Attention, LSTM, SwiGLU, GeGLU}
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

// stackLayer is a layer of a stack.
type stackLayer interface {
	Params() layer.Params
	Err() error
	ZeroState(g *G.ExprGraph, batch int) LayerState
	shapes(batch int) (conv, scan tensor.Shape)
	apply(x *G.Node, state LayerState, withState bool, opts []CallOption) (y *G.Node, next LayerState, err error)
}

func newStackLayer(kind Kind, cfg Config, opts ...Option) stackLayer {
	cfg.Pattern = nil // a pattern is for the stack
	if kind == Mamba {
		return NewMambaBlock(cfg, opts...)
	}
	return newResidual(kind, cfg, opts...)
}

// residual is a layer of any kind but Mamba: a norm, a mixer and a residual connection.
type residual struct {
	layer.Base
	opts  layer.Options
	norm  *layer.RMSNorm
	mixer timeMixer
}

// timeMixer is the part of a layer between the norm and the residual connection.
type timeMixer interface {
	Params() layer.Params
	Err() error
	// shapes returns the shapes of the two states of a batch, nil for a state that the mixer does not have.
	shapes(batch int) (conv, scan tensor.Shape)
	mix(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error)
}

func newResidual(kind Kind, cfg Config, opts ...Option) *residual {
	cfg, o, err := collect(cfg, opts)
	r := layer.Build("nn: "+string(kind), cfg.sizes(), o, err, func(r *residual, o layer.Options) (layer.Params, error) {
		r.norm = layer.NewRMSNorm(cfg.DModel, o.Part("norm", layer.WithEps(cfg.NormEps))...)
		r.mixer = newTimeMixer(kind, cfg, o)
		return append(r.norm.Params(), r.mixer.Params()...), r.mixer.Err()
	})
	r.opts = o
	return r
}

// Err returns the error of an invalid configuration, or nil.
func (r *residual) Err() error { return layer.Err(r) }

// newTimeMixer returns the mixer of a kind that is not Mamba.
func newTimeMixer(kind Kind, cfg Config, o layer.Options) timeMixer {
	opts := func(more ...Option) []Option { return o.Part("mixer", more...) }
	// DState counts real numbers; a complex mode of S4 has two.
	inner := []Option{layer.WithStateSize(cfg.DState), layer.WithDtRange(cfg.DtMin, cfg.DtMax)}
	s6 := append(inner[:2:2], layer.WithDtRank(cfg.DtRank))
	switch kind {
	case S4:
		return newNoGate(cfg, o, layer.NewS4(cfg.DModel, o.Part("mixer.s4", inner...)...), true)
	case S6:
		return newNoGate(cfg, o, layer.NewS6(cfg.DModel, o.Part("mixer.s6", s6...)...), true)
	case LSTM:
		return newNoGate(cfg, o, layer.NewLSTM(cfg.DModel, o.Part("mixer.lstm")...), false)
	case H3:
		return h3{layer.NewH3(cfg.DModel, layer.NewS4, opts(append(inner, h3Options(cfg)...)...)...)}
	case H3S6:
		return h3{layer.NewH3(cfg.DModel, layer.NewS6, opts(append(inner, h3Options(cfg)...)...)...)}
	case MambaS4:
		return newMambaS4(cfg, o, inner)
	case SwiGLU:
		return mlp{layer.NewGatedMLP(cfg.DModel, cfg.DHidden, opts(layer.WithBias(cfg.Bias))...)}
	case GeGLU:
		return mlp{layer.NewGatedMLP(cfg.DModel, cfg.DHidden, opts(layer.WithBias(cfg.Bias), layer.WithActivation(op.GELU))...)}
	default:
		return newAttention(cfg, opts())
	}
}

func h3Options(cfg Config) []Option {
	o := []Option{layer.WithShift(cfg.DConv), layer.WithBias(cfg.Bias)}
	if cfg.NHead > 0 {
		o = append(o, layer.WithHeads(cfg.NHead))
	}
	return o
}

// ZeroState returns input nodes with zeros, as MambaBlock.ZeroState does.
func (r *residual) ZeroState(g *G.ExprGraph, batch int) LayerState {
	if r.Err() != nil {
		return LayerState{}
	}
	return zeroState(g, r.opts, batch, r.shapes)
}

func (r *residual) shapes(batch int) (conv, scan tensor.Shape) { return r.mixer.shapes(batch) }

func (r *residual) apply(x *G.Node, state LayerState, withState bool, opts []CallOption) (y *G.Node, next LayerState, err error) {
	if err = layer.Use(r, x); err != nil {
		return nil, next, err
	}
	if state.err != nil {
		return nil, next, state.err
	}
	conv, scan := r.shapes(1)
	for _, part := range []struct {
		name  string
		node  *G.Node
		shape tensor.Shape
	}{{"Conv", state.Conv, conv}, {"Scan", state.Scan, scan}} {
		if part.node != nil && part.shape == nil {
			return nil, next, fmt.Errorf("nn: the state has %s of shape %v, want none: the layer has no such state", part.name, part.node.Shape())
		}
	}
	c, err := callOf(opts)
	if err != nil {
		return nil, next, err
	}
	h, err := r.norm.Apply(x)
	if err != nil {
		return nil, next, err
	}
	if h, next, err = r.mixer.mix(h, state, withState, c.start); err != nil {
		return nil, next, err
	}
	y, err = op.Add(x, h)
	return y, next, err
}
