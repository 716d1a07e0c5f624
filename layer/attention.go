package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// Attention is causal attention with several heads and rotary positions, from (batch, length, width) to the same: projections to
// queries, keys and values, op.Attention, and a projection of the result. Each step looks at all before it, so its time grows
// with the square of the length.
//
// With a window (WithWindow) it sees the last steps only, and has a state of fixed size, like the other layers: the keys and
// values of these steps. It is then a Sequence.
type Attention struct {
	Base
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (width, width)
	width                        int
	cfg                          op.AttentionConfig
}

// NewAttention returns attention. WithHeads sets the number of heads, by default width/64, or the next smaller number that
// cuts the width into heads of even dimension, and at least 1; WithWindow a window; WithRotary the base of the rotary positions,
// 10000 by default, or 0 for none; WithBias(true) gives the projections a bias.
func NewAttention(width int, opts ...Option) *Attention {
	l := &Attention{width: width}
	o, err := collect("attention", append([]Option{WithRotary(10000)}, opts...), false, positive("attention", "width", width))
	l.cfg = op.AttentionConfig{Heads: orDefault(o.Heads, defaultHeads(width)), Window: o.Window, Rotary: o.Rotary}
	if err == nil {
		switch h := l.cfg.Heads; {
		case h < 1 || width%h != 0:
			err = fmt.Errorf("layer: attention: heads is %d, want a number that divides the width, %d", h, width)
		case o.Rotary != 0 && width/h%2 != 0:
			err = fmt.Errorf("layer: attention: rotary positions need an even head dimension, and %d/%d is %d", width, h, width/h)
		case !(o.Rotary == 0 || o.Rotary > 1):
			err = fmt.Errorf("layer: attention: the rotary base is %v, want a number above 1, or 0 for none", o.Rotary)
		case o.Window < 0 || o.Window == 1:
			err = fmt.Errorf("layer: attention: the window is %d, want at least 2, or 0 for none", o.Window)
		}
	}
	if err == nil {
		for _, p := range []struct {
			name string
			to   **Linear
		}{{"q_proj", &l.QProj}, {"k_proj", &l.KProj}, {"v_proj", &l.VProj}, {"out_proj", &l.OutProj}} {
			*p.to = NewLinear(width, width, o.Part(p.name, WithBias(o.Bias))...)
			l.params = append(l.params, (*p.to).Params()...)
		}
	}
	l.Init(nameOr(o.Name, "attention"), err, l.params...)
	return l
}

func defaultHeads(width int) int {
	heads := max(width/64, 1)
	for heads > 1 && width%(2*heads) != 0 {
		heads--
	}
	return heads
}

// StateShape is (batch, window-1, 2·width + 1): for each step key, value, and 1 where there was one. Without a window it is nil.
func (l *Attention) StateShape(batch int) tensor.Shape {
	if l.cfg.Window == 0 {
		return nil
	}
	return tensor.Shape{batch, l.cfg.Window - 1, 2*l.width + 1}
}

// Apply applies the layer to x (batch, length, width).
func (l *Attention) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new one starts where start (batch, length) is non-zero. Start may be nil.
func (l *Attention) ApplyStart(x, start *G.Node) (*G.Node, error) {
	y, _, err := l.apply(x, nil, false, start)
	return y, err
}

// ApplyWithState continues from a state, nil for nothing, and returns the one after x beside the result. It is an error without a
// window: all keys and values would have to be kept, more with every step.
func (l *Attention) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	if l.err == nil && l.cfg.Window == 0 {
		return nil, nil, fmt.Errorf("%s: attention has no state of fixed size, want one with a window (WithWindow; in package nn, Config.Window)", l.Name())
	}
	return l.apply(x, state, true, start)
}

func (l *Attention) apply(x, state *G.Node, withState bool, start *G.Node) (y, next *G.Node, err error) {
	if err := l.useSequence(x, "width", l.width); err != nil {
		return nil, nil, err
	}
	in := op.AttentionInputs{Context: state, Start: start}
	for _, p := range []struct {
		layer *Linear
		to    **G.Node
	}{{l.QProj, &in.Q}, {l.KProj, &in.K}, {l.VProj, &in.V}} {
		if *p.to, err = p.layer.Apply(x); err != nil {
			return nil, nil, err
		}
	}
	if withState {
		y, next, err = op.AttentionWithContext(in, l.cfg)
	} else {
		y, err = op.Attention(in, l.cfg)
	}
	if err != nil {
		return nil, nil, err
	}
	y, err = l.OutProj.Apply(y)
	return y, next, err
}

// Fwd is Apply as golgi has it.
func (l *Attention) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*Attention)(nil)
