package train

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// A training run whose work is replayed as CUDA graphs has the weights, moments and losses, bit for bit, of a run whose work is queued one by one:
// with layers of all kinds, in each precision, with packed documents, dropout, a schedule, accumulated gradients, evaluations and a graph of another
// shape between the steps, and when it is stopped and resumed. (With -short, one precision and one kind.)
func TestDeviceGraphs(t *testing.T) {
	const stopped = 4
	steps, kinds := 24, nn.Kinds()
	if testing.Short() {
		steps, kinds = 16, []nn.Kind{nn.Mamba}
	}
	run := func(t *testing.T, graphs string, p cuda.Precision, accumulate int) (all [][]float64, l cuda.Launches) {
		t.Setenv("MAMBA_GRAPHS", graphs)
		d := gputest.Open(t, cuda.Open)
		cfg := Config{Batch: 2, Length: 16, Steps: steps, Data: documents(40), HeldOut: documents(9), Seed: 5, EvalEvery: 4, SaveEvery: steps, Accumulate: accumulate,
			AdamW: AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 1, Schedule: WarmupCosine(3, steps, 0.1)}, File: filepath.Join(t.TempDir(), "run")}
		for tr := (*Trainer)(nil); tr.Done() < steps; {
			lm := nn.NewLM(nn.LMConfig{
				Config: nn.Config{DModel: 8, DState: 4, Pattern: kinds, NLayer: len(kinds), NHead: 2, Window: 4, DHidden: 8, Dropout: 0.1, DropPath: 0.1}, Vocab: vocab,
			}, nn.WithSeed(3), nn.OnDevice(d), nn.WithPrecision(p))
			ctx, stop := context.WithCancel(context.Background())
			other := otherShape(t, lm)
			cfg.Report = func(c *Curve) {
				if len(c.Training) == stopped {
					stop() // and resume in the next turn
				}
				if len(c.Training)%3 == 0 {
					all = append(all, []float64{other()})
				}
			}
			tr = newTrainer(t, lm, cfg)
			if _, err := tr.Resume(); err != nil {
				t.Fatal(err)
			}
			if err := tr.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			stop()
			if tr.Done() < steps {
				continue
			}
			tensors, err := tr.tensors(true)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range tensors {
				all = append(all, numbers(m.Value))
			}
			for _, p := range slices.Concat(tr.Curve().Training, tr.Curve().HeldOut) {
				all = append(all, []float64{p.Loss})
			}
		}
		return all, d.Launches()
	}
	for _, p := range []cuda.Precision{cuda.Strict, cuda.FP16x3, cuda.TF32, cuda.BF16} {
		for _, accumulate := range []int{1, 2} {
			if testing.Short() && (p != cuda.BF16 || accumulate != 2) {
				continue
			}
			t.Run(fmt.Sprintf("%v/%d", p, accumulate), func(t *testing.T) {
				want, single := run(t, "off", p, accumulate)
				got, graphs := run(t, "on", p, accumulate)
				if !slices.EqualFunc(want, got, slices.Equal[[]float64]) {
					t.Error("the two runs differ")
				}
				// The other graphs between the steps take memory, so few addresses repeat: on an H200, 7 to 22% of the work is replayed.
				if single.Replayed != 0 || graphs.Replayed < single.Single/20 || graphs.Single+graphs.Replayed != single.Single {
					t.Errorf("%+v with graphs and %+v without, want the same work, and a twentieth of it replayed", graphs, single)
				}
				t.Logf("%+v", graphs)
			})
		}
	}
}

// otherShape returns a function that computes the model's loss of other sequences, by a graph of its own.
func otherShape(t *testing.T, lm *nn.LM) func() float64 {
	g := G.NewGraph()
	ids := tensor.New(tensor.WithShape(1, 7), tensor.WithBacking([]int{1, 2, 3, 4, 5, 6, 0}))
	n := G.NodeFromAny(g, ids, G.WithName("ids"))
	loss, err := lm.Loss(n, n)
	if err != nil {
		t.Fatal(err)
	}
	vm := G.NewTapeMachine(g)
	t.Cleanup(func() { vm.Close() })
	return func() float64 {
		vm.Reset()
		if err := vm.RunAll(); err != nil {
			t.Fatal(err)
		}
		return float64(loss.Value().Data().(float32))
	}
}
