package op

import (
	"runtime"
	"runtime/debug"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// heldBy returns the number of bytes that a machine allocates for values in each run of a graph: the values of all nodes but inputs,
// constants, scalars, and views, which share the memory of a packed vector.
func heldBy(g *G.ExprGraph) (bytes int) {
	for _, n := range g.AllNodes() {
		if isOurs(n.Op()) && !n.Op().CallsExtern() || n.Op() == nil || n.Type() == nil || n.IsScalar() || g.From(n.ID()).Len() == 0 {
			continue
		}
		bytes += n.Shape().TotalSize() * int(n.Dtype().Size())
	}
	return bytes
}

// steady returns the bytes that a run of a machine allocates after the first run.
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
	for range 4 { // a run borrows more workspace if more of its tasks happen to run at the same time than before
		least = min(least, allocated(run))
	}
	return least
}

var poolsForget bool

// After the first run, a run allocates the values that the machine holds, and little else: the workspace of blocks, and the values that they
// keep for the backward pass, are reused.
func TestBlockSteadyState(t *testing.T) {
	if poolsForget {
		t.Skip("the race detector makes sync.Pool drop values at random")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a garbage collection would empty the pools
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
				t.Fatal("the graph without gradients is empty")
			}
			held, got := heldBy(g), steady(t, g)
			t.Logf("recompute %v, gradients %t: a run allocates %d bytes, its values are %d", level, train, got, held)
			if most := held + 64<<10; got > most {
				t.Errorf("recompute %v, gradients %t: a run allocates %d bytes, want at most %d: its values are %d", level, train, got, most, held)
			}
		}
	}
}
