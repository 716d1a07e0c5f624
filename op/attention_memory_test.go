package op

import (
	"runtime"
	"runtime/debug"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// attentionTraining returns a run of a graph with attention, a loss, and the gradients of Q, K and V.
func attentionTraining(tb testing.TB, length, width, heads int) (run func(), bytesOfQ int) {
	g := G.NewGraph()
	in := make(G.Nodes, 3)
	for i, name := range []string{"Q", "K", "V"} {
		v := make([]float64, length*width)
		for j := range v {
			v[j] = float64((j+i)%17)/17 - 0.5
		}
		in[i] = leaf(g, name, tensor.Float32, []int{1, length, width}, v)
	}
	y, err := Attention(AttentionInputs{Q: in[0], K: in[1], V: in[2]}, AttentionConfig{Heads: heads, Rotary: 10000})
	if err != nil {
		tb.Fatal(err)
	}
	weight := make([]float64, width)
	for i := range weight {
		weight[i] = 1
	}
	loss := G.Must(G.Sum(G.Must(Linear(y, leaf(g, "projection", tensor.Float32, []int{1, width}, weight), nil))))
	if _, err := G.Grad(loss, in...); err != nil {
		tb.Fatal(err)
	}
	m := G.NewTapeMachine(g)
	tb.Cleanup(func() { m.Close() })
	return func() {
		if err := m.RunAll(); err != nil {
			tb.Fatal(err)
		}
		m.Reset()
	}, 4 * length * width
}

// Forward and backward pass together, workspace included, allocate a fixed multiple of the bytes of Q for any length. No scores are held;
// at the longest length here they would take 64 times the bytes of Q.
func TestAttentionMemory(t *testing.T) {
	const width, heads = 64, 2
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // each worker has a workspace of its own
	lengths := []int{1024, 4096}
	if testing.Short() {
		lengths = []int{1024, 2048}
		t.Logf("short: lengths %v instead of 1024 and 4096", lengths)
	}
	var factors []float64
	for _, length := range lengths {
		run, q := attentionTraining(t, length, width, heads)
		runtime.GC()
		percent := debug.SetGCPercent(-1)                             // a garbage collection would empty the pools
		factors = append(factors, float64(allocated(run))/float64(q)) // the first run, whose workspace is new
		debug.SetGCPercent(percent)
	}
	t.Logf("lengths %v: forward and backward allocate %.3v times the bytes of Q", lengths, factors)
	if most := 25.0; factors[0] > most || factors[1] > most {
		t.Errorf("lengths %v: forward and backward allocate %.3v times the bytes of Q, want at most %v", lengths, factors, most)
	}
}
