package train

import (
	"context"
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// near fails the test if numbers on a device differ from those on the host by more than a tolerance.
func near(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		if !(math.Abs(got[i]-w) <= 1e-4*max(1, math.Abs(w))) {
			t.Fatalf("%s: number %d is %v on the device, %v on the host", what, i, got[i], w)
		}
	}
}

// TestDeviceAccumulation checks that gradients accumulated over several batches give the same steps on a device as on the host.
func TestDeviceAccumulation(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	var runs [2][]float64
	for i, lm := range []*nn.LM{newLM(tensor.Float32, false), deviceLM(d, cuda.Strict)} {
		cfg := config()
		cfg.Accumulate, cfg.Steps = 3, 5
		cfg.AdamW.Eps = 1e-3 // keeps steps continuous for gradients near zero
		tr := newTrainer(t, lm, cfg)
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, p := range tr.Curve().Training {
			runs[i] = append(runs[i], p.Loss)
		}
		if err := lm.Params().ToHost(); err != nil {
			t.Fatal(err)
		}
		for _, w := range weights(lm) {
			runs[i] = append(runs[i], w...)
		}
	}
	near(t, "losses and weights", runs[1], runs[0])
}

// TestDeviceFrozen checks that a solver with frozen weights does not change them, does not count their gradients, and clears these gradients. It
// trains the weights once they are not frozen any more.
func TestDeviceFrozen(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	var runs [2][]float64
	for i, lm := range []*nn.LM{newLM(tensor.Float32, false), deviceLM(d, cuda.Strict)} {
		params := lm.Params()
		frozen := params[1:4]
		frozen.Freeze()
		solver, err := NewAdamW(params, AdamWConfig{LearnRate: 0.05, Eps: 1e-3, Clip: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		ids := tensor.New(tensor.WithShape(1, 6), tensor.WithBacking([]int{1, 2, 3, 4, 5, 6}))
		x := G.NodeFromAny(g, ids, G.WithName("ids"))
		loss, err := lm.Loss(x, x)
		if err != nil {
			t.Fatal(err)
		}
		nodes := params.Nodes(g) // frozen weights included
		if _, err := G.Grad(loss, nodes...); err != nil {
			t.Fatal(err)
		}
		vm := G.NewTapeMachine(g, G.BindDualValues(nodes...))
		defer vm.Close()
		first := weights(lm)
		for step := range 6 {
			if step == 3 {
				if err := params.ToHost(); err != nil {
					t.Fatal(err)
				}
				for j, w := range weights(lm) {
					same := true
					for k := range w {
						same = same && w[k] == first[j][k]
					}
					if same != params[j].Frozen {
						t.Errorf("%s, frozen %v, is as at the beginning: %v", params[j].Name, params[j].Frozen, same)
					}
				}
				frozen.Unfreeze()
			}
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				t.Fatal(err)
			}
			if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
				t.Fatal(err)
			}
			runs[i] = append(runs[i], solver.Norm(), float64(loss.Value().Data().(float32)))
			for _, n := range nodes {
				grad, err := n.Grad()
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range grad.Data().([]float32) {
					if v != 0 {
						t.Fatalf("step %d: the gradient of %s is not cleared", step, n.Name())
					}
				}
			}
		}
		if err := params.ToHost(); err != nil {
			t.Fatal(err)
		}
		for _, w := range weights(lm) {
			runs[i] = append(runs[i], w...)
		}
	}
	near(t, "norms, losses and weights", runs[1], runs[0])
}
