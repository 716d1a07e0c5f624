package op

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/golden"
)

// TestGoldenScan compares the operator with numbers from the reference implementation of state-spaces/mamba, in both types and on both
// machines. With MAMBA_GOLDEN set it also checks every *_scan.safetensors in that directory. A directory that has only checkpoints is left
// to TestGoldenCheckpoint.
func TestGoldenScan(t *testing.T) {
	if n := goldenScanFile(t, "../testdata/golden_scan.safetensors"); n != 35 {
		t.Errorf("%d cases, want 35", n)
	}
	given, err := golden.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if given.Dir != "" && len(given.Scans) == 0 {
		fmt.Printf("no scan: %v\n", given)
	}
	for _, f := range given.Scans {
		if goldenScanFile(t, f) == 0 {
			t.Errorf("%s has no case", f)
		}
	}
}

// goldenScanFile checks all cases of a file and returns their number.
func goldenScanFile(t *testing.T, path string) int {
	t.Helper()
	file, err := golden.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]goldenScan{}
	for key, x := range file.Tensors {
		name, rest, _ := strings.Cut(key, ".")
		if cases[name] == nil {
			cases[name] = goldenScan{}
		}
		cases[name][rest] = x
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		options := map[string]bool{}
		for _, o := range strings.Fields(file.Metadata[name]) {
			key, value, _ := strings.Cut(o, "=")
			options[key] = value == "1"
		}
		for _, dt := range []tensor.Dtype{tensor.Float64, tensor.Float32} {
			for _, lisp := range []bool{false, true} {
				if err := cases[name].check(dt, lisp, options["delta_softplus"]); err != nil {
					t.Errorf("%s, %s, %v, lisp machine %t: %v", filepath.Base(path), name, dt, lisp, err)
				}
			}
		}
	}
	t.Logf("%s: %d cases checked", filepath.Base(path), len(cases))
	fmt.Printf("%s: %d cases checked\n", filepath.Base(path), len(cases))
	return len(cases)
}

// goldenScan is one case. The keys are those of the file without the case's name.
type goldenScan map[string]golden.Tensor

// layout converts a golden tensor from the reference's order of axes to this package's.
func (c goldenScan) layout(name string, x golden.Tensor) golden.Tensor {
	switch {
	case len(x.Shape) == 3 && name != "last_state":
		return x.Transpose(0, 2, 1) // (batch, dim, length)
	case len(x.Shape) == 4:
		x = x.Transpose(0, 3, 1, 2) // (batch, groups, state, length)
		if x.Shape[2] == 1 {
			x.Shape = []int{x.Shape[0], x.Shape[1], x.Shape[3]}
		}
	}
	return x
}

func (c goldenScan) check(dt tensor.Dtype, lisp, softplus bool) error {
	g := G.NewGraph()
	nodes := map[string]*G.Node{}
	known := []string{"u", "delta", "A", "B", "C", "D", "z", "delta_bias"}
	for key := range c {
		if name, ok := strings.CutPrefix(key, "in."); ok {
			if !slices.Contains(known, name) {
				return fmt.Errorf("unknown input %s", key)
			}
			x := c.layout(name, c[key])
			nodes[name] = leaf(g, name, dt, x.Shape, x.Data)
		}
	}
	y, final, err := SelectiveScanWithState(ScanInputs{
		U: nodes["u"], Delta: nodes["delta"], A: nodes["A"], B: nodes["B"], C: nodes["C"],
		D: nodes["D"], Z: nodes["z"], DeltaBias: nodes["delta_bias"],
	}, ScanConfig{DeltaSoftplus: softplus})
	if err != nil {
		return err
	}
	out, last, dout := c.layout("out", c["out"]), c["last_state"], c.layout("dout", c["dout"])
	zero := make([]float64, len(last.Data)) // the golden loss does not include the final state
	loss := G.Must(G.Add(dot(y, dout.Data), dot(final, zero)))

	got := map[string]G.Value{}
	var gotY, gotFinal G.Value
	G.Read(y, &gotY)
	G.Read(final, &gotFinal)
	if err := runGradients(g, loss, nodes, lisp, got); err != nil {
		return err
	}
	if err := near(gotY, out.Data, dt); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := near(gotFinal, last.Data, dt); err != nil {
		return fmt.Errorf("final state: %w", err)
	}
	for name := range nodes {
		want, ok := c["grad."+name]
		if !ok {
			return fmt.Errorf("no gradient of %s in the file", name)
		}
		if err := near(got[name], c.layout(name, want).Data, dt); err != nil {
			return fmt.Errorf("gradient of %s: %w", name, err)
		}
	}
	return nil
}

// near compares golden numbers: the tolerance is 1e-9 relative in float64, and 1e-5 of the largest magnitude in float32.
func near(v G.Value, want []float64, dt tensor.Dtype) error {
	got := elements(v)
	if len(got) != len(want) {
		return fmt.Errorf("%d elements, want %d", len(got), len(want))
	}
	var scale float64
	for _, x := range want {
		scale = max(scale, math.Abs(x))
	}
	for i, x := range want {
		tol := 1e-9*math.Abs(x) + 1e-13*scale // the second term is for sums that cancel to nearly zero
		if dt == tensor.Float32 {
			tol = 1e-5 * scale
		}
		if d := math.Abs(got[i] - x); !(d <= tol) {
			return fmt.Errorf("element %d is %v, want %v (largest magnitude %g)", i, got[i], x, scale)
		}
	}
	return nil
}

// TestGoldenCrossScan compares Reorder with VMamba's cross scan, which makes a copy of the image for each direction, and its cross merge,
// which puts such copies back and adds them.
func TestGoldenCrossScan(t *testing.T) {
	file, err := golden.Read("../testdata/ss2d/golden_ss2d.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, name := range slices.Sorted(maps.Keys(file.Metadata)) {
		var c struct {
			Op           string
			H, W         int
			ChannelFirst bool `json:"channel_first"`
		}
		if err := json.Unmarshal([]byte(file.Metadata[name]), &c); err != nil {
			t.Fatal(err)
		}
		if c.Op != "cross_scan" && c.Op != "cross_merge" {
			continue // the layer SS2D
		}
		cases++
		// image returns a tensor as (batch, cells, channels), and images one for each direction.
		image := func(key string) []golden.Tensor {
			x := file.Tensors[name+"."+key]
			size := len(x.Data) / x.Shape[0] / (c.H * c.W)
			if x.Shape = []int{x.Shape[0], c.H * c.W, size}; c.ChannelFirst {
				x.Shape = []int{x.Shape[0], size, c.H * c.W}
				x = x.Transpose(0, 2, 1)
			}
			return []golden.Tensor{x}
		}
		images := func(key string) (all []golden.Tensor) {
			x := image(key)[0] // (batch, cells, directions·channels)
			for k := range 4 {
				shape := []int{x.Shape[0], x.Shape[1], x.Shape[2] / 4}
				all = append(all, golden.Tensor{Shape: shape, Data: partOf(x.Data, shape[2], k, 4)})
			}
			return all
		}
		in, out, operand := image, images, "x"
		if c.Op == "cross_merge" {
			in, out, operand = images, image, "ys"
		}
		for _, dt := range []tensor.Dtype{tensor.Float64, tensor.Float32} {
			g := G.NewGraph()
			nodes, grads := map[string]*G.Node{}, map[string]G.Value{}
			var x, y G.Nodes
			for k, v := range in("in." + operand) {
				x = append(x, leaf(g, fmt.Sprint("x", k), dt, v.Shape, v.Data))
				nodes[fmt.Sprint("x", k)] = x[k]
			}
			for k, o := range VMambaOrders(c.H, c.W) {
				if c.Op == "cross_scan" {
					y = append(y, G.Must(Reorder(x[0], o)))
				} else if n := G.Must(Reorder(x[k], o.Inverse())); k == 0 {
					y = G.Nodes{n}
				} else {
					y[0] = G.Must(Add(y[0], n))
				}
			}
			var loss *G.Node
			values := make([]G.Value, len(y))
			for k, v := range out("dout") {
				G.Read(y[k], &values[k])
				w := leaf(g, fmt.Sprint("dout", k), dt, y[k].Shape(), v.Data) // not dot, whose leaves are one where two orders are
				loss = plus(loss, G.Must(G.Sum(G.Must(G.HadamardProd(y[k], w)))))
			}
			if err := runGradients(g, loss, nodes, false, grads); err != nil {
				t.Fatal(err)
			}
			for k, v := range out("out") {
				if err := near(values[k], v.Data, dt); err != nil {
					t.Errorf("%s, %v, result %d: %v", name, dt, k, err)
				}
			}
			for k, v := range in("grad." + operand) {
				if err := near(grads[fmt.Sprint("x", k)], v.Data, dt); err != nil {
					t.Errorf("%s, %v, gradient %d: %v", name, dt, k, err)
				}
			}
		}
	}
	if cases != 8 {
		t.Errorf("%d cases, want 8", cases)
	}
}
