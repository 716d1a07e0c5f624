package op

import (
	"maps"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
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

// In a graph with gradients, each operator computes the same results and gradients with the memory of the last run as without, in every run.
func TestReuseResultsWithGradients(t *testing.T) {
	for _, u := range uses(1) {
		var want [][]float64
		for _, reuse := range []bool{false, true} {
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
			values := make([]G.Value, len(out)+len(grads))
			for i, n := range slices.Concat(out, grads) {
				G.Read(n, &values[i])
			}
			if reuse {
				ReuseResults(g)
			}
			m := G.NewTapeMachine(g)
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
				for _, v := range values {
					got = append(got, slices.Clone(elements(v)))
				}
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if !reuse {
				want = got
			}
			for i := range got {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("%s: run %d, value %d: %v, want %v", u.name, i/len(values), i%len(values), got[i], want[i])
				}
			}
		}
	}
}
