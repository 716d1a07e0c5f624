package train

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"reflect"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// TestDeviceTrainingLoRA checks that LoRA trains on a device as on the host, also if the run is stopped and resumed; that the values on the device
// are saved, and are loaded on a device; and that the base weights do not change.
func TestDeviceTrainingLoRA(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	adapt := func(lm *nn.LM) *nn.LM {
		if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 3, Seed: 9}); err != nil {
			t.Fatal(err)
		}
		return lm
	}
	// run resumes from cfg.File, if there is one, and stops after the given number of steps.
	run := func(lm *nn.LM, cfg Config, steps int) *Trainer {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		cfg.Report = func(c *Curve) {
			if len(c.Training) == steps {
				stop()
			}
		}
		tr := newTrainer(t, lm, cfg)
		if cfg.File != "" {
			if _, err := tr.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		if err := tr.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return tr
	}
	all := config().Steps
	want := run(adapt(newLM(tensor.Float32, false)), config(), all)
	whole := adapt(deviceLM(d, cuda.Strict))
	got := run(whole, config(), all)
	for i, p := range want.Curve().Training {
		if loss := got.Curve().Training[i].Loss; math.Abs(loss-p.Loss) > 1e-4 {
			t.Errorf("step %d: the loss is %v, on the host %v", p.Step, loss, p.Loss)
		}
	}
	dir := t.TempDir()
	if err := SaveLoRA(dir, "base", whole.Params()); err != nil {
		t.Fatal(err)
	}
	trained := weights(whole)

	cfg := config()
	cfg.File = filepath.Join(t.TempDir(), "run")
	run(adapt(deviceLM(d, cuda.Strict)), cfg, 5)
	resumed := adapt(deviceLM(d, cuda.Strict))
	run(resumed, cfg, all)
	if err := resumed.Params().ToHost(); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(weights(resumed), trained) {
		t.Error("a run that was stopped and resumed differs from one without a stop")
	}

	loaded := deviceLM(d, cuda.Strict)
	base := weights(loaded)
	if err := LoadLoRA(dir, loaded.Params()); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(weights(loaded), trained) {
		t.Error("the LoRA differs after it was loaded")
	}
	losses := [2]float32{}
	for i, lm := range []*nn.LM{whole, loaded} {
		var err error
		if losses[i], err = deviceStep(lm, nil); err != nil {
			t.Fatal(err)
		}
	}
	if losses[0] != losses[1] {
		t.Errorf("the loss with the loaded LoRA is %v, want %v", losses[1], losses[0])
	}
	whole.Params().RemoveLoRA()
	if !reflect.DeepEqual(weights(whole), base) {
		t.Error("the base weights have changed")
	}
}
