package layer

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"weak"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/size"
)

// Base has what every layer has: a name, weights, and the error of its configuration. Layers embed it. Build fills it in.
type Base struct {
	name   string
	params Params
	err    error
	last   atomic.Pointer[weak.Pointer[G.ExprGraph]] // weak: a layer does not keep graphs alive
}

// Init sets the layer up. err is what is wrong with its configuration, or nil; a layer with an error has no weights.
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

// Err returns what is wrong with the layer, or nil. A layer that was not made by its constructor is invalid. Each layer has its
// own method Err, which calls the function Err, so that it also works for a nil layer.
func (b *Base) Err() error {
	if b == nil {
		return fmt.Errorf("layer: the layer is nil, want one that its constructor returns")
	}
	if b.err == nil && b.name == "" {
		return fmt.Errorf("layer: the layer is a zero value, want one that its constructor returns")
	}
	return b.err
}

// Model returns the nodes of the weights in the last graph that the layer was applied in, as the layers of golgi do. It returns
// nil if the layer was never applied, or if the garbage collector has freed that graph: a layer does not keep a graph alive.
//
// Use Params().Nodes(g) in a training loop, since it names the graph. If the layer is applied in a second graph, for example for
// an evaluation, Model returns the nodes of the second graph, and these have no gradient.
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

func (b *Base) base() *Base { return b }

// Layer is a pointer to a layer: a struct that embeds Base.
type Layer[L any] interface {
	*L
	base() *Base
}

// Err returns what is wrong with a layer, which may be nil.
func Err[L any, P Layer[L]](l P) error {
	if l == nil {
		return fmt.Errorf("layer: the %T is nil, want one that its constructor returns", l)
	}
	return l.base().Err()
}

// Use returns an error if the layer cannot be applied to x, and records the graph of x for Model. A layer calls it first whenever
// it is applied.
func Use[L any, P Layer[L]](l P, x *G.Node) error {
	if err := Err(l); err != nil {
		return err
	}
	b := l.base()
	if x == nil {
		return fmt.Errorf("%s: the input is missing, want a node", b.name)
	}
	g := x.Graph()
	if g == nil {
		return fmt.Errorf("%s: the input belongs to no graph", b.name)
	}
	last := weak.Make(g)
	b.last.Store(&last)
	return nil
}

// useSequence is Use for a layer that takes (batch, length, axis). size returns the size of the last axis; it is called if the layer is
// valid.
func useSequence[L any, P Layer[L]](l P, x *G.Node, axis string, size func() int) error {
	if err := Use(l, x); err != nil {
		return err
	}
	b := l.base()
	if s := x.Shape(); len(s) != 3 || s[2] != size() {
		return fmt.Errorf("%s: x has shape %v, want (batch, length, %s) = (any, any, %d)", b.name, s, axis, size())
	}
	if dt := b.params[0].Value.Dtype(); x.Dtype() != dt {
		return fmt.Errorf("%s: x is of %v, want %v like the weights", b.name, x.Dtype(), dt)
	}
	return nil
}

// Build makes a layer. f sets the fields of an empty layer and returns its weights. If err is not nil, or f returns an error, the
// layer keeps that error for Err.
//
// Build calls f twice. The first call adds up the bytes of all weights, including those of the layer's parts; Options.New then
// draws nothing and returns a tensor of one element, and the layer is thrown away. If the weights do not fit into the machine's
// memory, the layer has an error that names the sizes, which is a list of names and values in turn.
//
// what is the package and the kind of layer, such as "nn: MambaBlock". A layer without a name is named after its kind.
func Build[L any, P Layer[L]](what string, sizes []any, o Options, err error, f func(l P, o Options) (Params, error)) P {
	l, name := P(new(L)), o.Name
	if name == "" {
		_, name, _ = strings.Cut(what, ": ")
	}
	if err == nil && f == nil {
		err = fmt.Errorf("%s: the function that makes the layer is missing", what)
	}
	if err == nil && !o.counting() && !o.counted {
		err = o.measure(what, sizes, func(o Options) error {
			_, err := f(new(L), o)
			return err
		})
		o.counted = true
	}
	var params Params
	if err == nil {
		params, err = f(l, o)
	}
	if err != nil {
		l = new(L)
	}
	l.base().Init(name, err, params...)
	return l
}

// build is Build for the layers of this package. It checks the sizes, a list of name and value in turn, and collects the options.
func build[L any, P Layer[L]](what string, opts []Option, bias bool, sizes []any, f func(l P, o Options) (Params, error)) P {
	err := axes(sizes...)
	o, wrong := Collect(opts, bias)
	if wrong == nil && !o.Place.OnHost() {
		wrong = fmt.Errorf("a layer by itself is not offered on a device, want nn.MambaBlock, nn.MambaStack or nn.LM")
	}
	if err == nil {
		err = wrong
	}
	what = "layer: " + what
	named := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	return Build(what, sizes, o, named(err), func(l P, o Options) (Params, error) {
		params, err := f(l, o)
		return params, named(err)
	})
}

// axes checks the sizes of axes, given as name and value in turn.
func axes(sizes ...any) error {
	for i := 0; i < len(sizes); i += 2 {
		if err := size.Axis(sizes[i+1].(int)); err != nil {
			return fmt.Errorf("%s %w", sizes[i], err)
		}
	}
	return nil
}

// Together returns the weights of parts, in order, or the first error of a part.
func Together(parts ...interface {
	Params() Params
	Err() error
}) (params Params, err error) {
	for _, p := range parts {
		if err := p.Err(); err != nil {
			return nil, err
		}
		params = append(params, p.Params()...)
	}
	return params, nil
}

// Lift calls apply, the Apply of a layer, with the node of x. Layers implement Fwd, the method of golgi's interface, with it.
func Lift(x G.Input, apply func(*G.Node) (*G.Node, error)) G.Result {
	if apply == nil {
		return G.Err(fmt.Errorf("layer: Lift: the function is missing, want the Apply of a layer"))
	}
	if x == nil {
		return G.LiftResult(apply(nil))
	}
	if err := G.CheckOne(x); err != nil {
		return G.Err(err)
	}
	return G.LiftResult(apply(x.Node()))
}

// Effective returns the nodes that a layer computes with, one for each weight, as Param.Effective does. The node of a nil weight
// is nil.
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

// orDefault returns n, or a default for 0.
func orDefault(n, byDefault int) int {
	if n == 0 {
		return byDefault
	}
	return n
}
