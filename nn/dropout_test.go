package nn

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// What is dropped is a function of seed, step, layer and position; nothing is dropped outside training, or with a negative step. A path that
// is dropped leaves the residual stream as it is.
func TestDropout(t *testing.T) {
	const batch, length, model = 2, 3, 8
	x := normal(rand.New(rand.NewPCG(1, 1)), batch*length*model)
	run := func(cfg Config, seed uint64, step int, opts ...CallOption) []float64 {
		s := NewMambaStack(cfg, WithDtype(tensor.Float64), WithSeed(seed))
		g := G.NewGraph()
		in := leaf(g, "x", tensor.Float64, x, batch, length, model)
		if step != 0 {
			n := G.NodeFromAny(g, tensor.New(tensor.WithShape(1), tensor.WithBacking([]int{step})), G.WithName("step"))
			opts = append(opts, WithTraining(n))
		}
		return forward(t, must(s.Apply(in, opts...)))[0]
	}
	for _, kind := range []Kind{Mamba, SwiGLU} {
		plain := Config{DModel: model, NLayer: 2, Pattern: []Kind{kind}}
		dropout, path := plain, plain
		dropout.Dropout, path.DropPath = 0.4, 0.4
		want := run(plain, 3, 0)
		for name, cfg := range map[string]Config{"dropout": dropout, "drop path": path} {
			first := run(cfg, 3, 7)
			for what, same := range map[string]bool{
				"no step":          slices.Equal(run(cfg, 3, 0), want),
				"a negative step":  (results{"y": run(cfg, 3, -1)}).near(results{"y": want}, 1e-12) == nil,
				"the step again":   slices.Equal(run(cfg, 3, 7), first),
				"composed":         slices.Equal(run(cfg, 3, 7, WithComposed()), first),
				"no other step":    !slices.Equal(run(cfg, 3, 8), first) || !slices.Equal(run(cfg, 3, 9), first) || !slices.Equal(run(cfg, 3, 10), first),
				"something is off": !slices.Equal(first, want) || !slices.Equal(run(cfg, 3, 8), want),
			} {
				if !same {
					t.Errorf("%s, %s: %s", kind, name, what)
				}
			}
		}
		path.DropPath = 1 - 1e-12 // drops all
		var none []float64
		s := NewMambaStack(plain, WithDtype(tensor.Float64), WithSeed(3))
		for _, p := range s.Params() {
			if p.Name != "norm_f.weight" {
				p.Value.Zero()
			}
		}
		none = forward(t, must(s.Apply(leaf(G.NewGraph(), "x", tensor.Float64, x, batch, length, model))))[0]
		if got := run(path, 3, 7); (results{"y": got}).near(results{"y": none}, 1e-12) != nil {
			t.Errorf("%s: with all paths dropped the result is %v, want %v", kind, got, none)
		}
	}
	for _, rate := range []float64{-0.1, 1} {
		for _, cfg := range []Config{{DModel: 4, Dropout: rate}, {DModel: 4, DropPath: rate}} {
			if err := NewMambaBlock(cfg).Err(); err == nil {
				t.Errorf("%s: no error", fmt.Sprintf("%+v", cfg))
			}
		}
	}
}
