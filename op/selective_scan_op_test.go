package op

import (
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// One SelectiveScanOp, applied with gorgonia.ApplyOp to two sets of nodes, gives the results and gradients of two calls of SelectiveScan, on the
// host and on a device.
func TestSelectiveScanOp(t *testing.T) {
	t.Run("host", func(t *testing.T) { selectiveScanOp(t, Place{}) })
	t.Run("device", func(t *testing.T) {
		p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		selectiveScanOp(t, p)
	})
}

func selectiveScanOp(t *testing.T, p Place) {
	var results [2]map[string][]float64
	for i, asOp := range []bool{false, true} {
		g := G.NewGraph()
		var o *SelectiveScanOp
		var total *G.Node
		leaves, read := map[string]*G.Node{}, map[string]*G.Node{}
		for _, call := range []string{"first ", "second "} {
			problem := &scanProblem{batch: 2, length: 9, channels: 6, state: 3, bGroups: 1, cGroups: 2, cfg: ScanConfig{DeltaSoftplus: true}}
			problem.fill(uint64(len(call)), scanOptional...)
			nodes := map[string]*G.Node{}
			for _, name := range []string{"U", "Delta", "A", "B", "C", "D", "Z", "DeltaBias", "InitialState", "Start"} {
				n := problem.node(g, name, call+name, f32)
				if nodes[name] = n; name == "Start" {
					continue
				}
				if leaves[call+name] = n; !p.OnHost() {
					nodes[name] = G.Must(p.Upload(n))
				}
			}
			in := scanInputs(nodes)
			var y *G.Node
			var err error
			if !asOp {
				y, err = SelectiveScan(in, problem.cfg)
			} else {
				made, wrong := NewSelectiveScanOp(in, problem.cfg)
				if wrong != nil {
					t.Fatal(wrong)
				}
				if o == nil {
					o = made
				}
				y, err = G.ApplyOp(o, made.Operands()...)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, final, err := SelectiveScanWithState(in, problem.cfg)
			if asOp && call == "first " {
				final, err = o.FinalState()
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, n := range map[string]*G.Node{"y": y, "final": final} {
				if !PlaceOf(n).OnHost() {
					n = G.Must(Download(n))
				}
				read[call+name] = n
				total = plus(total, G.Must(G.Sum(G.Must(G.Square(n)))))
			}
		}
		if o != nil {
			if _, err := G.ApplyOp(o, o.Operands()[1:]...); err == nil {
				t.Error("an operand is missing: no error")
			}
			short := append(G.Nodes{leaf(g, "short", f32, []int{2, 8, 6}, make([]float64, 96))}, o.Operands()[1:]...)
			if _, err := G.ApplyOp(o, short...); err == nil || !strings.Contains(err.Error(), "operand 0 has shape (2, 8, 6), want (2, 9, 6)") {
				t.Errorf("U is too short: the error is %v", err)
			}
		}
		values, grads := map[string]*G.Value{}, map[string]G.Value{}
		for name, n := range read {
			values[name] = new(G.Value)
			G.Read(n, values[name])
		}
		if err := runGradients(g, total, leaves, false, grads); err != nil {
			t.Fatal(err)
		}
		results[i] = map[string][]float64{}
		for name, v := range values {
			results[i][name] = elements(*v)
		}
		for name, v := range grads {
			results[i]["gradient of "+name] = elements(v)
		}
	}
	if err := sameResults(results[1], results[0], 1e-6); err != nil {
		t.Error(err)
	}
}

// ReuseResults leaves out a SelectiveScanOp, since both of its results in a graph would have the same memory.
func TestSelectiveScanOpReuse(t *testing.T) {
	var sums [2][]float64
	for i := range sums {
		g := G.NewGraph()
		var o *SelectiveScanOp
		var ys G.Nodes
		for _, call := range []string{"first ", "second "} {
			problem := &scanProblem{batch: 2, length: 3, channels: 2, state: 3, bGroups: 1, cGroups: 2}
			problem.fill(uint64(len(call)))
			nodes := map[string]*G.Node{}
			for _, name := range []string{"U", "Delta", "A", "B", "C"} {
				nodes[name] = problem.node(g, name, call+name, f32)
			}
			made, err := NewSelectiveScanOp(scanInputs(nodes), problem.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if o == nil {
				o = made
			}
			ys = append(ys, G.Must(G.ApplyOp(o, made.Operands()...)))
		}
		sum := G.Must(Add(ys[0], ys[1]))
		if i == 1 {
			ReuseResults(g)
		}
		m := G.NewTapeMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		sums[i] = elements(sum.Value())
	}
	if !slices.Equal(sums[1], sums[0]) {
		t.Errorf("the sum of both results is %v, want %v", sums[1], sums[0])
	}
}
