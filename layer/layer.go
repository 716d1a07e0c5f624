package layer

import (
	"cmp"
	"fmt"
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Base has what every layer has. Layers embed it. Its methods are Name, Params (the weights, in order), Err (what is wrong with the
// configuration, or nil), Describe (prints the weights) and Model.
//
// Model returns the nodes of the weights in the last graph that the layer was applied in, as the layers of golgi do. It returns nil if
// the garbage collector has freed that graph: a layer does not keep a graph alive. Use Params().Nodes(g) in a training loop, since it
// names the graph: after an application in a second graph, for example for an evaluation, Model returns nodes that have no gradient.
type Base = build.Base[Params]

// Mixer is a layer over time: from (batch, length, channels) to the same. Mamba, S4, S6, H3, Attention, LSTM, MinGRU, Conv1D
// and GatedMLP are Mixers. Beside the methods of a Mixer they have those of Base, Fwd, which is Apply in the form of golgi's layers, and the
// field Parts, which holds what they are made of.
type Mixer interface {
	Name() string
	Params() Params
	Err() error
	// Slots returns the parts of the layer's state. It returns nil if the layer has no state, if it is invalid, or if it cannot be
	// applied with a state.
	Slots() []Slot
	// Apply applies the layer to whole sequences.
	Apply(x *G.Node, opts ...CallOption) (*G.Node, error)
	// ApplyWithState continues from a state; nil stands for zeros. It returns the result, and the state after x. Both are
	// differentiable. A sequence in pieces, or in single steps, gives the same as the whole sequence.
	ApplyWithState(x *G.Node, state State, opts ...CallOption) (y *G.Node, next State, err error)
}

// Slot is a part of the state of a layer: its Name, and its Shape without the first axis, which is the batch.
type Slot = build.Slot

// State is the state that a layer carries from one piece of a sequence to the next: a node for each of its Slots, in order. A nil node
// stands for zeros. A nil State is zero.
type State = build.State

var states atomic.Uint64

// ZeroState returns input nodes with zeros, the state of a layer before a sequence. To continue from the state that a run returned, set
// their values to it. It is an error if the layer is invalid, if g is nil, or if the batch is below 1 or does not fit into memory.
func ZeroState(l Mixer, g *G.ExprGraph, batch int) (State, error) {
	switch {
	case isNil(l):
		return nil, fmt.Errorf("layer: ZeroState: the layer is missing, want one that its constructor returns")
	case l.Err() != nil:
		return nil, l.Err()
	case g == nil:
		return nil, fmt.Errorf("layer: ZeroState: the graph is missing")
	case batch < 1:
		return nil, fmt.Errorf("layer: ZeroState: batch is %d, want at least 1", batch)
	}
	var o build.Options
	slots := l.Slots()
	for _, p := range l.Params() {
		if p.Value != nil { // a narrow one counts as float32
			o.Dtype = p.Value.Dtype()
		}
	}
	if err := build.StateBytes(o.Dtype, slots).Times(batch).Fits("its states"); err != nil {
		return nil, fmt.Errorf("layer: ZeroState: batch is %d: %w", batch, err)
	}
	id := states.Add(1) // makes the names differ, since Gorgonia merges leaves of one name
	state := make(State, len(slots))
	for i, s := range slots {
		zeros := o.New(nil, append(tensor.Shape{batch}, s.Shape...)...)
		state[i] = G.NodeFromAny(g, zeros, G.WithName(fmt.Sprintf("state.%s#%d", s.Name, id)))
	}
	return state, nil
}

// CallOption is an option of one application of a layer.
type CallOption = build.CallOption

// WithStart packs several sequences into one. Where start (batch, length) is not zero, a new sequence begins, and no earlier step has
// an effect on it. start is of the layer's type, or of int; nil stands for no start.
func WithStart(start *G.Node) CallOption { return func(c *build.Call) { c.Start = start } }

// WithTraining says that the application is in training: layers that behave differently there, such as BatchNorm and those with dropout, do so. step (1)
// of int is the number of the training step, from which dropout draws; a negative step drops nothing.
func WithTraining(step *G.Node) CallOption { return func(c *build.Call) { c.Step = step } }

// Inner is the configuration of a layer that another layer can have inside: S4Config, S6Config, LSTMConfig, AttentionConfig and others.
type Inner interface {
	// Mixer returns the layer for a number of channels, which the configuration does not need to have.
	Mixer(channels int, opts ...Option) Mixer
}

// newLayer makes a layer of this package. It checks the sizes, a list of name and value in turn, and collects the options.
func newLayer[L any, P interface {
	build.Layer[L]
	build.Made[Params]
}](what string, opts []Option, sizes []any, f func(l P, o build.Options) (Params, error)) P {
	o, err := build.Collect(opts)
	err = cmp.Or(build.Axes(sizes...), err)
	what = "layer: " + what
	named := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	return build.New(what, sizes, o, named(err), func(l P, o build.Options) (Params, error) {
		params, err := f(l, o)
		return params, named(err)
	})
}

// newMixer is newLayer for a layer over time with parts P.
func newMixer[P any](
	what string, opts []Option, sizes []any, f func(l *build.OverTime[P, Params], p *P, o build.Options) (Params, error),
) *build.OverTime[P, Params] {
	return newLayer(what, opts, sizes, func(l *build.OverTime[P, Params], o build.Options) (Params, error) { return f(l, &l.Parts, o) })
}

// together returns the weights of parts, in order, or the first error of a part.
func together(parts ...build.Part[Params]) (Params, error) { return build.Together(parts...) }

// weights returns the nodes that a layer computes with, one for each weight, as Param.Effective does. The node of a nil weight is nil.
func weights(s *build.Steps, params ...*Param) G.Nodes {
	nodes := make(G.Nodes, len(params))
	for i, p := range params {
		if p != nil {
			nodes[i] = s.Do(p.Effective(s.Graph))
		}
	}
	return nodes
}

// reversedState is the reason of build.WithoutState for a layer that reads a sequence from its end.
const reversedState = "a layer that reads a sequence from its end has no state for the steps that follow"

// readFromEnd is build.MixWith for a layer that reads each sequence from its end to its beginning. It has no state: a step depends on those
// after it.
func readFromEnd[L any, P build.Layer[L]](l P, channels int, mix func(*build.Steps, *G.Node) *G.Node) {
	build.MixWith(l, channels, nil, func(s *build.Steps, x *G.Node) *G.Node {
		return s.Do(op.Reverse(mix(s, s.Do(op.Reverse(x, s.Start))), s.Start))
	})
	build.WithoutState(l, reversedState)
}

// split divides x along its last axis into parts of the given sizes.
func split(s *build.Steps, x *G.Node, sizes ...int) G.Nodes {
	parts, err := op.Split(x, sizes...)
	if s.Do(nil, err); err != nil {
		return make(G.Nodes, len(sizes))
	}
	return parts
}
