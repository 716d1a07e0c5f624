package mamba_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/op"
)

// The benchmarks of the public packages. make bench prints a table, and docs/benchmarks.md explains its rows. All numbers are float32. A row's
// name has its sizes as benchstat's keys: B batch, L length, M d_model, D channels, N state.

// work describes one run of a benchmark. Zero fields are not reported.
type work struct {
	tokens int     // rows of the input, batch × length; reported as ns/token and tokens/s
	tdn    int     // steps × channels × states; reported as ns/tdn
	flop   float64 // multiplications and additions; reported as GFLOP/s
}

// times returns the work whose flop is n times that of w. A training step counts as three forward passes, since each of the two gradients of a
// matrix product needs a product of the same size.
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

// program is a function that a benchmark measures, with a check of its results.
type program struct {
	run   func() error
	check func() error // returns an error if the results of a run are not plausible, so that no benchmark measures a program that does nothing
	close func() error
}

// start makes a program, runs it once without measuring, and checks the results.
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

// measure measures one row of the table. It makes the program once for all runs of -count.
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

// leftOut prints, in place of a row of the table, why it is missing.
func leftOut(b *testing.B, name, why string) {
	fmt.Printf("# left out: %s/%s: %s\n", b.Name(), name, why)
}

// passes are the parts of a benchmark of a layer: the forward pass alone, and with the gradients.
var passes = []struct {
	name     string
	backward bool
	runs     int // work in units of a forward pass
}{{"forward", false, 1}, {"forward+backward", true, 3}}

// newProgram returns a program that computes y, of the given shape, and the gradients with respect to the nodes by, if any, and copies them out of the
// graph. The gradient of y is an input of the graph, since a loss of Gorgonia's operators would take as much time as a fast layer.
func newProgram(y *G.Node, shape tensor.Shape, by ...*G.Node) program {
	nodes, err := withGradients(y, shape, by)
	if err != nil {
		return failed(err)
	}
	values := make([]G.Value, len(nodes))
	for i, n := range nodes {
		G.Read(n, &values[i])
	}
	return programOf(G.NewTapeMachine(y.Graph()), shape, by, func(i int) G.Value { return values[i] })
}

// newReusingProgram is newProgram with op.ReuseResults, on the machine of train.Trainer. Results and gradients stay in the graph's nodes.
func newReusingProgram(y *G.Node, shape tensor.Shape, by ...*G.Node) program {
	nodes, err := withGradients(y, shape, by)
	if err != nil {
		return failed(err)
	}
	op.ReuseResults(y.Graph())
	return programOf(operator.NewProgram(y.Graph()), shape, by, func(i int) G.Value { return nodes[i].Value() })
}

// withGradients returns y and its gradients with respect to the nodes by.
func withGradients(y *G.Node, shape tensor.Shape, by G.Nodes) (G.Nodes, error) {
	if len(by) == 0 {
		return G.Nodes{y}, nil
	}
	grads, err := G.Backpropagate(G.Nodes{y}, G.Nodes{input(y.Graph(), "gradient", shape...)}, by)
	return append(G.Nodes{y}, grads...), err
}

// programOf returns a program that runs a machine. Result 0 has the given shape; those after it are the gradients with respect to the nodes by.
func programOf(m G.VM, shape tensor.Shape, by G.Nodes, result func(i int) G.Value) program {
	return program{
		run: func() error {
			defer m.Reset()
			return m.RunAll()
		},
		check: func() error {
			shapes := []tensor.Shape{shape}
			for _, n := range by {
				shapes = append(shapes, n.Shape())
			}
			for i, shape := range shapes {
				if err := sane(result(i), shape); err != nil {
					return fmt.Errorf("result %d: %w", i, err)
				}
			}
			return nil
		},
		close: m.Close,
	}
}

func failed(err error) program { return program{run: func() error { return err }} }

// sane returns an error if a value has another shape, is not finite, or has only equal elements, like memory that was never written.
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

// input returns an input node of normally distributed elements.
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
