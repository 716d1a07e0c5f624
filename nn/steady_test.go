package nn

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/cpu"
)

// A training step of a language model allocates the values that Gorgonia's machine allocates in every run (those of all nodes but inputs,
// constants and views) and little else. Allocations of Gorgonia's solver are not counted.
func TestTrainingSteadyState(t *testing.T) {
	if poolsForget {
		t.Skip("the race detector makes sync.Pool drop values at random")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a garbage collection would empty the pools
	defer runtime.GC()
	const batch, length, vocab = 4, 100, 64
	lm := NewLM(LMConfig{Config: Config{DModel: 64, NLayer: 3}, Vocab: vocab})
	ids, targets := counting(batch, length, vocab)
	g := G.NewGraph()
	loss := must(lm.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length)))
	tr := newTraining(t, loss, lm.Params())

	held := 0
	for _, n := range g.AllNodes() {
		if n.Op() == nil || n.Type() == nil || n.IsScalar() || g.From(n.ID()).Len() == 0 || strings.HasPrefix(n.Op().String(), "view") {
			continue
		}
		held += 4 * n.Shape().TotalSize()
	}
	solver := G.NewAdamSolver(G.WithLearnRate(0.01))
	least := 0
	for i := range 6 {
		tr.machine.Reset()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := tr.machine.RunAll(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if err := solver.Step(G.NodesToValueGrads(tr.nodes)); err != nil {
			t.Fatal(err)
		}
		if n := int(after.TotalAlloc - before.TotalAlloc); i == 1 || i > 1 && n < least {
			least = n
		}
	}
	t.Logf("a step allocates %d bytes, its values are %d", least, held)
	most := held + 128<<10
	if cpu.Best == cpu.Generic {
		most += 128 << 10 // without assembly gonum computes the products, and allocates in each
	}
	if least > most {
		t.Errorf("a step allocates %d bytes, want at most %d: its values are %d", least, most, held)
	}
}

var poolsForget bool
