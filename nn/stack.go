package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
)

// MambaStack is NLayer layers and a final norm, from (batch, length, d_model) to the same. The layers are Mamba blocks, or what
// Config.Pattern says. Its weights are those of the layers, behind layers.0, layers.1, …, and norm_f.weight.
type MambaStack struct {
	layer.Base
	cfg    Config
	opts   layer.Options
	layers []stackLayer
	norm   *layer.RMSNorm
}

// NewMambaStack returns a stack with the paper's initial weights. An invalid configuration is reported by Err and by every
// use.
func NewMambaStack(cfg Config, opts ...Option) *MambaStack {
	s := new(MambaStack)
	cfg, o, err := collect(cfg, opts)
	s.cfg, s.opts = cfg, o
	var params layer.Params
	if err == nil {
		for i := range cfg.NLayer {
			if wrong := deviceKind(o, cfg.kind(i)); wrong != nil && err == nil {
				err = wrong
			}
			l := newStackLayer(cfg.kind(i), cfg, part(o, fmt.Sprintf("layers.%d", i), o.Placed())...)
			if wrong := l.Err(); wrong != nil && err == nil {
				err = fmt.Errorf("nn: layer %d, %s: %w", i, cfg.kind(i), wrong)
			}
			s.layers = append(s.layers, l)
			params = append(params, l.Params()...)
		}
		s.norm = layer.NewRMSNorm(cfg.DModel, part(o, "norm_f", layer.WithEps(cfg.NormEps))...)
		params = append(params, s.norm.Params()...)
		if err == nil {
			err = place(o, s.norm.Params())
		}
	}
	s.Init(nameOr(o.Name, "MambaStack"), err, params...)
	return s
}

// Config returns the configuration, defaults filled in.
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

// ApplyWithState continues from a state, nil for the beginning, and returns the one after x beside the result. Both are
// differentiable: whole == pieces == one step at a time, gradients included.
func (s *MambaStack) ApplyWithState(x *G.Node, state State, opts ...CallOption) (y *G.Node, next State, err error) {
	return s.apply(x, state, true, opts)
}

// ZeroState returns input nodes with zeros, the state before a sequence. Set their values to those of a state that a run
// returned, and the next run continues from there.
func (s *MambaStack) ZeroState(g *G.ExprGraph, batch int) State {
	state := make(State, len(s.layers))
	for i, l := range s.layers {
		state[i] = l.ZeroState(g, batch)
	}
	return state
}

func (s *MambaStack) apply(x *G.Node, state State, withState bool, opts []CallOption) (y *G.Node, next State, err error) {
	if err := s.Use(x); err != nil {
		return nil, nil, err
	}
	if err := s.cfg.fits(x, s.opts.Dtype); err != nil {
		return nil, nil, err
	}
	if s.opts.Device != nil {
		return s.applyOnDevice(x, state, withState, opts)
	}
	if state != nil && len(state) != len(s.layers) {
		return nil, nil, fmt.Errorf("nn: the state has %d layers, want %d", len(state), len(s.layers))
	}
	if withState {
		next = make(State, len(s.layers))
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
	y, err = s.norm.Apply(x)
	return y, next, err
}

// Fwd is Apply as golgi has it.
func (s *MambaStack) Fwd(x G.Input) G.Result {
	return layer.Lift(x, func(x *G.Node) (*G.Node, error) { return s.Apply(x) })
}
