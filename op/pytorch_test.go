package op

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Interpolation, pooling and norms have PyTorch's results and gradients. testdata/pytorch_grids.json has those of PyTorch 2.11 in float64, for
// x[i] = sin(1.7·i) + 0.1·cos(0.3·i²) and a loss that weighs element i of the result with cos(0.9·i), in this package's order of axes.
func TestPyTorch(t *testing.T) {
	data, err := os.ReadFile("testdata/pytorch_grids.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name     string
		X, Shape []int
		Y, DX    []float64
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	interpolation := func(x *G.Node, name string, size []int) (*G.Node, error) {
		cfg := InterpolateConfig{Size: size, AlignCorners: strings.HasSuffix(name, "True")}
		switch {
		case strings.Contains(name, "linear"):
			cfg.Mode = InterpolateLinear
		case strings.Contains(name, "cubic"):
			cfg.Mode = InterpolateCubic
		}
		return Interpolate(x, cfg)
	}
	for _, c := range cases {
		if len(c.X) == 0 {
			continue // the running statistics, of which package layer has a test
		}
		g := G.NewGraph()
		vector := func(name string, v ...float64) *G.Node { return leaf(g, name, f64, []int{len(v)}, v) }
		v := make([]float64, tensor.Shape(c.X).TotalSize())
		for i := range v {
			v[i] = math.Sin(1.7*float64(i)) + 0.1*math.Cos(0.3*float64(i*i))
		}
		x := leaf(g, "x", f64, c.X, v)
		var y *G.Node
		switch window := (PoolConfig{Kernel: []int{3, 2}, Stride: []int{2, 1}, Padding: []int{1, 1}}); c.Name {
		case "max":
			if len(c.X) == 5 {
				window = PoolConfig{Kernel: []int{2, 2, 2}}
			}
			y, err = MaxPool(x, window)
		case "avg":
			y, err = AvgPool(x, window)
		case "avg exclude":
			window.ExcludePadding = true
			y, err = AvgPool(x, window)
		case "instance":
			y, err = InstanceNorm(x, nil, nil, 1e-3)
		case "batch":
			y, _, _, err = BatchNorm(x, nil, nil, 1e-3)
		case "batch eval":
			y, err = BatchNormWith(x, nil, nil, vector("mean", 0.1, 0.2, -0.3), vector("variance", 0.5, 1.5, 2.5), 1e-3)
		default:
			y, err = interpolation(x, c.Name, c.Shape[1:len(c.Shape)-1])
		}
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if !y.Shape().Eq(tensor.Shape(c.Shape)) {
			t.Errorf("%s: the result has shape %v, want %v", c.Name, y.Shape(), c.Shape)
			continue
		}
		w := make([]float64, len(c.Y))
		for i := range w {
			w[i] = math.Cos(0.9 * float64(i))
		}
		loss := G.Must(G.Sum(G.Must(G.HadamardProd(y, leaf(g, "weights", f64, c.Shape, w)))))
		var value G.Value
		G.Read(y, &value)
		grads := map[string]G.Value{}
		if err := runGradients(g, loss, map[string]*G.Node{"x": x}, false, grads); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		got := map[string][]float64{"y": elements(value), "dx": elements(grads["x"])}
		if err := sameResults(got, map[string][]float64{"y": c.Y, "dx": c.DX}, 1e-10); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}
