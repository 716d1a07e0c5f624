package train

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// TestDeviceOutOfMemoryAnywhere lets each allocation of generation and of a training step be the first that finds no memory. The error must say
// so. Once there is memory again, the model must generate and train to the same bits as a model that always had memory.
func TestDeviceOutOfMemoryAnywhere(t *testing.T) {
	grant := gputest.Allocations(t)
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		t.Run(fmt.Sprint(p), func(t *testing.T) {
			want, _ := withMemoryFor(t, p, grant, -1)
			stride := 1
			if testing.Short() {
				stride = 7
			}
			n := 0
			for ; ; n += stride {
				got, failed := withMemoryFor(t, p, grant, n)
				if !failed {
					break
				}
				if !slices.Equal(got, want) {
					t.Errorf("after allocation %d found no memory, the results differ", n)
				}
			}
			t.Logf("no memory for any of %d allocations", n)
		})
	}
}

// withMemoryFor generates and makes a training step with memory for n allocations, if n is not negative. Then it does both with the same model
// and all memory, and returns these results.
func withMemoryFor(t *testing.T, p cuda.Precision, grant gputest.Limit, n int) (results []float32, failed bool) {
	t.Helper()
	d, err := cuda.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	cfg := nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: 11}
	lm := nn.NewLM(cfg, nn.WithSeed(1), nn.OnDevice(d), nn.WithPrecision(p))
	solver, err := NewAdamW(lm.Params(), AdamWConfig{LearnRate: 0.01, Clip: 1})
	if err != nil {
		t.Fatal(err)
	}
	work := func() error {
		gen, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 4})
		if err != nil {
			return err
		}
		defer gen.Close()
		tokens, err := gen.Generate(context.Background(), [][]int{{1, 2, 3}, {4}}, nil)
		if err != nil {
			return err
		}
		loss, err := deviceStep(lm, solver)
		results = []float32{loss}
		for _, v := range slices.Concat(tokens...) {
			results = append(results, float32(v))
		}
		return err
	}
	if n >= 0 {
		grant(n)
		err := work()
		grant(-1)
		if err == nil {
			return nil, false
		}
		if !strings.Contains(err.Error(), "out of memory") { // errors of a machine cannot be unwrapped
			t.Fatalf("allocation %d found no memory: the error is %v", n, err)
		}
	}
	if err := work(); err != nil {
		t.Fatalf("after allocation %d found no memory: %v", n, err)
	}
	if err := lm.Params().ToHost(); err != nil {
		t.Fatal(err)
	}
	for _, w := range lm.Params() {
		results = append(results, w.Value.Data().([]float32)...)
	}
	return results, true
}

// With op.FreeAfterUse a step leaves no memory of gradients. With too many copies of weights in bfloat16, weights are converted for each use, to the same bits.
func TestDeviceMemoryBetweenSteps(t *testing.T) {
	type result struct {
		used   int64
		rest   int64 // used after the garbage collector
		losses []float32
	}
	run := func(free bool, most int64, evaluate bool) (r result) {
		before := operator.MostHalves
		defer func() { operator.MostHalves = before }()
		operator.MostHalves = most
		d := gputest.Open(t, cuda.Open)
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 1, DState: 4}, Vocab: 200}, nn.WithSeed(1), nn.OnDevice(d), nn.WithPrecision(cuda.BF16))
		g := G.NewGraph()
		x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 4), tensor.WithBacking([]int{1, 2, 3, 4})), G.WithName("ids"))
		loss, err := lm.Loss(x, x)
		if err != nil {
			t.Fatal(err)
		}
		weights := lm.Params().Nodes(g)
		gradients, err := G.Grad(loss, weights...)
		if err != nil {
			t.Fatal(err)
		}
		kept := 0
		for i, w := range weights {
			if kept == 0 && w.Shape().TotalSize() == 64 {
				kept = i
			}
		}
		if free {
			op.FreeAfterUse(g, gradients[kept])
		}
		m := G.NewTapeMachine(g, G.BindDualValues(weights...))
		defer m.Close()
		solver, err := NewAdamW(lm.Params(), AdamWConfig{LearnRate: 0.01})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if evaluate {
				if _, err := deviceLoss(lm); err != nil {
					t.Fatal(err)
				}
			}
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			if err := solver.Step(G.NodesToValueGrads(weights)); err != nil {
				t.Fatal(err)
			}
			r.losses = append(r.losses, loss.Value().Data().(float32))
		}
		if _, err := gradients[kept].Value().(*op.DeviceTensor).ToHost(); err != nil {
			t.Errorf("the gradient that is kept: %v", err)
		}
		r.used, _ = d.Memory()
		if evaluate {
			if _, err := deviceLoss(lm); err != nil {
				t.Fatal(err)
			}
		}
		r.rest = memoryWithoutValues(t, d, -1)
		return r
	}
	all, free, converted, evaluated := run(false, 1<<28, false), run(true, 1<<28, false), run(true, 0, false), run(true, 0, true)
	n := int64(0)
	for _, p := range nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 1, DState: 4}, Vocab: 200}).Params() {
		n += int64(p.Value.Size())
	}
	if saved := all.used - free.used; saved < 4*n*9/10 {
		t.Errorf("%d bytes are used between steps, and %d with FreeAfterUse, want those of the gradients of %d weights less", all.used, free.used, n)
	}
	if saved := free.used - converted.used; saved < n {
		t.Errorf("%d bytes are used with copies in bfloat16 and %d without, want more than a byte for each of %d weights less", free.used, converted.used, n)
	}
	if evaluated.rest > converted.rest {
		t.Errorf("%d bytes are used without copies after evaluations between steps, and %d without them", evaluated.rest, converted.rest)
	}
	if !slices.Equal(all.losses, evaluated.losses) {
		t.Errorf("the losses are %v, and with evaluations %v", all.losses, evaluated.losses)
	}
	if !slices.Equal(all.losses, free.losses) || !slices.Equal(all.losses, converted.losses) {
		t.Errorf("the losses are %v, with FreeAfterUse %v, and with converted weights %v", all.losses, free.losses, converted.losses)
	}
}

// deviceLoss returns a model's loss.
func deviceLoss(lm *nn.LM) (float32, error) {
	g := G.NewGraph()
	x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 5), tensor.WithBacking([]int{1, 2, 3, 4, 5})), G.WithName("ids"))
	loss, err := lm.Loss(x, x)
	if err != nil {
		return 0, err
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return 0, err
	}
	return loss.Value().Data().(float32), nil
}

// deviceStep returns a model's loss and, if the solver is not nil, makes a step with it.
func deviceStep(lm *nn.LM, solver *AdamW) (float32, error) {
	g := G.NewGraph()
	ids := tensor.New(tensor.WithShape(2, 9), tensor.WithBacking([]int{1, 2, 3, 4, 5, 6, 3, 2, 1, 4, 0, 1, 2, 3, 4, 5, 6, 1}))
	x := G.NodeFromAny(g, ids, G.WithName("ids"))
	loss, err := lm.Loss(x, x)
	if err != nil {
		return 0, err
	}
	weights := lm.Params().Trainable().Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		return 0, err
	}
	m := G.NewTapeMachine(g, G.BindDualValues(weights...))
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return 0, err
	}
	if solver != nil {
		err = solver.Step(G.NodesToValueGrads(weights))
	}
	return loss.Value().Data().(float32), err
}
