//go:build cuda

package op

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
)

// weighted is the weighted sum of all elements of its operands. Gorgonia's own product cannot be used: it needs a kernel that Gorgonia's
// release does not contain.
type weighted struct{ weights [][]float64 }

func (w weighted) String() string { return fmt.Sprintf("weighted %v", w.weights) }

func (w weighted) Forward(in []value[float32], out [][]float32) {
	var sum float64
	for i, weights := range w.weights {
		for j, v := range in[i].Data {
			sum += weights[j] * float64(v)
		}
	}
	out[0][0] = float32(sum)
}

func (w weighted) Backward(_ []value[float32], dout, grad [][]float32) {
	for i, weights := range w.weights {
		for j := range grad[i] {
			grad[i][j] = float32(weights[j]) * dout[0][0]
		}
	}
}

// onCPU returns the problem's results from the CPU's kernels, without a machine.
func (p *scanProblem) onCPU(withState bool) map[string][]float64 {
	g := G.NewGraph()
	in := map[string]*G.Node{}
	for name := range p.in {
		in[name] = p.node(g, name, name, tensor.Float32)
	}
	f, c := newScan(scanInputs(in), p.cfg)
	if c.err != nil {
		panic(c.err)
	}
	f.withState = withState
	list := c.in
	values, grads := make([]value[float32], len(list)), make([][]float32, len(list))
	for i, o := range list {
		if o.Node == nil {
			continue
		}
		data := elements(o.Node.Value())
		if values[i].Shape = o.Node.Shape(); o.Kind == operator.Marks {
			for _, x := range data {
				values[i].Marks = append(values[i].Marks, x != 0)
			}
			continue
		}
		values[i].Data, grads[i] = narrow(data), make([]float32, len(data))
	}
	out := [][]float32{make([]float32, len(p.dy))}
	dout := [][]float32{narrow(p.dy)}
	if withState {
		out, dout = append(out, make([]float32, len(p.dfinal))), append(dout, narrow(p.dfinal))
	}
	f.Forward(values, out)
	f.Backward(values, dout, grads)
	results := map[string][]float64{"y": widen(out[0])}
	if withState {
		results["final"] = widen(out[1])
	}
	for i, o := range list {
		if grads[i] != nil {
			results["gradient of "+o.Name] = widen(grads[i])
		}
	}
	return results
}

func narrow(v []float64) (to []float32) {
	for _, x := range v {
		to = append(to, float32(x))
	}
	return to
}

func widen(v []float32) (to []float64) {
	for _, x := range v {
		to = append(to, float64(x))
	}
	return to
}

// onDevice runs the problem several times in Gorgonia's CUDA machine, and returns the results of each run.
func (p *scanProblem) onDevice(t *testing.T, withState bool, runs int) (all []map[string][]float64) {
	g := G.NewGraph()
	nodes := map[string]*G.Node{}
	for _, name := range slices.Sorted(maps.Keys(p.in)) {
		nodes[name] = p.node(g, name, name, tensor.Float32)
	}
	in := scanInputs(nodes)
	delete(nodes, "Start")
	values := map[string]*G.Value{}
	read := func(name string, n *G.Node) {
		values[name] = new(G.Value)
		G.Read(n, values[name])
	}
	c := &checker{dt: tensor.Float32}
	var loss *G.Node
	if withState {
		y, final, err := SelectiveScanWithState(in, p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		read("y", y)
		read("final", final)
		c.numbers("y", y)
		c.numbers("final", final)
		if loss, err = c.apply1(weighted{[][]float64{p.dy, p.dfinal}}, nil, nil); err != nil {
			t.Fatal(err)
		}
	} else {
		y, err := SelectiveScan(in, p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		read("y", y)
		c.numbers("y", y)
		if loss, err = c.apply1(weighted{[][]float64{p.dy}}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	names := slices.Sorted(maps.Keys(nodes))
	var with G.Nodes
	for _, name := range names {
		with = append(with, nodes[name])
	}
	grads, err := G.Grad(loss, with...)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		read("gradient of "+name, grads[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	for range runs {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		got := map[string][]float64{}
		for name, v := range values {
			got[name] = elements(*v)
			*v = nil
		}
		all = append(all, got)
		m.Reset()
	}
	placed := 0
	for _, n := range g.AllNodes() {
		if strings.HasPrefix(fmt.Sprintf("%T", n.Op()), "*cudamachine.") && n.Device() != G.CPU {
			placed++
		}
	}
	if placed != 2 {
		t.Errorf("%d operators are on the device, want the scan and its gradients", placed)
	}
	return all
}

// A scan and its gradients in Gorgonia's CUDA machine agree with those of the CPU, and are the same bit for bit in every run.
func TestCUDAMachine(t *testing.T) {
	all := append([]string(nil), scanOptional...)
	for _, p := range []*scanProblem{
		{batch: 2, length: 37, channels: 6, state: 16, bGroups: 1, cGroups: 1},
		{batch: 1, length: 3, channels: 1, state: 1, bGroups: 1, cGroups: 1},
		{batch: 2, length: 65, channels: 12, state: 5, bGroups: 2, cGroups: 3, cfg: ScanConfig{DeltaSoftplus: true}},
		{batch: 2, length: 40, channels: 10, state: 33, bGroups: 0, cGroups: 1, cfg: ScanConfig{DeltaSoftplus: true, Reverse: true}},
		{batch: 1, length: 20, channels: 7, state: 200, bGroups: 1, cGroups: 0, cfg: ScanConfig{Reverse: true}},
	} {
		for _, optional := range [][]string{nil, {"D", "Z", "DeltaBias"}, all} {
			for _, withState := range []bool{false, true} {
				name := fmt.Sprintf("%d x %d x %d x %d, %v, state %t", p.batch, p.length, p.channels, p.state, optional, withState)
				t.Run(name, func(t *testing.T) {
					p.fill(7, optional...)
					want := p.onCPU(withState)
					got := p.onDevice(t, withState, 3)
					if err := sameResults(got[0], want, 2e-5); err != nil {
						t.Error(err)
					}
					for _, again := range got[1:] {
						if err := sameResults(again, got[0], 0); err != nil {
							t.Errorf("another run: %v", err)
						}
					}
				})
			}
		}
	}
}

// Scans that the kernels do not support stay on the CPU.
func TestCUDAPlace(t *testing.T) {
	for _, c := range []struct {
		dt    tensor.Dtype
		state int
		want  bool
	}{{tensor.Float32, 256, true}, {tensor.Float32, 257, false}, {tensor.Float64, 16, false}} {
		p := (&scanProblem{batch: 1, length: 1, channels: 1, state: c.state, bGroups: 1, cGroups: 1}).fill(1)
		g, in := G.NewGraph(), map[string]*G.Node{}
		for name := range p.in {
			in[name] = p.node(g, name, name, c.dt)
		}
		y, err := SelectiveScan(scanInputs(in), p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := y.Op().(G.CUDADoer); got != c.want {
			t.Errorf("%v, %d states: on the device is %t, want %t", c.dt, c.state, got, c.want)
		}
	}
}
