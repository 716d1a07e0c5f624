package layer

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// H3 is the layer of Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", algorithm 1, from
// (batch, length, width) to the same: two state spaces with a multiplicative gate after each.
//
//	q, k, v = q_proj(x), k_proj(x), v_proj(x);  k̄ = shift(k)
//	for each head:  S = inner(k̄ vᵀ);  o = qᵀ S
//	y = out_proj(o)
//
// The shift state space remembers the last inputs as they are; read by a learnt C it is a causal convolution, here with the
// paper's D as a part of its last tap. The inner one, any layer, mixes each element of the products over time.
type H3 struct {
	Base
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (width, width)
	Shift                        *Conv1D // "shift", without SiLU
	Inner                        Sequence
	width, heads                 int
}

// H3State is what an H3 carries from one piece of a sequence to the next. What is nil is zeros.
type H3State struct {
	Shift *G.Node // (batch, shift-1, width): the last keys; nil with a shift of 1
	Inner *G.Node // of the inner layer's StateShape
}

// NewH3 returns an H3 with an inner layer of which the constructor is given, as NewH3(64, NewS6). It is called with the number
// of channels that it is to have, and with the options of the H3 itself: so WithStateSize is that of the inner layer.
//
// WithHeads sets the number of heads, width by default, where products are element by element; with fewer, the inner layer has
// width·width/heads channels. WithShift sets the number of keys that the shift reads, the step's own among them: 4 by
// default. The projections have a bias with WithBias(true).
func NewH3[S Sequence](width int, inner func(channels int, opts ...Option) S, opts ...Option) *H3 {
	l := &H3{width: width}
	o, err := collect("H3", opts, false, positive("H3", "width", width))
	l.heads = orDefault(o.Heads, width)
	shift := orDefault(o.Shift, 4)
	if err == nil {
		err = positive("H3", "heads", l.heads, "shift", shift)
	}
	if err == nil && width%l.heads != 0 {
		err = fmt.Errorf("layer: H3: heads is %d, want a number that divides the width, %d", l.heads, width)
	}
	if err == nil && inner == nil {
		err = fmt.Errorf("layer: H3: the inner layer is missing, want its constructor")
	}
	if err == nil {
		l.Inner = inner(width*(width/l.heads), append(slices.Clip(opts), WithName(Join(o.Name, "inner")))...)
		if l.Inner == nil {
			err = fmt.Errorf("layer: H3: the inner layer's constructor returns nil, want a layer")
		} else if wrong := l.Inner.Err(); wrong != nil {
			err = fmt.Errorf("layer: H3: inner layer: %w", wrong)
		}
	}
	if err == nil {
		l.QProj = NewLinear(width, width, o.Part("q_proj", WithBias(o.Bias))...)
		l.KProj = NewLinear(width, width, o.Part("k_proj", WithBias(o.Bias))...)
		l.VProj = NewLinear(width, width, o.Part("v_proj", WithBias(o.Bias))...)
		l.OutProj = NewLinear(width, width, o.Part("out_proj", WithBias(o.Bias))...)
		l.Shift = NewConv1D(width, shift, o.Part("shift", WithBias(false), WithoutSiLU())...)
		l.params = slices.Concat(l.QProj.Params(), l.KProj.Params(), l.VProj.Params(), l.Shift.Params(), l.Inner.Params(),
			l.OutProj.Params())
	}
	l.Init(nameOr(o.Name, "H3"), err, l.params...)
	return l
}

// StateShapes are the shapes of the two states of a batch; shift is nil with a shift of 1.
func (l *H3) StateShapes(batch int) (shift, inner tensor.Shape) {
	if l.err != nil {
		return nil, nil
	}
	if l.Shift.width > 1 {
		shift = tensor.Shape{batch, l.Shift.width - 1, l.width}
	}
	return shift, l.Inner.StateShape(batch)
}

// Apply applies the layer to x (batch, length, width).
func (l *H3) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new one starts where start (batch, length) is non-zero. Start may be nil.
func (l *H3) ApplyStart(x, start *G.Node) (*G.Node, error) {
	y, _, err := l.apply(x, H3State{}, false, start)
	return y, err
}

// ApplyWithState continues from a state, and returns the one after x beside the result.
func (l *H3) ApplyWithState(x *G.Node, state H3State, start *G.Node) (y *G.Node, next H3State, err error) {
	return l.apply(x, state, true, start)
}

func (l *H3) apply(x *G.Node, state H3State, withState bool, start *G.Node) (y *G.Node, next H3State, err error) {
	if err := l.useSequence(x, "width", l.width); err != nil {
		return nil, H3State{}, err
	}
	var qkv [3]*G.Node
	for i, p := range []*Linear{l.QProj, l.KProj, l.VProj} {
		if qkv[i], err = p.Apply(x); err != nil {
			return nil, H3State{}, err
		}
	}
	q, k, v := qkv[0], qkv[1], qkv[2]
	if withState {
		k, next.Shift, err = l.Shift.ApplyWithContext(k, state.Shift, start)
	} else {
		k, err = l.Shift.ApplyStart(k, start)
	}
	if err != nil {
		return nil, H3State{}, fmt.Errorf("%s: shift: %w", l.Name(), err)
	}
	s, err := op.OuterProduct(k, v, l.heads)
	if err != nil {
		return nil, H3State{}, err
	}
	if withState {
		s, next.Inner, err = l.Inner.ApplyWithState(s, state.Inner, start)
	} else {
		s, err = l.Inner.ApplyStart(s, start)
	}
	if err != nil {
		return nil, H3State{}, fmt.Errorf("%s: inner layer: %w", l.Name(), err)
	}
	o, err := op.Contract(q, s, l.heads)
	if err != nil {
		return nil, H3State{}, err
	}
	y, err = l.OutProj.Apply(o)
	return y, next, err
}

// Fwd is Apply as golgi has it.
func (l *H3) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
