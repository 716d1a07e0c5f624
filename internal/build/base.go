package build

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"weak"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/internal/size"
)

// Weights are the weights of a layer. It is layer.Params.
type Weights interface {
	Nodes(g *G.ExprGraph) G.Nodes
	Describe(w io.Writer, name string)
	Place() operator.Place
	ToDevice(at operator.Place) error
}

// Base has what every layer has: a name, weights, and the error of its configuration. Layers embed it. Build fills it in.
type Base[W Weights] struct {
	core
	params W
}

// core is the part of Base that does not depend on the type of the weights.
type core struct {
	name string
	err  error
	last atomic.Pointer[weak.Pointer[G.ExprGraph]] // weak: a layer does not keep graphs alive
	over overTime

	place func() operator.Place // where the weights are
}

func (c *core) self() *core { return c }

// Name returns the layer's name.
func (c *core) Name() string { return c.name }

// Err returns what is wrong with the layer, or nil. A layer that was not made by its constructor is invalid. Each layer has its
// own method Err, which calls the function Err, so that it also works for a nil layer.
func (c *core) Err() error {
	if c.err == nil && c.name == "" {
		return fmt.Errorf("layer: the layer is a zero value, want one that its constructor returns")
	}
	return c.err
}

// init sets the layer up. err is what is wrong with its configuration, or nil; a layer with an error has no weights.
func (b *Base[W]) init(o Options, name string, err error, params W) {
	if b.name, b.err, b.over.dtype = name, err, o.Dtype; err == nil {
		b.params, b.place = params, params.Place
	}
}

// Params returns the layer's weights, in order.
func (b *Base[W]) Params() W { return b.params }

// Describe prints the layer's weights.
func (b *Base[W]) Describe() { b.params.Describe(os.Stdout, b.name) }

// Model returns the nodes of the weights in the last graph that the layer was applied in, as the layers of golgi do. It returns
// nil if the layer was never applied, or if the garbage collector has freed that graph: a layer does not keep a graph alive.
//
// Use Params().Nodes(g) in a training loop, since it names the graph. If the layer is applied in a second graph, for example for
// an evaluation, Model returns the nodes of the second graph, and these have no gradient.
func (b *Base[W]) Model() G.Nodes {
	if last := b.last.Load(); last != nil {
		if g := last.Value(); g != nil {
			return b.params.Nodes(g)
		}
	}
	return nil
}

// Layer is a pointer to a layer: a struct that embeds Base.
type Layer[L any] interface {
	*L
	self() *core
}

// Err returns what is wrong with a layer, which may be nil.
func Err[L any, P Layer[L]](l P) error {
	if l == nil {
		return fmt.Errorf("layer: the layer is nil, want one that its constructor returns")
	}
	return l.self().Err()
}

// Use returns an error if the layer cannot be applied to x, and records the graph of x for Model. A layer calls it first whenever
// it is applied.
func Use[L any, P Layer[L]](l P, x *G.Node) error {
	if err := Err(l); err != nil {
		return err
	}
	c := l.self()
	if x == nil {
		return fmt.Errorf("%s: the input is missing, want a node", c.name)
	}
	g := x.Graph()
	if g == nil {
		return fmt.Errorf("%s: the input belongs to no graph", c.name)
	}
	last := weak.Make(g)
	c.last.Store(&last)
	return nil
}

// At applies f to x in the place of the layer's weights. If x comes from the host, so does the result.
func At[L any, P Layer[L]](l P, x *G.Node, f func(x *G.Node) (*G.Node, error)) (*G.Node, error) {
	if err := Use(l, x); err != nil {
		return nil, err
	}
	e := EdgeOf(l.self().place(), x)
	there, err := e.In(x)
	if err != nil {
		return nil, err
	}
	if there, err = f(there); err != nil {
		return nil, err
	}
	return e.Out(there)
}

// Made is a layer with weights W, which New sets up.
type Made[W Weights] interface {
	init(o Options, name string, err error, params W)
}

// New makes a layer. f sets the fields of an empty layer and returns its weights. If err is not nil, or f returns an error, the
// layer keeps that error for Err.
//
// New calls f twice. The first call adds up the bytes of all weights, including those of the layer's parts; Options.New then
// draws nothing and returns a tensor of one element, and the layer is thrown away. If the weights do not fit into the machine's
// memory, the layer has an error that names the sizes, which is a list of names and values in turn.
//
// what is the package and the kind of layer, such as "nn: MambaBlock". A layer without a name is named after its kind.
func New[L any, W Weights, P interface {
	Layer[L]
	Made[W]
}](what string, sizes []any, o Options, err error, f func(l P, o Options) (W, error)) P {
	l, name := P(new(L)), o.Name
	if name == "" {
		_, name, _ = strings.Cut(what, ": ")
	}
	if err == nil && !o.counting() && !o.counted {
		err = o.measure(what, sizes, func(o Options) error {
			_, err := f(new(L), o)
			return err
		})
		o.counted = true
	}
	var params W
	if err == nil {
		params, err = f(l, o)
	}
	if err == nil && !o.Place.OnHost() {
		err = params.ToDevice(o.Place)
	}
	if err != nil {
		l = new(L)
	}
	l.init(o, name, err, params)
	return l
}

// Axes checks the sizes of axes, given as name and value in turn.
func Axes(sizes ...any) error {
	for i := 0; i < len(sizes); i += 2 {
		if err := size.Axis(sizes[i+1].(int)); err != nil {
			return fmt.Errorf("%s %w", sizes[i], err)
		}
	}
	return nil
}

// Part is a layer with weights W.
type Part[W any] interface {
	Params() W
	Err() error
}

// Together returns the weights of parts, in order, or the first error of a part.
func Together[W ~[]E, E any](parts ...Part[W]) (params W, err error) {
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
	if x == nil {
		return G.LiftResult(apply(nil))
	}
	if err := G.CheckOne(x); err != nil {
		return G.Err(err)
	}
	return G.LiftResult(apply(x.Node()))
}

// Fwd is Lift for a layer over time.
func Fwd[L any, P Layer[L]](l P, x G.Input) G.Result {
	return Lift(x, func(x *G.Node) (*G.Node, error) { return Apply(l, x, nil) })
}

// OrDefault returns v, or a default for the zero value.
func OrDefault[T comparable](v, byDefault T) T {
	if v == *new(T) {
		return byDefault
	}
	return v
}

// Edge is where values go from the host to a device and back: at the first layer that has its weights on a device.
type Edge struct {
	at   operator.Place // of the weights
	both bool           // x came from the host, and so the results go back there
}

// EdgeOf returns the edge of a layer with its weights at a place, applied to x.
func EdgeOf(at operator.Place, x *G.Node) Edge {
	return Edge{at, !at.OnHost() && operator.PlaceOf(x).OnHost()}
}

// In uploads a node that is on the host, if the weights are on a device. A nil node stays nil.
func (e Edge) In(n *G.Node) (*G.Node, error) {
	if n == nil || e.at.OnHost() || !operator.PlaceOf(n).OnHost() {
		return n, nil
	}
	return e.at.Upload(n)
}

// Out downloads a result if x came from the host. A nil node stays nil.
func (e Edge) Out(n *G.Node) (*G.Node, error) {
	if n == nil || !e.both || operator.PlaceOf(n).OnHost() {
		return n, nil
	}
	return operator.Download(n)
}
