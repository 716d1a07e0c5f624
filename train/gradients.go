package train

import (
	"errors"
	"unsafe"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// gradient is a weight of the host with a gradient that collect's operator has collected.
type gradient struct {
	*G.Node
	of collected
	i  int
}

// collected has the gradients of the weights: their sums since the last step, or those of the last run where they lie.
type collected interface {
	grad(i int) *tensor.Dense // nil if no run has computed it
	ofLastRun() bool
}

// Grad returns the gradient.
func (g gradient) Grad() (G.Value, error) {
	if d := g.of.grad(g.i); d != nil {
		return d, nil
	}
	return nil, errors.New("no run has computed it")
}

// stays reports whether a gradient is that of the last run: it is the machine's, so a solver does not clear it.
func stays(w G.ValueGrad) bool {
	g, ok := w.(gradient)
	return ok && g.of.ofLastRun()
}

// mostCollected is the most memory, in bytes, of gradients that collect lets stay until all of them are there.
var mostCollected = mostReused // a variable for tests

// collect adds an operator to a graph that adds all gradients of weights to sums, in one job of all processors. A machine that binds gradients to weights adds
// each on one processor, which takes a fortieth of a small model's step. If there is one run in each step, the operator only notes where the gradients lie: nothing
// writes there before the next run, since all that reads a gradient comes before the operator, and a machine overwrites only what nothing reads any more.
//
// It returns nil, and changes and allocates nothing, unless the weights are on the host, of one type, and not large: a machine frees a gradient that it has added.
func collect(weights, grads G.Nodes, oneRun bool) ([]G.ValueGrad, error) {
	dt, elements := weights[0].Dtype(), 0
	for i, w := range weights {
		if !operator.PlaceOf(w).OnHost() || !operator.PlaceOf(grads[i]).OnHost() || w.Dtype() != dt || grads[i].Dtype() != dt || !grads[i].Shape().Eq(w.Shape()) {
			return nil, nil
		}
		elements += w.Shape().TotalSize()
	}
	if elements*int(dt.Size()) > mostCollected {
		return nil, nil
	}
	d := operator.Definition{Name: "gradients", Dtype: dt, Out: []tensor.Shape{tensor.ScalarShape()}}
	for i, w := range weights {
		d.In = append(d.In, operator.In{Name: w.Name(), Node: grads[i]})
	}
	var of collected
	if dt == tensor.Float32 {
		c := newCollector[float32](weights, oneRun)
		d.Float32, d.Float64, of = c, collector[float64]{}, c
	} else {
		c := newCollector[float64](weights, oneRun)
		d.Float32, d.Float64, of = collector[float32]{}, c, c
	}
	if _, err := operator.Apply(d); err != nil {
		return nil, err
	}
	var all []G.ValueGrad
	for i, w := range weights {
		all = append(all, gradient{w, of, i})
	}
	return all, nil
}

// collector is the function of collect's operator.
type collector[T kernel.Float] struct{ *gradients[T] }

// gradients are those that a collector has collected. Its pointer tells it from others in a graph.
type gradients[T kernel.Float] struct {
	all    []*tensor.Dense // the sums, or the operands of the last run
	sums   [][]T           // nil for the last run
	shapes []tensor.Shape
}

func newCollector[T kernel.Float](weights G.Nodes, oneRun bool) collector[T] {
	c := &gradients[T]{all: make([]*tensor.Dense, len(weights))}
	for i, w := range weights {
		c.shapes = append(c.shapes, w.Shape().Clone())
		if !oneRun {
			c.all[i] = tensor.New(tensor.WithShape(c.shapes[i]...), tensor.Of(w.Dtype()))
			c.sums = append(c.sums, slice[T](c.all[i]))
		}
	}
	return collector[T]{c}
}

func (g *gradients[T]) grad(i int) *tensor.Dense { return g.all[i] }
func (g *gradients[T]) ofLastRun() bool          { return g.sums == nil }

// Forward adds the operands to the sums, or notes where they lie. The result is of no use.
func (c collector[T]) Forward(in []operator.Operand[T], out [][]T) {
	out[0][0] = 0
	if c.ofLastRun() {
		for i, g := range in {
			if c.all[i] == nil || c.all[i].Uintptr() != uintptr(unsafe.Pointer(&g.Data[0])) {
				c.all[i] = tensor.New(tensor.WithShape(c.shapes[i]...), tensor.WithBacking(g.Data))
			}
		}
		return
	}
	parts := make([][]T, len(in))
	for i := range in {
		parts[i] = in[i].Data
	}
	kernel.AddEach(c.sums, parts)
}

// Backward writes zeros: nothing depends on the result.
func (collector[T]) Backward(_ []operator.Operand[T], _, grad [][]T) {
	for _, g := range grad {
		clear(g)
	}
}
