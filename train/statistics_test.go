package train

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// normed returns a problem with a batch norm. Batch bad of its data is infinite.
func normed(bad int) (Problem, layer.Params) {
	norm := layer.NewBatchNorm(layer.BatchNormConfig{Channels: 3}, layer.WithName("norm"), layer.WithDtype(tensor.Float64))
	head := layer.NewLinear(layer.LinearConfig{In: 3, Out: 2}, layer.WithName("head"), layer.WithDtype(tensor.Float64))
	batch := func(seed uint64) Batch {
		r := rand.New(rand.NewPCG(seed, 2))
		x := make([]float64, 4*5*3)
		for i := range x {
			if x[i] = 3 + 2*r.NormFloat64(); int(seed) == bad {
				x[i] = math.Inf(1)
			}
		}
		return Batch{map[string]*tensor.Dense{"x": tensorOf(x, 4, 5, 3)}, 4}
	}
	params := slices.Concat(norm.Params(), head.Params())
	return Problem{
		Params: params,
		Loss: func(c *Call) (*G.Node, error) {
			var opts []layer.CallOption
			if c.Training {
				opts = append(opts, layer.WithTraining(c.Step()))
			}
			y, err := norm.Apply(c.Input("x"), opts...)
			if err == nil {
				y, err = head.Apply(y)
			}
			if err != nil {
				return nil, err
			}
			return G.Mean(G.Must(G.Square(G.Must(G.Sub(y, G.NewConstant(1.0))))))
		},
		Data:    NewSource(func(i int) (Batch, error) { return batch(uint64(i)), nil }),
		HeldOut: []Batch{batch(100)},
	}, params
}

// Running statistics move with every batch of a step, and are in the file of a run: a run that was interrupted ends as another one. A step that fails
// leaves them as they were.
func TestRunningStatistics(t *testing.T) {
	for _, accumulate := range []int{1, 2} {
		cfg := RunConfig{Steps: 6, Accumulate: accumulate, AdamW: AdamWConfig{LearnRate: 0.01}}
		values := func(p layer.Params) (all []float64) {
			for _, w := range p {
				all = append(all, w.Value.Data().([]float64)...)
			}
			return all
		}
		problem, whole := normed(1000)
		tr := must(NewTrainer(problem, cfg))
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		want := values(whole)
		if mean := whole.ByName("norm.running_mean").Value.Data().([]float64)[0]; !(mean > 1 && mean < 3) {
			t.Errorf("the running mean is %v, want one on the way to 3", mean)
		}

		cfg.File = filepath.Join(t.TempDir(), "run")
		for range 2 {
			problem, params := normed(1000)
			tr := must(NewTrainer(problem, cfg))
			resumed := must(tr.Resume())
			ctx, cancel := context.WithCancel(context.Background())
			if tr.cfg.Report = func(c *Curve) {
				if len(c.Training) == 3 && !resumed {
					cancel()
				}
			}; true {
				_ = tr.Run(ctx)
			}
			cancel()
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			if got := values(params); resumed && !slices.Equal(got, want) {
				t.Errorf("accumulate %d: after an interruption the weights are %v, want %v", accumulate, got, want)
			} else if !resumed && slices.Equal(got, want) {
				t.Error("the run was not interrupted")
			}
		}

		problem, params := normed(2*accumulate + accumulate - 1) // the last batch of the third step
		cfg.File, cfg.Steps = "", 2
		tr = must(NewTrainer(problem, cfg))
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		before := values(params)
		tr.cfg.Steps = 3
		if err := tr.Run(context.Background()); err == nil {
			t.Error("a batch of infinities gives no error")
		}
		if got := values(params); !slices.Equal(got, before) {
			t.Errorf("accumulate %d: a failed step leaves %v, want %v", accumulate, got, before)
		}
		if err := params.UpdateStatistics(); err != nil { // as the trainer that comes next does
			t.Fatal(err)
		}
		if got := values(params); !slices.Equal(got, before) {
			t.Errorf("accumulate %d: the statistics of a failed step count later: %v, want %v", accumulate, got, before)
		}
		runtime.KeepAlive(tr) // its graph holds what the step has computed
	}
}
