package layer

import (
	"fmt"
	"reflect"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// H3 is the layer of Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", algorithm 1. Its input
// and its result are (batch, length, width). It has two state spaces, with a multiplicative gate after each.
//
//	q, k, v = q_proj(x), k_proj(x), v_proj(x);  k̄ = shift(k)
//	for each head:  S = inner(k̄ vᵀ);  o = qᵀ S
//	y = out_proj(o)
//
// The shift state space stores the last inputs unchanged. With a learned C it is a causal convolution, and the paper's D is part
// of the last weight of that convolution. The inner layer mixes each element of the products over time. Any Sequence can be the
// inner layer.
type H3 struct {
	Base
	QProj, KProj, VProj, OutProj *Linear // "q_proj", "k_proj", "v_proj" and "out_proj" (width, width)
	Shift                        *Conv1D // "shift", without SiLU
	Inner                        Sequence
	width, heads                 int
}

// H3State is the state that an H3 carries from one piece of a sequence to the next. A nil field stands for zeros.
type H3State struct {
	Shift *G.Node // (batch, shift-1, width): the last keys; nil with a shift of 1
	Inner *G.Node // of the shape that the inner layer's StateShape returns
}

// NewH3 returns an H3. inner is the constructor of the inner layer, as in NewH3(64, NewS6). NewH3 calls it with the number of
// channels of the inner layer and with the options of the H3, so that WithStateSize sets the state size of the inner layer. It
// calls inner twice: the first layer only counts the bytes of its weights (see Build).
//
// WithHeads sets the number of heads. By default it is the width, and the products are element by element. With fewer heads, the
// inner layer has width·width/heads channels. WithShift sets the number of keys that the shift reads, the current one included: 4
// by default. WithBias(true) gives the projections a bias.
func NewH3[S Sequence](width int, inner func(channels int, opts ...Option) S, opts ...Option) *H3 {
	return build("H3", opts, false, []any{"width", width}, func(l *H3, o Options) (Params, error) {
		l.width, l.heads = width, orDefault(o.Heads, width)
		shift := orDefault(o.Shift, 4)
		if err := axes("heads", l.heads, "shift", shift); err != nil {
			return nil, err
		}
		if width%l.heads != 0 {
			return nil, fmt.Errorf("heads is %d, want a number that divides the width, %d", l.heads, width)
		}
		if inner == nil {
			return nil, fmt.Errorf("the inner layer is missing, want its constructor")
		}
		made := inner(size.Product(width, width/l.heads), append(slices.Clip(opts), o.Part("inner")...)...)
		if isNil(made) {
			return nil, fmt.Errorf("the inner layer's constructor returns nil, want a layer")
		}
		l.Inner = made
		if err := l.Inner.Err(); err != nil {
			return nil, fmt.Errorf("inner layer: %w", err)
		}
		l.QProj = NewLinear(width, width, o.Part("q_proj", WithBias(o.Bias))...)
		l.KProj = NewLinear(width, width, o.Part("k_proj", WithBias(o.Bias))...)
		l.VProj = NewLinear(width, width, o.Part("v_proj", WithBias(o.Bias))...)
		l.OutProj = NewLinear(width, width, o.Part("out_proj", WithBias(o.Bias))...)
		l.Shift = NewConv1D(width, shift, o.Part("shift", WithBias(false), WithoutSiLU())...)
		return Together(l.QProj, l.KProj, l.VProj, l.Shift, l.Inner, l.OutProj)
	})
}

// isNil reports whether a layer is nil, or a nil pointer.
func isNil(s Sequence) bool {
	v := reflect.ValueOf(s)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// Err returns what is wrong with the layer, or nil.
func (l *H3) Err() error { return Err(l) }

// StateShapes returns the shapes of the two states of a batch. shift is nil with a shift of 1. Both are nil if the layer is invalid.
func (l *H3) StateShapes(batch int) (shift, inner tensor.Shape) {
	if l.Err() != nil {
		return nil, nil
	}
	if l.Shift.width > 1 {
		shift = tensor.Shape{batch, l.Shift.width - 1, l.width}
	}
	return shift, l.Inner.StateShape(batch)
}

// Apply applies the layer to x (batch, length, width).
func (l *H3) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil.
func (l *H3) ApplyStart(x, start *G.Node) (*G.Node, error) {
	y, _, err := l.apply(x, H3State{}, false, start)
	return y, err
}

// ApplyWithState continues from a state. It returns the result and the state after x.
func (l *H3) ApplyWithState(x *G.Node, state H3State, start *G.Node) (y *G.Node, next H3State, err error) {
	return l.apply(x, state, true, start)
}

func (l *H3) apply(x *G.Node, state H3State, withState bool, start *G.Node) (y *G.Node, next H3State, err error) {
	if err := useSequence(l, x, "width", func() int { return l.width }); err != nil {
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

// Fwd is Apply in the form of golgi's layers.
func (l *H3) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
