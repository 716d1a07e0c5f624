package main

import (
	"context"
	"math/rand/v2"

	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
)

// newModel returns a language model over bytes.
func newModel(set settings, where []nn.Option) (*nn.LM, error) {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: set.dmodel, NLayer: set.layers}, Vocab: 256},
		append(where, nn.WithSeed(uint64(set.seed)))...)
	return lm, lm.Err()
}

// adamW returns the solver: the learn rate rises over the first steps and falls along half a cosine to a tenth.
func adamW(set settings) train.AdamWConfig {
	return train.AdamWConfig{LearnRate: set.lr, Schedule: train.WarmupCosine(min(50, set.steps/10), set.steps, 0.1)}
}

// learn trains until the last step or the end of the context, and returns the losses. It evaluates the held-out windows about ten times.
func learn(ctx context.Context, set settings, lm *nn.LM, d *data, show *report.Progress) (curve train.Curve, err error) {
	show.Start(0)
	defer show.Finish()
	err = loop.Train(ctx, train.Problem{Params: lm.Params(), Loss: train.LMLoss(lm), Data: d.source, HeldOut: d.windows},
		train.RunConfig{Steps: set.steps, EvalEvery: max(set.steps/10, 1), AdamW: adamW(set)},
		func(t *train.Trainer, last bool) (bool, error) {
			curve = *t.Curve()
			if n := len(curve.HeldOut); last && curve.HeldOut[n-1].Step < t.Done() { // it was stopped
				loss, err := t.Evaluate(d.windows)
				if err != nil {
					return false, err
				}
				curve.HeldOut = append(curve.HeldOut, train.Point{Step: t.Done(), Loss: loss})
			}
			show.Update(&curve)
			return false, nil
		})
	return curve, err
}

// write reads the prompt byte by byte, and then feeds the model what it draws itself.
func write(lm *nn.LM, prompt []byte, bytes int, temperature float64, random *rand.Rand) ([]byte, error) {
	stepper, err := nn.NewStepper(lm, 1)
	if err != nil {
		return nil, err
	}
	defer stepper.Close()
	var logits [][]float64
	for _, b := range prompt {
		if logits, err = stepper.Step([]int{int(b)}); err != nil {
			return nil, err
		}
	}
	var text []byte
	for len(text) < bytes {
		next, err := task.Draw(logits[0], temperature, random)
		if err != nil {
			return nil, err
		}
		text = append(text, byte(next))
		if logits, err = stepper.Step([]int{next}); err != nil {
			return nil, err
		}
	}
	return text, nil
}
