package op

import (
	"fmt"
	"runtime"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/benchtest"
)

// scanTraining returns a run of a graph as in training: a scan, a projection of its output, a loss, and the gradients of all operands. It
// also returns the bytes of U.
func scanTraining(tb testing.TB, length, channels int, withState bool, optional ...string) (run func(), bytesOfU int) {
	p := &scanProblem{batch: 1, length: length, channels: channels, state: 16, bGroups: 1, cGroups: 1,
		cfg: ScanConfig{DeltaSoftplus: true}}
	g := G.NewGraph()
	nodes := map[string]*G.Node{}
	var with G.Nodes
	for _, name := range append([]string{"U", "Delta", "A", "B", "C"}, optional...) {
		shape := p.shape(name)
		v := make([]float32, tensor.Shape(shape).TotalSize())
		for i := range v {
			v[i] = float32(i%17)/17 - 1
		}
		nodes[name] = G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName(name),
			G.WithValue(tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v))))
		with = append(with, nodes[name])
	}
	var y, final *G.Node
	var err error
	if in := scanInputs(nodes); withState {
		y, final, err = SelectiveScanWithState(in, p.cfg)
	} else {
		y, err = SelectiveScan(in, p.cfg)
	}
	if err != nil {
		tb.Fatal(err)
	}
	// With a projection to one number per step, the rest of the graph adds the gradient of y and little else.
	weight := make([]float64, channels)
	for i := range weight {
		weight[i] = 1
	}
	loss := G.Must(G.Sum(G.Must(Linear(y, leaf(g, "projection", tensor.Float32, []int{1, channels}, weight), nil))))
	if withState {
		loss = G.Must(G.Add(loss, G.Must(G.Sum(final))))
	}
	if _, err := G.Grad(loss, with...); err != nil {
		tb.Fatal(err)
	}
	m := G.NewTapeMachine(g)
	tb.Cleanup(func() { m.Close() })
	return func() {
		if err := m.RunAll(); err != nil {
			tb.Fatal(err)
		}
		m.Reset()
	}, 4 * length * channels
}

// allocated returns the bytes that f allocates.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// Forward and backward pass together allocate less than 8 times the bytes of U: the result, its gradient, the operands' gradients, the
// checkpoints, and the tasks' parts of dB and dC. All states alone would take 16 times the bytes of U.
func TestScanMemory(t *testing.T) {
	full := 16384
	if testing.Short() {
		full = 1024
		t.Logf("short: length %d instead of 16384", full)
	}
	for _, test := range []struct {
		name      string
		length    int
		withState bool
		most      float64
		optional  []string
	}{
		{"SelectiveScan as in a Mamba block", full, false, 8, []string{"D", "Z", "DeltaBias"}},
		{"SelectiveScan without optional operands", 1024, false, 8, nil},
		// The packed gradients of two results add twice the bytes of U. The initial and final states do not grow with the length, so
		// they add more here than at the full length, where the factor is 7.84.
		{"SelectiveScanWithState, all used", 1024, true, 9, []string{"D", "Z", "DeltaBias", "InitialState"}},
	} {
		run, u := scanTraining(t, test.length, 1536, test.withState, test.optional...)
		factor := float64(allocated(run)) / float64(u)
		line := fmt.Sprintf("%s, length %d, channels 1536, state 16: forward and backward allocate %.2f times the bytes of U",
			test.name, test.length, factor)
		t.Log(line)
		if factor >= test.most {
			t.Errorf("%s, want less than %v", line, test.most)
		}
		runtime.GC()
	}
}

func BenchmarkScanMemory(b *testing.B) {
	run, u := scanTraining(b, 16384, 1536, false, "D", "Z", "DeltaBias")
	b.ReportAllocs()
	var bytes int
	benchtest.Processors(b)
	for b.Loop() {
		bytes = allocated(run)
	}
	b.ReportMetric(float64(bytes)/float64(u), "U/op")
}
