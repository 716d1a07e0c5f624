package build

import (
	"fmt"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
)

// Slot is layer.Slot.
type Slot struct {
	Name  string
	Shape tensor.Shape
}

// State is layer.State.
type State []*G.Node

// Ranks is a *dist.Group.
type Ranks interface {
	Rank() int
	Size() int
}

// Call holds the options of one application.
type Call struct {
	Start     *G.Node // (batch, length), or nil
	Step      *G.Node // (1) of int: the training step, or nil outside training
	Composed  bool
	Recompute int   // an op.Recompute
	Slices    int   // of a Mamba with slices; 0 for those of its configuration
	Segments  Ranks // the processes that have the parts of the sequences, or nil
	Err       error // of an option that is invalid
}

// CallOption is an option of one application.
type CallOption func(*Call)

// CallOf returns the values of options, or an error if one is nil or invalid.
func CallOf(opts []CallOption) (c Call, err error) {
	for i, opt := range opts {
		if opt == nil {
			return c, fmt.Errorf("call option %d is nil", i)
		}
		if opt(&c); c.Err != nil {
			return c, c.Err
		}
	}
	return c, nil
}

// Mixer is a layer over time as Steps.Mix applies it: every layer.Mixer.
type Mixer interface {
	Slots() []Slot
	Apply(x *G.Node, opts ...CallOption) (*G.Node, error)
	ApplyWithState(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error)
}

// OverTime is a layer over time with weights W. Parts is what it is made of. It is a layer.Mixer, whose methods also work for a nil layer; methods
// that an embedded struct promotes would panic.
type OverTime[Parts any, W Weights] struct {
	Base[W]
	Parts Parts
}

// Err returns what is wrong with the layer, or nil.
func (l *OverTime[Parts, W]) Err() error { return Err(l) }

// Slots returns the parts of the layer's state, as layer.Mixer has it.
func (l *OverTime[Parts, W]) Slots() []Slot { return Slots(l) }

// Apply applies the layer to whole sequences, as layer.Mixer has it.
func (l *OverTime[Parts, W]) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return Apply(l, x, opts)
}

// ApplyWithState continues from a state, as layer.Mixer has it.
func (l *OverTime[Parts, W]) ApplyWithState(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error) {
	return ApplyWithState(l, x, state, opts)
}

// Fwd is Apply in the form of golgi's layers.
func (l *OverTime[Parts, W]) Fwd(x G.Input) G.Result { return Fwd(l, x) }

// overTime is what a layer over time has.
type overTime struct {
	channels int
	dtype    tensor.Dtype
	slots    []Slot
	mix      func(s *Steps, x *G.Node) *G.Node
	noState  error // why the layer has no state of fixed size, or nil
}

// MixWith makes a layer one over time: its input and its result are (batch, length, channels). mix applies it.
func MixWith[L any, P Layer[L]](l P, channels int, slots []Slot, mix func(s *Steps, x *G.Node) *G.Node) {
	c := l.self()
	c.over.channels, c.over.slots, c.over.mix = channels, slots, mix
}

// WithoutState makes a layer over time one that cannot be applied with a state. reason completes "NAME: …".
func WithoutState[L any, P Layer[L]](l P, reason string) {
	l.self().over.slots, l.self().over.noState = nil, fmt.Errorf("%s", reason)
}

// Slots returns the slots of a layer over time, nil if the layer is invalid.
func Slots[L any, P Layer[L]](l P) []Slot {
	if Err(l) != nil {
		return nil
	}
	return slices.Clone(l.self().over.slots)
}

// Apply applies a layer over time.
func Apply[L any, P Layer[L]](l P, x *G.Node, opts []CallOption) (*G.Node, error) {
	y, _, err := apply(l, x, nil, false, opts)
	return y, err
}

// ApplyWithState applies a layer over time from a state, nil for zeros, and returns the state after x.
func ApplyWithState[L any, P Layer[L]](l P, x *G.Node, state State, opts []CallOption) (*G.Node, State, error) {
	return apply(l, x, state, true, opts)
}

// Steps builds the result of a layer over time, one operator after another. The first error sticks: after it, Do and the other
// methods return nil nodes, which later operators refuse with an error that nobody reads.
type Steps struct {
	Call
	Graph     *G.ExprGraph
	WithState bool // the state after the input is wanted
	before    State
	next      State
	err       error
}

func apply[L any, P Layer[L]](l P, x *G.Node, state State, withState bool, opts []CallOption) (*G.Node, State, error) {
	if err := Use(l, x); err != nil {
		return nil, nil, err
	}
	c := l.self()
	s, err := c.over.steps(x, state, withState, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.name, err)
	}
	e := EdgeOf(c.place(), x)
	x = s.Do(e.In(x))
	for i, n := range s.before {
		s.before[i] = s.Do(e.In(n))
	}
	y := s.Do(e.Out(c.over.mix(s, x)))
	for i, n := range s.next {
		s.next[i] = s.Do(e.Out(n))
	}
	if s.err != nil {
		return nil, nil, s.err
	}
	return y, s.next, nil
}

// steps checks the arguments of an application.
func (o *overTime) steps(x *G.Node, state State, withState bool, opts []CallOption) (*Steps, error) {
	c, err := CallOf(opts)
	if err != nil {
		return nil, err
	}
	s := &Steps{Call: c, Graph: x.Graph(), WithState: withState, before: slices.Clone(state)}
	if shape := x.Shape(); len(shape) != 3 || shape[2] != o.channels {
		return nil, fmt.Errorf("x has shape %v, want (batch, length, channels) = (any, any, %d)", shape, o.channels)
	}
	if x.Dtype() != o.dtype {
		return nil, fmt.Errorf("x is of %v, want %v like the weights", x.Dtype(), o.dtype)
	}
	if withState && o.noState != nil {
		return nil, o.noState
	}
	if c.Segments != nil && !withState {
		return nil, fmt.Errorf("segments are for a block, a stack or a language model of package nn")
	}
	batch := x.Shape()[0]
	switch want := x.Shape()[:2]; {
	case s.Start == nil:
	case s.Start.Graph() != x.Graph():
		return nil, fmt.Errorf("start belongs to another graph than x")
	case !s.Start.Shape().Eq(want):
		return nil, fmt.Errorf("start has shape %v, want (batch, length) = %v", s.Start.Shape(), want)
	case s.Start.Dtype() != tensor.Int && s.Start.Dtype() != o.dtype:
		return nil, fmt.Errorf("start is of %v, want %v or int", s.Start.Dtype(), o.dtype)
	}
	if state == nil {
		s.before = make(State, len(o.slots))
	}
	if len(s.before) != len(o.slots) {
		return nil, fmt.Errorf("the state has %d nodes, want %s", len(state), names(o.slots))
	}
	for i, slot := range o.slots {
		switch n, want := s.before[i], slot.of(batch); {
		case n == nil:
		case n.Graph() != x.Graph():
			return nil, fmt.Errorf("the state %s belongs to another graph than x", slot.Name)
		case !n.Shape().Eq(want):
			return nil, fmt.Errorf("the state %s has shape %v, want %v", slot.Name, n.Shape(), want)
		case n.Dtype() != o.dtype:
			return nil, fmt.Errorf("the state %s is of %v, want %v like x", slot.Name, n.Dtype(), o.dtype)
		}
	}
	return s, nil
}

// of returns the slot's shape for a batch.
func (s Slot) of(batch int) tensor.Shape { return append(tensor.Shape{batch}, s.Shape...) }

func names(slots []Slot) string {
	if len(slots) == 0 {
		return "none: the layer has no state"
	}
	text := make([]string, len(slots))
	for i, s := range slots {
		text[i] = s.Name
	}
	return fmt.Sprintf("%d, for %s", len(slots), strings.Join(text, ", "))
}

// Do returns y, or nil after an error.
func (s *Steps) Do(y *G.Node, err error) *G.Node {
	if s.err == nil {
		s.err = err
	}
	if s.err != nil {
		return nil
	}
	return y
}

// Result is Do, with the error of the steps.
func (s *Steps) Result(y *G.Node, err error) (*G.Node, error) { return s.Do(y, err), s.err }

// Take returns the node of the next slot, nil for zeros.
func (s *Steps) Take() *G.Node {
	if !s.WithState {
		return nil
	}
	n := s.before[0]
	s.before = s.before[1:]
	return n
}

// Put adds nodes to the state after the input. A nil node is left out.
func (s *Steps) Put(next ...*G.Node) {
	s.next = append(s.next, slices.DeleteFunc(next, func(n *G.Node) bool { return n == nil })...)
}

// Run applies an operator over time that has two forms, without and with the state after the input.
func Run[I, C any](s *Steps, in I, cfg C, plain func(I, C) (*G.Node, error), with func(I, C) (y, next *G.Node, err error)) *G.Node {
	if !s.WithState {
		return s.Do(plain(in, cfg))
	}
	y, next, err := with(in, cfg)
	s.Put(next)
	return s.Do(y, err)
}

// Mix applies a part to x, with its slots of the state.
func (s *Steps) Mix(part Mixer, x *G.Node) *G.Node {
	opt := func(c *Call) { *c = s.Call }
	if !s.WithState {
		return s.Do(part.Apply(x, opt))
	}
	n := len(part.Slots())
	y, next, err := part.ApplyWithState(x, s.before[:n:n], opt)
	s.before = s.before[n:]
	s.Put(next...)
	return s.Do(y, err)
}

// StateBytes returns the bytes of the slots of one sequence.
func StateBytes(dt tensor.Dtype, slots []Slot) (bytes size.Bytes) {
	for _, s := range slots {
		bytes = bytes.Plus(size.Of(dt.Size(), s.Shape...))
	}
	return bytes
}
