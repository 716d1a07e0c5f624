package mamba_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/benchtest"
)

// The benchmarks that a user would run: make bench prints the table, docs/benchmarks.md explains its rows. Everything is
// float32. A row's name says its sizes by the letters of benchstat's keys: B batch, L length, M d_model, D channels, N state.

// work is what one run of a benchmark does. What is zero is not reported.
type work struct {
	tokens int     // rows of the input, batch × length: ns/token and tokens/s
	tdn    int     // steps × channels × states: ns/tdn
	flop   float64 // multiplications and additions: GFLOP/s
}

// times is the work of n runs. A training step counts as three runs forward: the products of the two gradients are as large.
func (w work) times(n int) work {
	w.flop *= float64(n)
	return w
}

func (w work) report(b *testing.B) {
	ns := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
	if w.tdn > 0 {
		b.ReportMetric(ns/float64(w.tdn), "ns/tdn")
	}
	if w.tokens > 0 {
		b.ReportMetric(ns/float64(w.tokens), "ns/token")
		b.ReportMetric(float64(w.tokens)*1e9/ns, "tokens/s")
	}
	if w.flop > 0 {
		b.ReportMetric(w.flop/ns, "GFLOP/s")
	}
}

// program is what a benchmark measures.
type program struct {
	run   func() error
	check func() error // whether the results of a run are sane: a benchmark must not measure nothing
	close func() error
}

// start makes a program and runs it once: what only the first run does is not measured, and its results are checked.
func start(b *testing.B, build func() program) program {
	b.Helper()
	p := build()
	if err := p.run(); err != nil {
		b.Fatal(err)
	}
	if err := p.check(); err != nil {
		b.Fatal(err)
	}
	return p
}

// measure is one row of the table. The program is made once for all of -count's runs.
func measure(b *testing.B, name string, w work, build func() program) {
	b.Helper()
	var p program
	b.Run(name, func(b *testing.B) {
		if p.run == nil {
			p = start(b, build)
		}
		b.ReportAllocs()
		benchtest.Processors(b)
		for b.Loop() {
			if err := p.run(); err != nil {
				b.Fatal(err)
			}
		}
		w.report(b)
	})
	if p.close != nil {
		if err := p.close(); err != nil {
			b.Fatal(err)
		}
	}
}

// leftOut says in the table that a row is missing, and why.
func leftOut(b *testing.B, name, why string) {
	fmt.Printf("# left out: %s/%s: %s\n", b.Name(), name, why)
}

// passes are what a benchmark of a layer runs: forward alone, and with the gradients.
var passes = []struct {
	name     string
	backward bool
	runs     int // as multiples of the work of the forward pass
}{{"forward", false, 1}, {"forward+backward", true, 3}}

// newProgram runs the graph of y, of the shape given, and the gradients by the nodes, if there are any. The gradient that
// comes in is a leaf: a loss of Gorgonia's would cost as much as a fast layer.
func newProgram(y *G.Node, shape tensor.Shape, by ...*G.Node) program {
	values := make([]G.Value, 1+len(by))
	shapes := []tensor.Shape{shape}
	if len(by) > 0 {
		grads, err := G.Backpropagate(G.Nodes{y}, G.Nodes{input(y.Graph(), "gradient", shape...)}, by)
		if err != nil {
			return failed(err)
		}
		for i, n := range grads {
			G.Read(n, &values[1+i])
			shapes = append(shapes, by[i].Shape())
		}
	}
	G.Read(y, &values[0])
	m := G.NewTapeMachine(y.Graph())
	return program{
		run: func() error {
			defer m.Reset()
			return m.RunAll()
		},
		check: func() error {
			for i, v := range values {
				if err := sane(v, shapes[i]); err != nil {
					return fmt.Errorf("result %d: %w", i, err)
				}
			}
			return nil
		},
		close: m.Close,
	}
}

func failed(err error) program { return program{run: func() error { return err }} }

// sane reports a value that is not of the shape, that is not finite, or that is the same everywhere, as what was never
// computed would be.
func sane(v G.Value, shape tensor.Shape) error {
	if v == nil || !v.Shape().Eq(shape) {
		return fmt.Errorf("it is %v, want a value of shape %v", v, shape)
	}
	x, ok := v.Data().([]float32)
	if !ok {
		return fmt.Errorf("it is of %T, want float32", v.Data())
	}
	low, high, err := bounds(x)
	if err == nil && low == high && len(x) > 1 {
		err = fmt.Errorf("all elements are %v", low)
	}
	return err
}

// bounds returns the smallest and the largest element, and an error if one is not finite.
func bounds(x []float32) (low, high float32, err error) {
	low, high = x[0], x[0]
	for i, e := range x {
		if e := float64(e); math.IsNaN(e) || math.IsInf(e, 0) {
			return low, high, fmt.Errorf("element %d is %v", i, e)
		}
		low, high = min(low, e), max(high, e)
	}
	return low, high, nil
}

// input makes a leaf of normally distributed elements.
func input(g *G.ExprGraph, name string, shape ...int) *G.Node {
	r := rand.New(rand.NewPCG(1, uint64(len(name))))
	return leaf(g, name, func() float32 { return float32(r.NormFloat64()) }, shape...)
}

func leaf(g *G.ExprGraph, name string, draw func() float32, shape ...int) *G.Node {
	v := make([]float32, tensor.Shape(shape).TotalSize())
	for i := range v {
		v[i] = draw()
	}
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
}
