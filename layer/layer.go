package layer

import (
	"fmt"
	"os"
	"sync/atomic"
	"weak"

	G "gorgonia.org/gorgonia"
)

// Base is what every layer has: a name, weights, and the error of its configuration. Layers embed it.
type Base struct {
	name   string
	params Params
	err    error
	last   atomic.Pointer[weak.Pointer[G.ExprGraph]] // weak: a layer does not keep graphs alive
}

// Init sets the layer up; err is what is wrong with its configuration, if anything.
func (b *Base) Init(name string, err error, params ...*Param) {
	b.name, b.err, b.params = name, err, params
	if err != nil {
		b.params = nil
	}
}

// Params returns the layer's weights, in order.
func (b *Base) Params() Params { return b.params }

// Name returns the layer's name.
func (b *Base) Name() string { return b.name }

// Err returns what is wrong with the layer's configuration, or nil.
func (b *Base) Err() error { return b.err }

// Model returns the nodes of the weights in the last graph that the layer was applied in, as golgi's layers do. It returns nil
// if the layer was never applied, or if that graph is garbage by now: a layer keeps no graph alive.
//
// Model follows the layer. After the layer is applied in a second graph, for an evaluation say, Model returns the nodes of the
// second graph, and these have no gradient. A training loop uses Params().Nodes(g), which names its graph.
func (b *Base) Model() G.Nodes {
	last := b.last.Load()
	if last == nil {
		return nil
	}
	g := last.Value()
	if g == nil {
		return nil
	}
	return b.params.Nodes(g)
}

// Describe prints the layer's weights.
func (b *Base) Describe() { describe(os.Stdout, b.name, b.params) }

// Use records the graph of x for Model. It returns an error if the layer cannot be applied to x.
func (b *Base) Use(x *G.Node) error {
	if b.err != nil {
		return b.err
	}
	if x == nil {
		return fmt.Errorf("%s: the input is missing, want a node", b.name)
	}
	g := weak.Make(x.Graph())
	b.last.Store(&g)
	return nil
}

// useSequence is Use for a layer that takes (batch, length, axis), the last of a given size.
func (b *Base) useSequence(x *G.Node, axis string, size int) error {
	if err := b.Use(x); err != nil {
		return err
	}
	if s := x.Shape(); len(s) != 3 || s[2] != size {
		return fmt.Errorf("%s: x has shape %v, want (batch, length, %s) = (any, any, %d)", b.name, s, axis, size)
	}
	if dt := b.params[0].Value.Dtype(); x.Dtype() != dt {
		return fmt.Errorf("%s: x is of %v, want %v like the weights", b.name, x.Dtype(), dt)
	}
	return nil
}

// Lift makes golgi's Fwd of an Apply.
func Lift(x G.Input, apply func(*G.Node) (*G.Node, error)) G.Result {
	if x == nil {
		return G.LiftResult(apply(nil))
	}
	if err := G.CheckOne(x); err != nil {
		return G.Err(err)
	}
	return G.LiftResult(apply(x.Node()))
}

// Effective returns the nodes of weights as a layer is to use them, nil for a weight that is nil.
func Effective(g *G.ExprGraph, weights ...*Param) (G.Nodes, error) {
	nodes := make(G.Nodes, len(weights))
	for i, w := range weights {
		if w == nil {
			continue
		}
		var err error
		if nodes[i], err = w.Effective(g); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", w.Name, err)
		}
	}
	return nodes, nil
}

// positive checks sizes, given as name and value in turn.
func positive(what string, sizes ...any) error {
	for i := 0; i < len(sizes); i += 2 {
		if n := sizes[i+1].(int); n < 1 {
			return fmt.Errorf("layer: %s: %s is %d, want at least 1", what, sizes[i], n)
		}
	}
	return nil
}

func collect(what string, opts []Option, bias bool, err error) (Options, error) {
	o, wrong := Collect(opts, bias)
	if wrong == nil && o.Device != nil {
		wrong = fmt.Errorf("a layer by itself is not offered on a device, want nn.MambaBlock, nn.MambaStack or nn.LM")
	}
	if err == nil && wrong != nil {
		err = fmt.Errorf("layer: %s: %w", what, wrong)
	}
	return o, err
}

// orDefault returns n, or a default for 0.
func orDefault(n, byDefault int) int {
	if n == 0 {
		return byDefault
	}
	return n
}

func nameOr(name, what string) string {
	if name == "" {
		return what
	}
	return name
}
