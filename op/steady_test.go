package op

import (
	"runtime"
	"runtime/debug"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// heldBy is the number of bytes of the values that a machine makes anew in each run of a graph, since Gorgonia keeps those
// of the run before: those of all nodes but inputs, constants, and views, which have memory of their own in no run.
func heldBy(g *G.ExprGraph) (bytes int) {
	for _, n := range g.AllNodes() {
		if _, ok := n.Op().(*view); ok || n.Op() == nil || n.Type() == nil || n.IsScalar() || g.From(n.ID()).Len() == 0 {
			continue
		}
		bytes += n.Shape().TotalSize() * int(n.Dtype().Size())
	}
	return bytes
}

// steady returns the bytes that a run of a machine allocates when it is not one of the first.
func steady(t *testing.T, g *G.ExprGraph) int {
	t.Helper()
	m := G.NewTapeMachine(g)
	defer m.Close()
	run := func() {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		m.Reset()
	}
	run()
	least := allocated(run)
	for range 4 { // a run in which more tasks meet than ever before borrows more
		least = min(least, allocated(run))
	}
	return least
}

var poolsForget bool

// In the steady state a run allocates the values that the machine holds, and little else: what blocks work in, and what they
// keep for the backward pass, is used again.
func TestBlockSteadyState(t *testing.T) {
	if poolsForget {
		t.Skip("pools forget")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // what a collection takes from Go's own pools is no matter of ours
	defer runtime.GC()
	for _, level := range levels {
		for _, train := range []bool{false, true} {
			p := &blockProblem{batch: 2, length: 300, model: 96, channels: 192, state: 16, width: 4, rank: 6,
				cfg: BlockConfig{Eps: 1e-5, Recompute: level}}
			g := G.NewGraph()
			nodes, out, loss, err := p.fill(80).use(false).build(g, tensor.Float32, nil)
			if err != nil {
				t.Fatal(err)
			}
			if train {
				if _, err := G.Grad(loss, nodes["X"], nodes["InProj"]); err != nil {
					t.Fatal(err)
				}
			} else if g = g.SubgraphRoots(out...); len(g.AllNodes()) == 0 {
				t.Fatal("empty")
			}
			held, got := heldBy(g), steady(t, g)
			t.Logf("recompute %v, gradients %t: a run allocates %d bytes, its values are %d", level, train, got, held)
			if most := held + 64<<10; got > most {
				t.Errorf("recompute %v, gradients %t: a run allocates %d bytes, want at most %d: its values are %d", level, train, got, most, held)
			}
		}
	}
}
