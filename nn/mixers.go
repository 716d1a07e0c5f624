package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// sequence applies a layer that mixes over time and whose state is LayerState.Scan.
func sequence(l layer.Sequence, x *G.Node, state LayerState, withState bool, start *G.Node) (y, next *G.Node, err error) {
	if withState {
		return l.ApplyWithState(x, state.Scan, start)
	}
	y, err = l.ApplyStart(x, start)
	return y, nil, err
}

// noGate is the architecture without a gate: out_proj(GELU(inner(x))) if the inner layer is linear, else out_proj(inner(x)).
type noGate struct {
	layer.Base
	inner   layer.Sequence
	outProj *layer.Linear
	linear  bool
}

func newNoGate(cfg Config, o layer.Options, inner layer.Sequence, linear bool) *noGate {
	m := &noGate{inner: inner, linear: linear, outProj: layer.NewLinear(cfg.DModel, cfg.DModel, o.Part("mixer.out_proj", layer.WithBias(cfg.Bias))...)}
	params, err := layer.Together(inner, m.outProj)
	m.Init("no gate", err, params...)
	return m
}

func (m *noGate) shapes(batch int) (conv, scan tensor.Shape) { return nil, m.inner.StateShape(batch) }

func (m *noGate) mix(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	if y, next.Scan, err = sequence(m.inner, x, state, withState, start); err != nil {
		return nil, next, err
	}
	if m.linear {
		if y, err = op.Activate(y, op.GELU); err != nil {
			return nil, next, err
		}
	}
	y, err = m.outProj.Apply(y)
	return y, next, err
}

// h3 has the state of its shift as LayerState.Conv, and the state of its inner layer as LayerState.Scan.
type h3 struct{ *layer.H3 }

func (m h3) shapes(batch int) (conv, scan tensor.Shape) { return m.StateShapes(batch) }

func (m h3) mix(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	if !withState {
		y, err = m.ApplyStart(x, start)
		return y, next, err
	}
	y, after, err := m.ApplyWithState(x, layer.H3State{Shift: state.Conv, Inner: state.Scan}, start)
	return y, LayerState{Conv: after.Shift, Scan: after.Inner}, err
}

// mambaS4 is the Mamba architecture with S4 inside: out_proj(s4(silu(conv1d(x))) ⊙ silu(z)), where x and z are the halves of the
// result of in_proj.
type mambaS4 struct {
	layer.Base
	cfg             Config
	inProj, outProj *layer.Linear
	conv            *layer.Conv1D
	s4              *layer.S4
}

func newMambaS4(cfg Config, o layer.Options, opts []Option) *mambaS4 {
	inner := cfg.inner()
	m := &mambaS4{
		cfg:     cfg,
		inProj:  layer.NewLinear(cfg.DModel, 2*inner, o.Part("mixer.in_proj", layer.WithBias(cfg.Bias))...),
		conv:    layer.NewConv1D(inner, cfg.DConv, o.Part("mixer.conv1d", layer.WithBias(!cfg.NoConvBias))...),
		s4:      layer.NewS4(inner, o.Part("mixer.s4", opts...)...),
		outProj: layer.NewLinear(inner, cfg.DModel, o.Part("mixer.out_proj", layer.WithBias(cfg.Bias))...),
	}
	params, err := layer.Together(m.inProj, m.conv, m.s4, m.outProj)
	m.Init(string(MambaS4), err, params...)
	return m
}

func (m *mambaS4) shapes(batch int) (conv, scan tensor.Shape) {
	if m.cfg.DConv > 1 {
		conv = tensor.Shape{batch, m.cfg.DConv - 1, m.cfg.inner()}
	}
	return conv, m.s4.StateShape(batch)
}

func (m *mambaS4) mix(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	xz, err := m.inProj.Apply(x)
	if err != nil {
		return nil, next, err
	}
	parts, err := op.Split(xz, m.cfg.inner(), m.cfg.inner())
	if err != nil {
		return nil, next, err
	}
	u := parts[0]
	if withState {
		u, next.Conv, err = m.conv.ApplyWithContext(u, state.Conv, start)
	} else {
		u, err = m.conv.ApplyStart(u, start)
	}
	if err != nil {
		return nil, next, err
	}
	if u, next.Scan, err = sequence(m.s4, u, state, withState, start); err != nil {
		return nil, next, err
	}
	if y, err = op.Gate(parts[1], u, op.SiLU); err != nil {
		return nil, next, err
	}
	y, err = m.outProj.Apply(y)
	return y, next, err
}

// mlp has no state, since it computes each step independently.
type mlp struct{ *layer.GatedMLP }

func (mlp) shapes(int) (conv, scan tensor.Shape) { return nil, nil }

func (m mlp) mix(x *G.Node, _ LayerState, _ bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	if start != nil { // no step sees another one; a start that is wrong is an error as in other layers
		switch want := x.Shape()[:2]; {
		case start.Graph() != x.Graph():
			return nil, next, fmt.Errorf("nn: Start belongs to another graph than x")
		case !start.Shape().Eq(want):
			return nil, next, fmt.Errorf("nn: Start has shape %v, want (batch, length) = %v", start.Shape(), want)
		}
	}
	y, err = m.Apply(x)
	return y, next, err
}

// attention has the keys and values of its window as LayerState.Scan.
type attention struct{ *layer.Attention }

func newAttention(cfg Config, opts []Option) attention {
	opts = append(opts, layer.WithBias(cfg.Bias), layer.WithWindow(cfg.Window))
	if cfg.NHead > 0 {
		opts = append(opts, layer.WithHeads(cfg.NHead))
	}
	return attention{layer.NewAttention(cfg.DModel, opts...)}
}

func (m attention) shapes(batch int) (conv, scan tensor.Shape) { return nil, m.StateShape(batch) }

func (m attention) mix(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	y, next.Scan, err = sequence(m, x, state, withState, start)
	return y, next, err
}
