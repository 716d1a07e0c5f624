package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
)

// MambaStack is NLayer layers and a final norm, from (batch, length, d_model) to the same. The layers are Mamba blocks, or of the
// kinds that Config.Pattern names. Its weights are norm_f.weight and the weights of the layers, whose names begin with layers.0, layers.1, ….
type MambaStack struct {
	layer.Base
	cfg    Config
	opts   build.Options
	layers []layer.Mixer
	norm   *layer.RMSNorm
}

// NewMambaStack returns a stack with the paper's initial weights. If the configuration is invalid, or if its weights do not fit into
// memory, Err and every use of the stack return the error.
func NewMambaStack(cfg Config, opts ...Option) *MambaStack {
	cfg, o, err := collect(cfg, opts)
	s := build.New("nn: MambaStack", cfg.sizes(), o, err, func(s *MambaStack, o build.Options) (params layer.Params, err error) {
		kinds := max(len(cfg.Pattern), 1)
		each, repeats := o.Repeated(cfg.NLayer / kinds)
		for i := range repeats * kinds {
			kind := cfg.kind(i)
			l := newStackLayer(i, kind, cfg, each.Part(fmt.Sprintf("layers.%d", i))...)
			if err := l.Err(); err != nil {
				return nil, fmt.Errorf("nn: layer %d, %s: %w", i, kind, err)
			}
			s.layers = append(s.layers, l)
			params = append(params, l.Params()...)
		}
		s.norm = newNorm(cfg, o, "norm_f")
		return append(params, s.norm.Params()...), s.norm.Err()
	})
	s.cfg, s.opts = cfg, o
	return s
}

// Err returns the error of an invalid configuration, or nil.
func (s *MambaStack) Err() error { return build.Err(s) }

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
// values to it. It is an error if the stack is invalid, if g is nil, or if the batch is below 1 or does not fit into memory.
func (s *MambaStack) ZeroState(g *G.ExprGraph, batch int) (state State, err error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	state = make(State, len(s.layers))
	for i, l := range s.layers {
		if state[i], err = layer.ZeroState(l, g, batch); err != nil {
			return nil, err
		}
	}
	return state, nil
}

func (s *MambaStack) apply(x *G.Node, state State, withState bool, opts []CallOption) (y *G.Node, next State, err error) {
	if err := build.Use(s, x); err != nil {
		return nil, nil, err
	}
	switch shape, dt := x.Shape(), s.opts.Dtype; {
	case len(shape) != 3 || shape[2] != s.cfg.DModel:
		return nil, nil, fmt.Errorf("nn: x has shape %v, want (batch, length, d_model) = (any, any, %d)", shape, s.cfg.DModel)
	case x.Dtype() != dt:
		return nil, nil, fmt.Errorf("nn: x is of %v, want %v like the weights", x.Dtype(), dt)
	case state != nil && len(state) != len(s.layers):
		return nil, nil, fmt.Errorf("nn: the state has %d layers, want %d", len(state), len(s.layers))
	}
	group := groupOf(opts)
	if group != nil && (withState || state != nil) {
		return nil, nil, fmt.Errorf("nn: segments: the stack is applied with a state, want none: the ranks have the states of each other")
	}
	if state == nil {
		state = make(State, len(s.layers)) // of zero states
	}
	if withState {
		next = make(State, len(s.layers))
	}
	e := build.EdgeOf(s.Params().Place(), x)
	if x, err = e.In(x); err != nil {
		return nil, nil, err
	}
	for i, l := range s.layers {
		switch {
		case withState:
			x, next[i], err = l.ApplyWithState(x, state[i], opts...)
		case group != nil:
			x, err = segmented(l, x, group, opts)
		default:
			x, err = l.Apply(x, opts...)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("nn: layer %d: %w", i, err)
		}
	}
	if y, err = s.norm.Apply(x); err != nil {
		return nil, nil, err
	}
	if next, err = next.moved(e.Out); err != nil {
		return nil, nil, err
	}
	y, err = e.Out(y)
	return y, next, err
}

// Fwd is Apply in the form of golgi's layers.
func (s *MambaStack) Fwd(x G.Input) G.Result {
	return build.Lift(x, func(x *G.Node) (*G.Node, error) { return s.Apply(x) })
}
