package op

import (
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Every run writes its results where the last one's were, and they are right.
func TestReuseResults(t *testing.T) {
	build := func(reuse bool) (m G.VM, x *tensor.Dense, y *G.Value) {
		g := G.NewGraph()
		x = tensor.New(tensor.WithShape(1, 2, 3), tensor.WithBacking([]float32{1, 2, 3, 4, 5, 6}))
		w := tensor.New(tensor.WithShape(3, 3), tensor.WithBacking([]float32{1, 2, 0, 0, 1, 0, 3, 0, 1}))
		node := G.Must(Linear(G.NodeFromAny(g, x, G.WithName("x")), G.NodeFromAny(g, w, G.WithName("w")), nil))
		node = G.Must(Add(node, node))
		y = new(G.Value)
		G.Read(node, y)
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
			t.Errorf("run %d: the result is at another place", run)
		}
	}
}
