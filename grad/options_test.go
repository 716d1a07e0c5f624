package grad_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

var (
	_ grad.TB = (*testing.T)(nil)
	_ grad.TB = (*rapid.T)(nil)
)

// fatal is a testing.TB that records the message of Fatalf.
type fatal struct{ message string }

func (f *fatal) Helper()                           {}
func (f *fatal) Fatalf(format string, args ...any) { f.message = fmt.Sprintf(format, args...) }

func TestMustCheck(t *testing.T) {
	x := []grad.Input{{Name: "x", Value: dense([]int{2}, 1, 2)}}
	var f fatal
	grad.MustCheck(&f, grad.Single(func(in G.Nodes) (*G.Node, error) { return G.Square(in[0]) }), x)
	if f.message != "" {
		t.Errorf("the check of a right gradient fails: %s", f.message)
	}
	o := &symbolic{forward: forward{name: "copy", operands: 1}}
	grad.MustCheck(&f, apply(o), x)
	if !strings.HasPrefix(f.message, "grad: lisp machine: x: the gradient is zero") {
		t.Errorf("a missing gradient fails with %q", f.message)
	}
	f.message = ""
	grad.MustCheck(&f, apply(o), x, grad.Machines(grad.Tape))
	if f.message != "" {
		t.Errorf("a gradient that only the lisp machine lacks fails on the tape machine: %s", f.message)
	}
}

// The report has, for each machine, the element with the largest difference, also if the check passes.
func TestReport(t *testing.T) {
	o := &automatic{symbolic{forward: forward{name: "copy", operands: 1}}}
	o.fault = func(_ int, _ [][]float64, d []float64) { d[1] += 1e-5; d[3] += 1e-4; d[4] -= 1e-5 }
	inputs := []grad.Input{{Name: "x", Value: dense([]int{3, 2}, 1, 2, 3, 4, 5, 6)}}
	for _, opts := range [][]grad.Option{nil, {grad.Tolerance(0, 1)}} {
		report, err := grad.Check(apply(o), inputs, opts...)
		if passes := opts != nil; (err == nil) != passes {
			t.Errorf("error %v with options: %t", err, passes)
		}
		if report.Elements != 6 || len(report.Worst) != 2 {
			t.Fatalf("%v: want 6 elements, and the worst of two machines", report)
		}
		for i, m := range []grad.Machine{grad.Tape, grad.Lisp} {
			e := report.Worst[i]
			if e.Machine != m || e.Input != "x" || !slices.Equal(e.Index, []int{1, 1}) || math.Abs(e.Absolute()-1e-4) > 1e-9 {
				t.Errorf("worst %v, want x at [1 1], off by 1e-4, on the %v", e, m)
			}
			if want := 1e-4 / max(math.Abs(e.Gradient), math.Abs(e.Numeric)); math.Abs(e.Relative()-want) > 1e-8 {
				t.Errorf("relative difference %v, want %v", e.Relative(), want)
			}
		}
		if s := report.String(); !strings.Contains(s, "worst on the lisp machine: x: at [1 1] the gradient is") {
			t.Errorf("the report is\n%s", s)
		}
	}
}

// A sample has the given size for every input. The same seed gives the same sample, and another seed another one.
func TestSample(t *testing.T) {
	const size = 200
	o := &automatic{symbolic{forward: forward{name: "product", operands: 2}}}
	// The gradient of each element has a different error, so the worst element shows which elements were sampled.
	o.fault = func(_ int, _ [][]float64, d []float64) {
		for k := range d {
			d[k] += float64(k+1) * 1e-3
		}
	}
	inputs := []grad.Input{{Name: "x", Value: dense([]int{size}, wave(size, 1)...)}, {Name: "w", Value: dense([]int{size}, wave(size, 2)...)}}
	seen := map[string]bool{}
	for seed := range uint64(4) {
		first, err := grad.Check(apply(o), inputs, grad.Sample(5, seed))
		if err == nil || !strings.Contains(err.Error(), "tape machine: x: 5 of 5 elements") || !strings.Contains(err.Error(), "tape machine: w: 5 of 5") {
			t.Errorf("a sample of 5 of each input fails with %v", err)
		}
		if first.Elements != 10 {
			t.Errorf("%d elements checked, want 10", first.Elements)
		}
		second, _ := grad.Check(apply(o), inputs, grad.Sample(5, seed))
		if first.String() != second.String() {
			t.Errorf("one seed gives\n%v\nand\n%v", first, second)
		}
		seen[first.String()] = true
	}
	if len(seen) < 3 {
		t.Errorf("4 seeds give %d samples", len(seen))
	}
}

// A layer makes nodes of its own weights. They are differentiated, and the layer's tensors are neither written to nor bound.
func TestInputWithNode(t *testing.T) {
	weight := dense([]int{2, 2}, 1, 2, 3, 4)
	node := func(g *G.ExprGraph) *G.Node {
		for _, n := range g.ByName("layer's weight") {
			return n
		}
		return G.NodeFromAny(g, weight, G.WithName("layer's weight"))
	}
	layer := func(wrong bool) grad.Func {
		o := &automatic{symbolic{forward: forward{name: fmt.Sprint("product ", wrong), operands: 2}}}
		o.fault = func(operand int, in [][]float64, d []float64) {
			if &in[1][0] == &weight.Data().([]float64)[0] {
				t.Error("the layer's own tensor is bound")
			}
			if wrong && operand == 1 {
				d[2] = -d[2]
			}
		}
		return grad.Single(func(in G.Nodes) (*G.Node, error) { return G.ApplyOp(o, in[0], node(in[0].Graph())) })
	}
	inputs := []grad.Input{{Name: "x", Value: dense([]int{2, 2}, 5, 6, 7, 8)}, {Name: "weight", Value: weight, Node: node}}
	if report := grad.MustCheck(t, layer(false), inputs); report.Elements != 8 {
		t.Errorf("%d elements checked, want 8", report.Elements)
	}
	_, err := grad.Check(layer(true), inputs)
	for _, m := range []string{"tape machine", "lisp machine"} {
		if want := m + ": weight: 1 of 4 elements checked are wrong, the worst at [1 0]"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, which lacks %s", err, want)
		}
	}
	if !slices.Equal(weight.Data().([]float64), []float64{1, 2, 3, 4}) {
		t.Errorf("the weight has become %v", weight)
	}
}

// Constant inputs of integers work on both machines, and are checked for changes.
func TestConstantInput(t *testing.T) {
	inputs := []grad.Input{
		{Name: "x", Value: dense([]int{3}, wave(3, 1)...)},
		{Name: "flags", Value: tensor.New(tensor.WithShape(3), tensor.WithBacking([]int{2, 0, 2})), Constant: true},
		{Name: "scalar flag", Value: tensor.New(tensor.FromScalar(1)), Constant: true},
	}
	f := apply(&automatic{symbolic{forward: forward{name: "product", operands: 2}, without: 2}})
	of2 := func(in G.Nodes) (G.Nodes, error) { return f(in[:2]) }
	if report := grad.MustCheck(t, of2, inputs); report.Elements != 3 {
		t.Errorf("%d elements checked, want 3: those of x", report.Elements)
	}
	_, err := grad.Check(func(in G.Nodes) (G.Nodes, error) {
		in[1].Value().Data().([]int)[1]++ // the function, not an operator, changes its input
		return of2(in)
	}, inputs)
	if want := "grad: forward: the run overwrites input flags: at [1], 0 became 1"; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}

// An input can have any memory layout: the function gets its elements in row-major order.
func TestInputLayout(t *testing.T) {
	columns := dense([]int{3, 2}, 1, 2, 3, 4, 5, 6)
	if err := columns.T(); err != nil {
		t.Fatal(err)
	}
	whole := dense([]int{2, 4}, 0, 1, 3, 5, 0, 2, 4, 6)
	part, err := whole.Slice(nil, G.S(1, 4))
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []*tensor.Dense{columns, part.(*tensor.Dense)} {
		o := &automatic{symbolic{forward: forward{name: "copy", operands: 1}}}
		o.do = func(in [][]float64) {
			for k, x := range []float64{1, 3, 5, 2, 4, 6} {
				if math.Abs(in[0][k]-x) > 0.1 { // more than a step of the finite differences
					t.Errorf("the function sees %v", in[0])
				}
			}
		}
		grad.MustCheck(t, apply(o), []grad.Input{{Name: "x", Value: value}})
		if !slices.Equal(whole.Data().([]float64), []float64{0, 1, 3, 5, 0, 2, 4, 6}) {
			t.Errorf("the input has become %v", whole)
		}
	}
}

// A smaller Step keeps the finite differences inside the domain, or on one side of a kink, but has fewer right digits.
func TestStep(t *testing.T) {
	f := grad.Single(func(in G.Nodes) (*G.Node, error) { return G.Abs(in[0]) })
	inputs := []grad.Input{{Name: "x", Value: dense([]int{2}, 1e-7, -1e-7)}}
	if _, err := grad.Check(f, inputs); err == nil {
		t.Error("steps of 1e-3 to 1e-6 do not see a kink 1e-7 away")
	}
	grad.MustCheck(t, f, inputs, grad.Step(1e-5))
}

func TestCheckErrors(t *testing.T) {
	x := func() grad.Input { return grad.Input{Name: "x", Value: dense([]int{2, 3}, wave(6, 1)...)} }
	y := grad.Input{Name: "y", Value: dense([]int{2, 3}, wave(6, 2)...)}
	other := G.NewGraph()
	square := grad.Single(func(in G.Nodes) (*G.Node, error) { return G.Square(in[0]) })
	with := func(change func(*grad.Input)) []grad.Input {
		in := x()
		change(&in)
		return []grad.Input{in}
	}
	node := func(f func(*G.ExprGraph) *G.Node) []grad.Input {
		return with(func(in *grad.Input) { in.Node = f })
	}
	for _, test := range []struct {
		f      grad.Func
		inputs []grad.Input
		opts   []grad.Option
		want   string
	}{
		{nil, []grad.Input{x()}, nil, "the function is nil"},
		{square, nil, nil, "no input to differentiate by"},
		{square, with(func(in *grad.Input) { in.Constant = true }), nil, "no input to differentiate by"},
		{square, with(func(in *grad.Input) { in.Name = "" }), nil, "input 0 has no name"},
		{square, []grad.Input{x(), y, x()}, nil, "two inputs have the name x; Gorgonia would take them for one"},
		{square, with(func(in *grad.Input) { in.Value = nil }), nil, "input x has no value"},
		{square, with(func(in *grad.Input) { in.Value = tensor.New(tensor.WithBacking([]float32{1, 2})) }), nil,
			"input x is of float32; want float64, or Constant set"},
		{square, with(func(in *grad.Input) { in.Value = dense([]int{2, 2}, 1, 2, math.NaN(), 4) }), nil,
			"input x is NaN at [1 0], want a finite number"},
		{square, []grad.Input{x()}, []grad.Option{grad.Sample(0, 1)}, "Sample is 0, want at least 1 element"},
		{square, []grad.Input{x()}, []grad.Option{grad.Step(0)}, "Step is 0, want a positive number"},
		{square, []grad.Input{x()}, []grad.Option{grad.Step(math.NaN())}, "Step is NaN, want a positive number"},
		{square, []grad.Input{x()}, []grad.Option{grad.Tolerance(-1, 1)}, "Tolerance is (-1, 1), want numbers that are not negative"},
		{square, []grad.Input{x()}, []grad.Option{grad.Tolerance(0, 0)}, "Tolerance is (0, 0), want numbers"},
		{square, []grad.Input{x()}, []grad.Option{grad.Machines()}, "Machines is empty"},
		{square, []grad.Input{x()}, []grad.Option{grad.Machines(7)}, "Machines has machine 7, want Tape or Lisp"},
		{square, []grad.Input{x()}, []grad.Option{grad.Machines(grad.Lisp, grad.Lisp)}, "Machines has the lisp machine twice"},
		{func(G.Nodes) (G.Nodes, error) { return nil, errors.New("no such shape") }, []grad.Input{x()}, nil, "building the function: no such shape"},
		{func(G.Nodes) (G.Nodes, error) { return nil, nil }, []grad.Input{x()}, nil, "the function has no output"},
		{func(in G.Nodes) (G.Nodes, error) { return G.Nodes{in[0], nil}, nil }, []grad.Input{x()}, nil, "output 1 is nil"},
		{func(G.Nodes) (G.Nodes, error) { return G.Nodes{G.NewScalar(other, G.Float64, G.WithName("s"))}, nil }, []grad.Input{x()}, nil,
			"output 0 is not in the graph of the inputs"},
		{func(in G.Nodes) (G.Nodes, error) { return in[1:], nil },
			[]grad.Input{x(), {Name: "flags", Value: tensor.New(tensor.WithBacking([]int{1, 0})), Constant: true}}, nil,
			"output 0 is flags :: Vector int, want one of float64"},
		{func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Read(in[0], new(G.Value))}, nil }, []grad.Input{x()}, nil, "want one of float64"},
		{func(in G.Nodes) (G.Nodes, error) {
			n, err := G.Add(in[0], G.NewMatrix(in[0].Graph(), G.Float64, G.WithShape(2, 3), G.WithName("forgotten")))
			return G.Nodes{n}, err
		}, []grad.Input{x()}, nil, "No value bound to node forgotten"},
		{square, node(func(*G.ExprGraph) *G.Node { return nil }), nil, "input x: its Node returned nil"},
		{square, node(func(*G.ExprGraph) *G.Node { return G.NewScalar(other, G.Float64, G.WithName("s")) }), nil,
			"input x: its Node returned a node of another graph"},
		{square, node(func(g *G.ExprGraph) *G.Node { return G.NewMatrix(g, G.Float64, G.WithShape(3, 2), G.WithName("x")) }), nil,
			"input x: its Node returned a node of float64 and shape (3, 2), its Value is of float64 and shape (2, 3)"},
		{square, node(func(g *G.ExprGraph) *G.Node {
			return G.Must(G.Square(G.NewMatrix(g, G.Float64, G.WithShape(2, 3), G.WithName("x"))))
		}), nil, "which is not an input"},
		{square, []grad.Input{x(), {Name: "again", Value: x().Value, Node: func(g *G.ExprGraph) *G.Node { return g.ByName("x")[0] }}}, nil,
			"inputs x and again are the same node"},
	} {
		_, err := grad.Check(test.f, test.inputs, test.opts...)
		if err == nil || !strings.HasPrefix(err.Error(), "grad: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("the error is %v, want one with: %s", err, test.want)
		}
	}
}
