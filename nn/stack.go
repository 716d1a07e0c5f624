package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
)

// MambaStack is NLayer layers and a final norm, from (batch, length, d_model) to the same. The layers are Mamba blocks, or of the
// kinds that Config.Pattern names. Its weights are norm_f.weight and the weights of the layers, whose names begin with layers.0, layers.1, ….
type MambaStack struct {
	layer.Base
	cfg    Config
	opts   layer.Options
	layers []stackLayer
	norm   *layer.RMSNorm
}

// NewMambaStack returns a stack with the paper's initial weights. If the configuration is invalid, or if its weights do not fit into
// memory, Err and every use of the stack return the error.
func NewMambaStack(cfg Config, opts ...Option) *MambaStack {
	cfg, o, err := collect(cfg, opts)
	s := layer.Build("nn: MambaStack", cfg.sizes(), o, err, func(s *MambaStack, o layer.Options) (params layer.Params, err error) {
		kinds := max(len(cfg.Pattern), 1)
		each, repeats := o.Repeated(cfg.NLayer / kinds)
		for i := range repeats * kinds {
			kind := cfg.kind(i)
			l := newStackLayer(kind, cfg, each.Part(fmt.Sprintf("layers.%d", i), o.Placed())...)
			if err := l.Err(); err != nil {
				return nil, fmt.Errorf("nn: layer %d, %s: %w", i, kind, err)
			}
			s.layers = append(s.layers, l)
			params = append(params, l.Params()...)
		}
		s.norm = layer.NewRMSNorm(cfg.DModel, o.Part("norm_f", layer.WithEps(cfg.NormEps))...)
		return append(params, s.norm.Params()...), place(o, s.norm.Params())
	})
	s.cfg, s.opts = cfg, o
	return s
}

// Err returns the error of an invalid configuration, or nil.
func (s *MambaStack) Err() error { return layer.Err(s) }

// Config returns the configuration with its defaults filled in.
func (s *MambaStack) Config() Config { return s.cfg }

// Blocks returns the layers that are Mamba blocks, first to last.
func (s *MambaStack) Blocks() (blocks []*MambaBlock) {
	for _, l := range s.layers {
		if b, ok := l.(*MambaBlock); ok {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// Apply applies the stack to x (batch, length, d_model).
func (s *MambaStack) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	y, _, err := s.apply(x, nil, false, opts)
	return y, err
}

// ApplyWithState continues from a state, nil for the beginning. It returns the result and the state after x. Both are
// differentiable: feeding a sequence in pieces, or step by step, gives the same results and gradients as feeding it whole.
func (s *MambaStack) ApplyWithState(x *G.Node, state State, opts ...CallOption) (y *G.Node, next State, err error) {
	return s.apply(x, state, true, opts)
}

// ZeroState returns input nodes with zeros, the state before a sequence. To continue from the state that a run returned, set their
// values to it. The state of an invalid stack is empty. If the batch is below 1 or does not fit into memory, or if g is nil, the
// state is an error wherever it is used.
func (s *MambaStack) ZeroState(g *G.ExprGraph, batch int) State {
	if s.Err() != nil {
		return nil
	}
	state := make(State, len(s.layers))
	for i, l := range s.layers {
		state[i] = l.ZeroState(g, batch)
	}
	return state
}

func (s *MambaStack) apply(x *G.Node, state State, withState bool, opts []CallOption) (y *G.Node, next State, err error) {
	if err := layer.Use(s, x); err != nil {
		return nil, nil, err
	}
	if err := s.cfg.fits(x, s.opts.Dtype); err != nil {
		return nil, nil, err
	}
	if state != nil && len(state) != len(s.layers) {
		return nil, nil, fmt.Errorf("nn: the state has %d layers, want %d", len(state), len(s.layers))
	}
	if withState {
		next = make(State, len(s.layers))
	}
	e := edgeOf(s.opts, x)
	if x, err = e.in(x); err != nil {
		return nil, nil, err
	}
	for i, l := range s.layers {
		var after LayerState
		if x, after, err = l.apply(x, state.layer(i), withState, opts); err != nil {
			return nil, nil, fmt.Errorf("nn: layer %d: %w", i, err)
		}
		if withState {
			next[i] = after
		}
	}
	if y, err = s.norm.Apply(x); err != nil {
		return nil, nil, err
	}
	if next, err = next.moved(e.out); err != nil {
		return nil, nil, err
	}
	y, err = e.out(y)
	return y, next, err
}

// Fwd is Apply in the form of golgi's layers.
func (s *MambaStack) Fwd(x G.Input) G.Result {
	return layer.Lift(x, func(x *G.Node) (*G.Node, error) { return s.Apply(x) })
}
