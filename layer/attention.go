package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// Attention is causal attention with several heads and rotary positions. Its input and its result are (batch, length, width). It
// projects its input to queries, keys and values, applies op.Attention, and projects the result. Each step sees all steps before
// it, so the time grows with the square of the length.
//
// With a window (WithWindow), each step sees only the last steps. The layer then has a state of fixed size, the keys and values
// of these steps, and can be used as a Sequence.
type Attention struct {
	Base
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (width, width)
	width                        int
	cfg                          op.AttentionConfig
}

// NewAttention returns attention. WithHeads sets the number of heads. The default is width/64, at least 1, or the next smaller
// number that divides the width into heads of even dimension. WithWindow sets a window. WithRotary sets the base of the rotary
// positions: 10000 by default, 0 for none. WithBias(true) gives the projections a bias.
func NewAttention(width int, opts ...Option) *Attention {
	opts = append([]Option{WithRotary(10000)}, opts...)
	return build("attention", opts, false, []any{"width", width}, func(l *Attention, o Options) (Params, error) {
		l.width = width
		l.cfg = op.AttentionConfig{Heads: orDefault(o.Heads, defaultHeads(width)), Window: o.Window, Rotary: o.Rotary}
		switch h := l.cfg.Heads; {
		case h < 1 || width%h != 0:
			return nil, fmt.Errorf("heads is %d, want a number that divides the width, %d", h, width)
		case o.Rotary != 0 && width/h%2 != 0:
			return nil, fmt.Errorf("rotary positions need an even head dimension, and %d/%d is %d", width, h, width/h)
		case !(o.Rotary == 0 || o.Rotary > 1 && !math.IsInf(o.Rotary, 1)):
			return nil, fmt.Errorf("the rotary base is %v, want a number above 1, or 0 for none", o.Rotary)
		case o.Window < 0 || o.Window == 1:
			return nil, fmt.Errorf("the window is %d, want at least 2, or 0 for none", o.Window)
		}
		if err := size.Of(o.Dtype.Size(), o.Window, 2*width+1).Fits("the keys and values of a sequence"); err != nil {
			return nil, fmt.Errorf("the window is %d: %w", o.Window, err)
		}
		l.QProj = NewLinear(width, width, o.Part("q_proj", WithBias(o.Bias))...)
		l.KProj = NewLinear(width, width, o.Part("k_proj", WithBias(o.Bias))...)
		l.VProj = NewLinear(width, width, o.Part("v_proj", WithBias(o.Bias))...)
		l.OutProj = NewLinear(width, width, o.Part("out_proj", WithBias(o.Bias))...)
		return Together(l.QProj, l.KProj, l.VProj, l.OutProj)
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *Attention) Err() error { return Err(l) }

func defaultHeads(width int) int {
	heads := max(width/64, 1)
	for heads > 1 && width%(2*heads) != 0 {
		heads--
	}
	return heads
}

// StateShape returns (batch, window-1, 2·width + 1): for each step its key, its value, and 1 if there was a step. It returns nil
// without a window, or if the layer is invalid.
func (l *Attention) StateShape(batch int) tensor.Shape {
	if l.Err() != nil || l.cfg.Window == 0 {
		return nil
	}
	return tensor.Shape{batch, l.cfg.Window - 1, 2*l.width + 1}
}

// Apply applies the layer to x (batch, length, width).
func (l *Attention) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil.
func (l *Attention) ApplyStart(x, start *G.Node) (*G.Node, error) {
	y, _, err := l.apply(x, nil, false, start)
	return y, err
}

// ApplyWithState continues from a state, nil for none. It returns the result and the state after x. It is an error without a
// window, because a state of fixed size cannot hold all keys and values.
func (l *Attention) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	if l.Err() == nil && l.cfg.Window == 0 {
		return nil, nil, fmt.Errorf("%s: attention has no state of fixed size, want one with a window (WithWindow; in package nn, Config.Window)", l.Name())
	}
	return l.apply(x, state, true, start)
}

func (l *Attention) apply(x, state *G.Node, withState bool, start *G.Node) (y, next *G.Node, err error) {
	if err := useSequence(l, x, "width", func() int { return l.width }); err != nil {
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

// Fwd is Apply in the form of golgi's layers.
func (l *Attention) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*Attention)(nil)
