package op

import (
	"maps"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
)

// Every run writes its results into the memory of the last run, and they are right.
func TestReuseResults(t *testing.T) {
	build := func(reuse bool) (m G.VM, x *tensor.Dense, y *G.Value) {
		g := G.NewGraph()
		x = tensor.New(tensor.WithShape(1, 2, 3), tensor.WithBacking([]float32{1, 2, 3, 4, 5, 6}))
		w := tensor.New(tensor.WithShape(3, 3), tensor.WithBacking([]float32{1, 2, 0, 0, 1, 0, 3, 0, 1}))
		n := G.Must(Linear(G.NodeFromAny(g, x, G.WithName("x")), G.NodeFromAny(g, w, G.WithName("w")), nil))
		a, b := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 3), tensor.WithBacking([]float32{1, 2, 3})), G.WithName("a")), G.NodeFromAny(g, tensor.New(tensor.WithShape(3, 1), tensor.WithBacking([]float32{1, 2, 3})), G.WithName("b"))
		n = G.Must(Linear(G.Must(Add(n, n)), G.Must(LowRank(G.NodeFromAny(g, w.Clone(), G.WithName("w2")), a, b, 2)), nil))
		y = new(G.Value)
		G.Read(n, y)
		if reuse {
			ReuseResults(g)
		}
		return G.NewTapeMachine(g), x, y
	}
	plain, plainX, plainY := build(false)
	own, ownX, ownY := build(true)
	var first *float32
	for run := range 4 {
		for i := range 6 {
			v := float32(run*run - i)
			plainX.Data().([]float32)[i], ownX.Data().([]float32)[i] = v, v
		}
		for _, m := range []G.VM{plain, own} {
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
		}
		want, got := (*plainY).Data().([]float32), (*ownY).Data().([]float32)
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("run %d: element %d is %v, want %v", run, i, got[i], want[i])
			}
		}
		if run == 0 {
			first = &got[0]
		} else if first != &got[0] {
			t.Errorf("run %d: the result is in other memory", run)
		}
	}
}

// All operators of this package that return a tensor reuse their result, those that embed operator included.
func TestReuseResultsReachesAll(t *testing.T) {
	g := G.NewGraph()
	w := leaf(g, "w", tensor.Float32, []int{4, 4}, make([]float64, 16))
	y := G.Must(Add(G.Must(LowRank(w, leaf(g, "a", tensor.Float32, []int{1, 4}, make([]float64, 4)), leaf(g, "b", tensor.Float32, []int{4, 1}, make([]float64, 4)), 1)), w))
	ReuseResults(g)
	m := G.NewTapeMachine(g)
	defer m.Close()
	var last [2]G.Value
	for run := range 3 {
		m.Reset()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		for i, n := range []*G.Node{y, node.Operands(y)[0]} {
			if run > 0 && n.Value() != last[i] {
				t.Errorf("run %d: the result of %v is in new memory", run, n)
			}
			last[i] = n.Value()
		}
	}
}

// In a graph with gradients, each operator computes the same results and gradients with the memory of the last run as without, in every run, and so it does in a program.
func TestReuseResultsWithGradients(t *testing.T) {
	for _, u := range uses(1) {
		var want [][]float64
		for mode, name := range []string{"new memory", "the memory of the last run", "a program"} {
			g := G.NewGraph()
			nodes, out, loss, err := u.build(g, tensor.Float32, nil)
			if err != nil {
				t.Fatal(err)
			}
			names := slices.Sorted(maps.Keys(nodes))
			var in G.Nodes
			for _, name := range names {
				in = append(in, nodes[name])
			}
			grads, err := G.Grad(loss, in...)
			if err != nil {
				t.Fatal(err)
			}
			if mode > 0 {
				ReuseResults(g)
			}
			read := slices.Concat(out, grads)
			values := make([]G.Value, len(read))
			var m G.VM
			if mode == 2 {
				if m = operator.NewProgram(g); m == nil {
					t.Fatalf("%s: there is no program for the graph", u.name)
				}
			} else {
				for i, n := range read {
					G.Read(n, &values[i])
				}
				m = G.NewTapeMachine(g)
			}
			var got [][]float64
			for run := range 3 {
				for _, n := range in {
					x := n.Value().Data().([]float32)
					for i := range x {
						x[i] *= []float32{1, 0.5, 2}[run]
					}
				}
				m.Reset()
				if err := m.RunAll(); err != nil {
					t.Fatal(err)
				}
				for i, v := range values {
					if mode == 2 {
						v = read[i].Value()
					}
					got = append(got, slices.Clone(elements(v)))
				}
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if mode == 0 {
				want = got
			}
			for i := range got {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("%s: %s: run %d, value %d: %v, want %v", u.name, name, i/len(values), i%len(values), got[i], want[i])
				}
			}
		}
	}
}

// There is no program for an operator that is not known, nor for gorgonia.Read. A program names an operand without a value.
func TestProgramErrors(t *testing.T) {
	x := func(g *G.ExprGraph, values ...G.NodeConsOpt) *G.Node {
		return G.NewMatrix(g, tensor.Float32, append(values, G.WithShape(2, 2), G.WithName("x"))...)
	}
	for name, build := range map[string]func(g *G.ExprGraph){
		"Mul":  func(g *G.ExprGraph) { G.Must(G.Mul(x(g), x(g))) },
		"Read": func(g *G.ExprGraph) { G.Read(G.Must(Add(x(g), x(g))), new(G.Value)) },
	} {
		g := G.NewGraph()
		if build(g); operator.NewProgram(g) != nil {
			t.Errorf("there is a program for a graph with %s", name)
		}
	}
	g := G.NewGraph()
	G.Must(Add(x(g), x(g)))
	if err := operator.NewProgram(g).RunAll(); err == nil || !strings.Contains(err.Error(), "operand x has no value") {
		t.Errorf("without a value the error is %v, want one that names x", err)
	}
}
