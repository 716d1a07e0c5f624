package train_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// The trainer of a language model turns on its dropout in training and leaves it off in evaluation. A run that is stopped and resumed drops the
// same elements.
func TestLanguageModelDropout(t *testing.T) {
	docs := []train.Document{{Tokens: make([]int, 300)}}
	for i := range docs[0].Tokens {
		docs[0].Tokens[i] = i * i % 13
	}
	run := func(dropout, path float64, file string, stop int) *train.Curve {
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4, Dropout: dropout, DropPath: path}, Vocab: 13}, nn.WithSeed(4))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cfg := train.Config{Batch: 2, Length: 16, Steps: 6, Data: docs, HeldOut: docs, AdamW: train.AdamWConfig{LearnRate: 1e-2}, File: file}
		cfg.Report = func(c *train.Curve) {
			if len(c.Training) == stop {
				cancel()
			}
		}
		tr, err := train.New(lm, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if file != "" && stop == 0 {
			if resumed, err := tr.Resume(); err != nil || !resumed {
				t.Fatal(err)
			}
		}
		if err := tr.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return tr.Curve()
	}
	plain, dropped, again := run(0, 0, "", 0), run(0.5, 0, "", 0), run(0.5, 0, "", 0)
	if plain.HeldOut[0] != dropped.HeldOut[0] {
		t.Errorf("the held-out loss before the first step is %v with dropout, want %v as without", dropped.HeldOut[0], plain.HeldOut[0])
	}
	if plain.Training[0] == dropped.Training[0] {
		t.Errorf("the loss of the first step is %v with dropout, as without", plain.Training[0])
	}
	if paths := run(0, 0.5, "", 0); paths.Training[0] == plain.Training[0] && paths.Training[1] == plain.Training[1] {
		t.Error("the losses of two steps with drop-path are those without")
	}
	file := filepath.Join(t.TempDir(), "run")
	run(0.5, 0, file, 3)
	resumed := run(0.5, 0, file, 0)
	for i, p := range dropped.Training {
		if again.Training[i] != p || resumed.Training[i] != p {
			t.Errorf("step %d: the loss is %v, %v in a second run, %v in a resumed one", i+1, p, again.Training[i], resumed.Training[i])
		}
	}
}
