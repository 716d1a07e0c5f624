package train

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

func deviceLM(d *cuda.Device, p cuda.Precision) *nn.LM {
	return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab, UntiedHead: true}, nn.WithSeed(3),
		nn.OnDevice(d), nn.WithPrecision(p))
}

// TestDeviceTraining checks that a run on a device has the losses of the host, also if it is stopped and resumed, and the same bits in every run.
func TestDeviceTraining(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	host := newLM(tensor.Float32, false)
	want := newTrainer(t, host, config())
	if err := want.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	var first [][]float64
	for _, accumulate := range []bool{false, true} {
		cfg := config()
		cfg.File = filepath.Join(t.TempDir(), "run")
		cfg.SaveEvery = 5
		ctx, stop := context.WithCancel(context.Background())
		cfg.Report = func(c *Curve) {
			if len(c.Training) == 7 && accumulate {
				stop()
			}
		}
		lm := deviceLM(d, cuda.Strict)
		tr := newTrainer(t, lm, cfg)
		err := tr.Run(ctx)
		stop()
		if accumulate { // the second half in another trainer
			if err != context.Canceled && err == nil {
				t.Fatalf("the run did not stop: %v", err)
			}
			cfg.Report = nil
			lm = deviceLM(d, cuda.Strict)
			tr = newTrainer(t, lm, cfg)
			if resumed, err := tr.Resume(); err != nil || !resumed {
				t.Fatalf("resumed: %v, %v", resumed, err)
			}
			err = tr.Run(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range want.Curve().Training {
			if got := tr.Curve().Training[i].Loss; math.Abs(got-p.Loss) > 1e-4 {
				t.Errorf("step %d: the loss is %v, on the host %v", p.Step, got, p.Loss)
			}
		}
		if err := lm.Params().ToHost(); err != nil {
			t.Fatal(err)
		}
		got := weights(lm)
		if first == nil {
			first = got
			dir := t.TempDir() // a checkpoint has the values on the device
			if err := checkpoint.Save(dir, lm); err != nil {
				t.Fatal(err)
			}
			loaded, err := checkpoint.Load(dir, nn.OnDevice(d))
			if err != nil {
				t.Fatal(err)
			}
			got = weights(loaded)
		}
		for i := range first {
			if !slices.Equal(got[i], first[i]) {
				t.Errorf("stopped and resumed %v: weight %d differs from that of one run", accumulate, i)
			}
		}
	}
}

// TestDeviceRepeats checks that twenty runs of a training graph on a device have the same loss and gradients, bit for bit, in every precision, and
// that a thousand steps leak no memory.
func TestDeviceRepeats(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	runs, steps := 20, 1000
	if testing.Short() {
		if steps = 50; gputest.OnStandin() {
			runs, steps = 6, 20
		}
	}
	for _, p := range []cuda.Precision{cuda.Strict, cuda.FP16x3, cuda.TF32, cuda.BF16} {
		lm := deviceLM(d, p)
		g := G.NewGraph()
		ints := func(name string, step int) *G.Node {
			v := make([]int, 3*70)
			for i := range v {
				v[i] = i * step % vocab
			}
			return G.NodeFromAny(g, tensor.New(tensor.WithShape(3, 70), tensor.WithBacking(v)), G.WithName(name))
		}
		loss, err := lm.Loss(ints("ids", 3), ints("targets", 5))
		if err != nil {
			t.Fatal(err)
		}
		nodes := lm.Params().Nodes(g)
		if _, err := G.Grad(loss, nodes...); err != nil {
			t.Fatal(err)
		}
		vm := G.NewTapeMachine(g)
		defer vm.Close()
		var first [][]float32
		for run := range runs {
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				t.Fatal(err)
			}
			all := [][]float32{{loss.Value().Data().(float32)}}
			for _, n := range nodes {
				v, err := n.Grad()
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, v.Data().([]float32))
			}
			if first == nil {
				first = all
			}
			for i := range all {
				if !slices.Equal(all[i], first[i]) {
					t.Fatalf("%v: run %d: result %d differs", p, run, i)
				}
			}
		}
		solver, err := NewAdamW(lm.Params(), AdamWConfig{LearnRate: 1e-3})
		if err != nil {
			t.Fatal(err)
		}
		held := int64(0)
		for step := range steps {
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				t.Fatal(err)
			}
			if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
				t.Fatal(err)
			}
			if _, now := d.Memory(); step == 5 {
				held = now
			} else if step > 5 && now != held {
				t.Fatalf("%v: after step %d the device holds %d bytes, after step 5 it held %d", p, step, now, held)
			}
		}
	}
}

// TestDeviceOutOfMemory checks that a graph that does not fit into the device's memory is an error that says so, and that the program can continue.
func TestDeviceOutOfMemory(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	lm := deviceLM(d, cuda.Strict)
	run := func(batch int) error {
		g := G.NewGraph()
		ids := tensor.New(tensor.WithShape(batch, 1<<14), tensor.Of(tensor.Int))
		n := G.NodeFromAny(g, ids, G.WithName("ids"))
		loss, err := lm.Loss(n, n)
		if err != nil {
			t.Fatal(err)
		}
		var value G.Value
		G.Read(loss, &value)
		vm := G.NewTapeMachine(g)
		defer vm.Close()
		return vm.RunAll()
	}
	if testing.Short() {
		t.Skip("the test fills the memory of the device, and -short is set")
	}
	err := run(1 << 14) // 2^28 tokens: the values inside a block take about 100 GB
	switch {
	case err == nil:
		t.Skip("the device has enough memory for the graph, so there is no error to test")
	case !strings.Contains(err.Error(), "out of memory"): // errors of a machine cannot be unwrapped
		t.Fatalf("the error is %v, want one that says out of memory", err)
	}
	t.Log(err)
	if err := run(1); err != nil {
		t.Errorf("after the error: %v", err)
	}
}
