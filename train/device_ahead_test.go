package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// A trainer whose steps are queued before they are asked for has the losses, weights and moments, bit for bit, of one whose work is queued piece by piece, whatever else uses the
// device between the steps. least is the part of the work that is queued early.
func TestDeviceAhead(t *testing.T) {
	const steps = 30
	type parts struct {
		t   *testing.T
		lm  *nn.LM
		tr  *Trainer
		all *[][]float64
	}
	weights := func(p parts) {
		if err := p.lm.Params().ToHost(); err != nil {
			p.t.Fatal(err)
		}
		*p.all = append(*p.all, numbers(p.lm.Params()[1].Value))
	}
	for _, c := range []struct {
		name   string
		least  float64
		long   bool
		change func(cfg *Config, lm *nn.LMConfig)
		report func(p parts, step int)
	}{
		{name: "nothing", least: 0.6},
		{name: "evaluations and saves", least: 0.3, change: func(cfg *Config, _ *nn.LMConfig) { cfg.EvalEvery, cfg.SaveEvery = 7, 10 }},
		{name: "dropout and a schedule", long: true, least: 0.6, change: func(cfg *Config, lm *nn.LMConfig) {
			lm.Dropout, lm.DropPath, cfg.AdamW.Schedule = 0.1, 0.1, WarmupCosine(5, steps, 0.1)
		}},
		{name: "accumulation", long: true, change: func(cfg *Config, lm *nn.LMConfig) { cfg.Accumulate = 2 }},
		{name: "all kinds of layers", long: true, change: func(cfg *Config, lm *nn.LMConfig) {
			lm.Pattern, lm.NLayer, lm.NHead, lm.Window, lm.DHidden = nn.Kinds(), len(nn.Kinds()), 2, 4, 8
		}},
		{name: "weights are read", report: func(p parts, step int) {
			if step%6 == 0 {
				weights(p)
			}
		}},
		{name: "an evaluation in Report", report: func(p parts, step int) {
			if step%9 == 0 {
				loss, err := p.tr.Evaluate(p.tr.heldOut)
				if err != nil {
					p.t.Fatal(err)
				}
				*p.all = append(*p.all, []float64{loss})
			}
		}},
		{name: "a weight is changed", report: func(p parts, step int) {
			if step == 12 || step == 24 {
				if err := p.lm.Params().ToHost(); err != nil {
					p.t.Fatal(err)
				}
				numbers := p.lm.Params()[0].Value.Data().([]float32)
				for i := range numbers {
					numbers[i] *= 0.5
				}
				p.lm.Params().ValuesChanged()
			}
		}},
		{name: "a weight becomes infinite", report: func(p parts, step int) {
			if step == 24 {
				if err := p.lm.Params().ToHost(); err != nil {
					p.t.Fatal(err)
				}
				p.lm.Params()[1].Value.Data().([]float32)[0] = float32(math.Inf(1))
				p.lm.Params().ValuesChanged()
			}
		}},
		{name: "the run is stopped and resumed"},
	} {
		for _, precision := range []cuda.Precision{cuda.Strict, cuda.BF16} {
			if testing.Short() && (precision == cuda.Strict || c.long) {
				continue
			}
			t.Run(c.name+"/"+precision.String(), func(t *testing.T) {
				run := func(graphs string) (all [][]float64, l cuda.Launches) {
					t.Setenv("MAMBA_GRAPHS", graphs)
					d := gputest.Open(t, cuda.Open)
					model := nn.LMConfig{Config: nn.Config{DModel: 8, DState: 4, NLayer: 2}, Vocab: vocab}
					cfg := Config{Batch: 2, Length: 16, Steps: steps, Data: documents(40), HeldOut: documents(9), Seed: 5,
						AdamW: AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 1}, File: filepath.Join(t.TempDir(), "run")}
					if c.change != nil {
						c.change(&cfg, &model)
					}
					for again := true; again; {
						lm := nn.NewLM(model, nn.WithSeed(3), nn.OnDevice(d), nn.WithPrecision(precision))
						ctx, stop := context.WithCancel(context.Background())
						var tr *Trainer
						cfg.Report = func(curve *Curve) {
							if c.report != nil {
								c.report(parts{t, lm, tr, &all}, len(curve.Training))
							}
							if c.name == "the run is stopped and resumed" && len(curve.Training) == 22 {
								stop()
							}
						}
						tr = newTrainer(t, lm, cfg)
						if _, err := tr.Resume(); err != nil {
							t.Fatal(err)
						}
						err := tr.Run(ctx)
						stop()
						if again = errors.Is(err, context.Canceled); again {
							continue
						}
						if (err != nil) != (c.name == "a weight becomes infinite") {
							t.Fatal(err)
						}
						all = append(all, []float64{float64(tr.Done())})
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
				want, _ := run("off")
				got, l := run("on")
				same := func(a, b []float64) bool {
					return slices.EqualFunc(a, b, func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) })
				}
				if !slices.EqualFunc(want, got, same) {
					t.Error("the two runs differ")
				}
				if part := float64(l.Ahead) / float64(l.Single+l.Replayed); part < c.least {
					t.Errorf("%+v: %.2f of the work was queued early, want %.2f", l, part, c.least)
				}
				t.Logf("%+v", l)
			})
		}
	}
}

// A program's own loop with Gorgonia's machine, which reads gradients, weights or results between the pieces of a step, gets the same bits with work that is queued early
// and without.
func TestDeviceAheadMachine(t *testing.T) {
	run := func(t *testing.T, graphs string, between func(step int, lm *nn.LM, nodes G.Nodes, other func() float64) [][]float64) (all [][]float64, l cuda.Launches) {
		t.Setenv("MAMBA_GRAPHS", graphs)
		d := gputest.Open(t, cuda.Open)
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, DState: 4, NLayer: 2}, Vocab: vocab}, nn.WithSeed(3), nn.OnDevice(d))
		g := G.NewGraph()
		ids, targets := G.NewMatrix(g, tensor.Int, G.WithShape(2, 16), G.WithName("ids")), G.NewMatrix(g, tensor.Int, G.WithShape(2, 16), G.WithName("targets"))
		loss, err := lm.Loss(ids, targets)
		if err != nil {
			t.Fatal(err)
		}
		nodes := lm.Params().Trainable().Nodes(g)
		if _, err := G.Grad(loss, nodes...); err != nil {
			t.Fatal(err)
		}
		op.FreeAfterUse(g)
		vm := G.NewTapeMachine(g, G.BindDualValues(nodes...))
		defer vm.Close()
		solver, err := NewAdamW(lm.Params().Trainable(), AdamWConfig{LearnRate: 0.02})
		if err != nil {
			t.Fatal(err)
		}
		other := otherShape(t, lm)
		for step := range 30 {
			for i, n := range (G.Nodes{ids, targets}) {
				v := make([]int, 32)
				for j := range v {
					v[j] = (j*7 + step*(3+i)) % vocab
				}
				if err := G.Let(n, tensor.New(tensor.WithShape(2, 16), tensor.WithBacking(v))); err != nil {
					t.Fatal(err)
				}
			}
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				t.Fatal(err)
			}
			all = append(all, []float64{float64(loss.Value().Data().(float32))})
			all = append(all, between(step, lm, nodes, other)...)
			if step%10 == 9 { // the gradients of two runs are added
				continue
			}
			if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
				t.Fatal(err)
			}
		}
		if err := lm.Params().ToHost(); err != nil {
			t.Fatal(err)
		}
		for _, p := range lm.Params() {
			all = append(all, numbers(p.Value))
		}
		return all, d.Launches()
	}
	for _, c := range []struct {
		name    string
		between func(step int, lm *nn.LM, nodes G.Nodes, other func() float64) [][]float64
	}{
		{"nothing", func(int, *nn.LM, G.Nodes, func() float64) [][]float64 { return nil }},
		{"gradients", func(step int, _ *nn.LM, nodes G.Nodes, _ func() float64) (all [][]float64) {
			if step%5 > 0 {
				return nil
			}
			for _, n := range nodes {
				grad, err := n.Grad()
				if err != nil {
					t.Fatal(err)
				}
				host, err := grad.(*op.DeviceTensor).ToHost()
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, numbers(host))
			}
			return all
		}},
		{"another machine", func(step int, _ *nn.LM, _ G.Nodes, other func() float64) [][]float64 {
			if step%4 > 0 {
				return nil
			}
			return [][]float64{{other()}}
		}},
		{"a weight", func(step int, lm *nn.LM, _ G.Nodes, _ func() float64) [][]float64 {
			if err := lm.Params().ToHost(); err != nil {
				t.Fatal(err)
			}
			if step%7 == 0 {
				lm.Params()[2].Value.Data().([]float32)[0] += 0.25
				lm.Params().ValuesChanged()
			}
			return [][]float64{numbers(lm.Params()[2].Value)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, _ := run(t, "off", c.between)
			got, l := run(t, "on", c.between)
			if fmt.Sprint(want) != fmt.Sprint(got) {
				t.Error("the two runs differ")
			}
			if l.Ahead == 0 {
				t.Errorf("%+v: no work was queued early", l)
			}
			t.Logf("%+v", l)
		})
	}
}
