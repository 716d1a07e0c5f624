package op

import (
	"runtime"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The result and every gradient are the same bit for bit for any number of processors and in every run.
func TestSelectiveScanBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, p := range []*scanProblem{
		{batch: 2, length: 130, channels: 90, state: 4, bGroups: 1, cGroups: 3},
		{batch: 1, length: 70, channels: 200, state: 3, bGroups: 0, cGroups: 1, cfg: ScanConfig{Reverse: true}},
		{batch: 1, length: 30, channels: 300, state: 16, bGroups: 1, cGroups: 1},
	} {
		p.cfg.DeltaSoftplus = true
		p.fill(16, scanOptional...)
		want, err := p.run(tensor.Float32, false)
		if err != nil {
			t.Fatal(err)
		}
		runs := 20
		if testing.Short() {
			runs = 4
		}
		for _, procs := range []int{1, 2, 3, 8} {
			runtime.GOMAXPROCS(procs)
			for range runs {
				got, err := p.run(tensor.Float32, false)
				if err == nil {
					err = sameResults(got, want, 0)
				}
				if err != nil {
					t.Fatalf("GOMAXPROCS %d: %v", procs, err)
				}
			}
		}
	}
}

// Operands can have any memory layout.
func TestSelectiveScanLayouts(t *testing.T) {
	for _, groups := range []int{0, 2} {
		p := &scanProblem{batch: 2, length: 3, channels: 4, state: 2, bGroups: groups, cGroups: groups,
			cfg: ScanConfig{DeltaSoftplus: true}}
		p.fill(17, scanOptional...)
		want, err := p.run(tensor.Float64, false)
		if err != nil {
			t.Fatal(err)
		}
		for name, layout := range layouts {
			p.layout = layout
			if err := sameScan(p, want); err != nil {
				t.Errorf("%s, %d groups: %v", name, groups, err)
			}
			if err := sameScan(p, want, 1, 3); err != nil {
				t.Errorf("%s, %d groups, in pieces: %v", name, groups, err)
			}
		}
	}
}

// Start can have any of its types, and any non-zero number starts a sequence.
func TestSelectiveScanStartTypes(t *testing.T) {
	p := &scanProblem{batch: 2, length: 5, channels: 2, state: 2, bGroups: 1, cGroups: 1}
	p.fill(18, "Start")
	want, err := p.run(tensor.Float64, false)
	if err != nil {
		t.Fatal(err)
	}
	if apart, err := p.without("Start").run(tensor.Float64, false); err != nil || slices.Equal(apart["y"], want["y"]) {
		t.Fatalf("Start has no effect on the result (error %v)", err)
	}
	for _, mark := range []float64{1, -1, 7} {
		for i, v := range p.in["Start"] {
			if v != 0 {
				p.in["Start"][i] = mark
			}
		}
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64, tensor.Int} {
			p.starts = func(tensor.Dtype) tensor.Dtype { return dt }
			if err := sameScan(p, want); err != nil {
				t.Errorf("Start of %v, %v where a sequence starts: %v", dt, mark, err)
			}
		}
	}
}

// A graph has three scans: two that share weights, on the two rows of a batch, and one that repeats the first. Gorgonia merges the repeated
// scan with the first into one node, and its gradient counts twice.
func TestSelectiveScanTwiceInGraph(t *testing.T) {
	p := &scanProblem{batch: 2, length: 3, channels: 2, state: 2, bGroups: 0, cGroups: 0}
	p.fill(19, "D")
	both, err := p.run(tensor.Float64, false)
	if err != nil {
		t.Fatal(err)
	}
	err = everywhere(func(dt tensor.Dtype, lisp bool, tol float64) error {
		g := G.NewGraph()
		nodes := map[string]*G.Node{}
		for _, name := range []string{"A", "B", "C", "D"} {
			nodes[name] = p.node(g, name, name, dt)
		}
		var ys [3]G.Value
		var loss *G.Node
		for i, label := range []string{"first", "second", "first"} {
			b := i % 2
			shape, half := []int{1, p.length, p.channels}, p.length*p.channels
			in := scanInputs(nodes)
			for name, n := range map[string]**G.Node{"U": &in.U, "Delta": &in.Delta} {
				*n = leaf(g, label+name, dt, shape, p.in[name][b*half:(b+1)*half])
				nodes[label+name] = *n
			}
			y, final, err := SelectiveScanWithState(in, p.cfg)
			if err != nil {
				return err
			}
			G.Read(y, &ys[i])
			loss = plus(loss, dot(y, p.dy[b*half:(b+1)*half]))
			loss = plus(loss, dot(final, p.dfinal[b*4:(b+1)*4]))
		}
		grads := map[string]G.Value{}
		if err := runGradients(g, loss, nodes, lisp, grads); err != nil {
			return err
		}
		first := p.firstBatch()
		alone, err := first.run(tensor.Float64, false)
		if err != nil {
			return err
		}
		want, got := map[string][]float64{}, map[string][]float64{"y": join(ys[:2], 1), "again": elements(ys[2])}
		want["y"], want["again"] = both["y"], alone["y"]
		for _, name := range []string{"A", "B", "C", "D"} {
			got[name] = elements(grads[name])
			want[name] = sum(both["gradient of "+name], alone["gradient of "+name])
		}
		for _, name := range []string{"U", "Delta"} {
			got[name] = append(elements(grads["first"+name]), elements(grads["second"+name])...)
			want[name] = sum(alone["gradient of "+name], both["gradient of "+name])
		}
		return sameResults(got, want, tol)
	})
	if err != nil {
		t.Error(err)
	}
}

// firstBatch returns the problem of the first row of the batch.
func (p *scanProblem) firstBatch() *scanProblem {
	q := p.without()
	q.batch = 1
	for name, v := range p.in {
		if shape := p.shape(name); shape[0] == p.batch && name != "D" && name != "DeltaBias" && len(shape) > 2 {
			q.in[name] = v[:len(v)/p.batch]
		}
	}
	q.dy, q.dfinal = p.dy[:len(p.dy)/p.batch], p.dfinal[:len(p.dfinal)/p.batch]
	return q
}
