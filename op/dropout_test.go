package op

import (
	"math"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/kernel"
)

// A graph that is built once drops other elements in each step, the same ones again in the same step, and nothing in a negative step. The
// bits are those of the kernel, on the host and on a device.
func TestDropoutSteps(t *testing.T) {
	t.Run("host", func(t *testing.T) { testDropoutSteps(t, Place{}) })
	t.Run("device", func(t *testing.T) {
		p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		testDropoutSteps(t, p)
	})
}

func testDropoutSteps(t *testing.T, p Place) {
	const batch, length, channels = 4, 5, 7
	host := make([]float64, batch*length*channels)
	for i := range host {
		host[i] = float64(float32(math.Sin(float64(i))))
	}
	g := G.NewGraph()
	x, step := leaf(g, "x", f32, tensor.Shape{batch, length, channels}, host), leaf(g, "step", tensor.Int, tensor.Shape{1}, []float64{0})
	on := x
	if !p.OnHost() {
		on = G.Must(p.Upload(x))
	}
	cfg := DropoutConfig{Rate: 0.4, Seed: 77, Layer: 3}
	out := G.Nodes{G.Must(Dropout(on, step, cfg)), G.Must(DropPath(on, step, cfg))}
	values := make([]G.Value, len(out))
	for i, n := range out {
		if !p.OnHost() {
			n = G.Must(Download(n))
		}
		G.Read(n, &values[i])
	}
	vm := G.NewTapeMachine(g)
	defer vm.Close()
	for _, now := range []int{0, 1, 0, math.MaxInt32, -1} {
		vm.Reset()
		if err := G.Let(step, dense(tensor.Int, tensor.Shape{1}, []float64{float64(now)})); err != nil {
			t.Fatal(err)
		}
		if err := vm.RunAll(); err != nil {
			t.Fatal(err)
		}
		for i, each := range []int{1, length * channels} {
			from, want := make([]float32, len(host)), make([]float32, len(host))
			for j, v := range host {
				from[j] = float32(v)
			}
			kernel.Drop(kernel.Dropout{Rate: 0.4, Seed: 77, Layer: 3, Step: now, Each: each}, want, from)
			if got := values[i].Data().([]float32); !slices.Equal(got, want) {
				t.Errorf("step %d: %v differs from the kernel", now, out[i].Op())
			}
		}
	}
	vm.Reset()
	if err := G.Let(step, dense(tensor.Int, tensor.Shape{1}, []float64{1 << 31})); err != nil {
		t.Fatal(err)
	}
	if err := vm.RunAll(); err == nil || !strings.Contains(err.Error(), "step is 2147483648, want at most 2^31-1") {
		t.Errorf("a step of 2^31: %v", err)
	}
}

func TestDropoutErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	x, step := node(f32, 2, 3, 4), node(tensor.Int, 1)
	rate := func(r float64) DropoutConfig { return DropoutConfig{Rate: r} }
	for _, c := range []struct {
		err  error
		want string
	}{
		{second2(Dropout(nil, step, rate(0.1))), "op: dropout: x is missing"},
		{second2(Dropout(x, nil, rate(0.1))), "op: dropout: step is missing, want a node of int of shape (1)"},
		{second2(Dropout(x, node(tensor.Int, 2), rate(0.1))), "op: dropout: step has shape (2), want (1)"},
		{second2(Dropout(x, step, rate(1))), "op: dropout: Rate is 1, want at least 0 and below 1"},
		{second2(DropPath(x, step, rate(math.NaN()))), "op: drop path: Rate is NaN, want at least 0 and below 1"},
		{second2(DropPath(x, step, DropoutConfig{Layer: -1})), "op: drop path: Layer is -1, want 0 to 2^32-1"},
		{second2(MeanPool(node(f32, 2, 3), nil)), "op: mean pool: x has shape (2, 3), want (batch, length, channels)"},
		{second2(MeanPool(x, node(tensor.Int, 2, 4))), "op: mean pool: mask has shape (2, 4), want (batch, length) = (2, 3)"},
		{second2(MeanPool(x, node(tensor.Bool, 2, 3))), "op: mean pool: mask is of bool, want float32, float64 or int"},
	} {
		if c.err == nil || !strings.HasPrefix(c.err.Error(), c.want) {
			t.Errorf("the error is %v, want %q", c.err, c.want)
		}
	}
}
