package mamba_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
	pool "github.com/gomamba/mamba/internal/work"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// BenchmarkStep measures a step of generation of one token at batch 1, with the model of examples/bytelm, and with a model of the shape of the
// published 130M model and random weights. A step of the large model reads every weight once and does little else. x-stream is the step time
// divided by the time to read all weights once with the same number of cores. Both times are medians, and are measured alternately.
func BenchmarkStep(b *testing.B) {
	measureStep(b, nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 256}, false)
	large := nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50280}
	if testing.Short() {
		leftOut(b, stepName(large), "its weights are half a gigabyte, and -short is set")
		return
	}
	measureStep(b, large, true)
}

func stepName(c nn.LMConfig) string {
	return fmt.Sprintf("M=%d/layers=%d/vocab=%d", c.DModel, c.NLayer, c.Vocab)
}

func measureStep(b *testing.B, cfg nn.LMConfig, stream bool) {
	b.Helper()
	var lm *nn.LM // made once for all runs of -count
	var stepper *nn.Stepper
	b.Run(stepName(cfg), func(b *testing.B) {
		if lm == nil {
			lm = nn.NewLM(cfg)
			var err error
			if stepper, err = nn.NewStepper(lm, 1); err != nil {
				b.Fatal(err)
			}
			logits, err := stepper.Step([]int{1})
			if err != nil {
				b.Fatal(err)
			}
			if err := saneLogits(logits, cfg.Vocab); err != nil {
				b.Fatal(err)
			}
		}
		var steps, readings []time.Duration
		b.ReportAllocs()
		benchtest.Processors(b)
		for i := 0; b.Loop(); i++ {
			start := time.Now()
			if _, err := stepper.Step([]int{i % cfg.Vocab}); err != nil {
				b.Fatal(err)
			}
			if stream {
				b.StopTimer()
				steps = append(steps, time.Since(start))
				readings = append(readings, readOnce(lm.Params()))
				b.StartTimer()
			}
		}
		full := lm.Config()
		work{tokens: 1, flop: float64(full.NLayer)*productFlop(full.Config) + 2*float64(full.DModel*full.Vocab)}.report(b)
		if stream {
			reading := benchtest.Median(readings)
			b.ReportMetric(benchtest.Median(steps)/reading, "x-stream")
			b.ReportMetric(4*float64(lm.Params().Count())/reading, "stream-GB/s")
		}
	})
	if stepper != nil {
		if err := stepper.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func saneLogits(rows [][]float64, vocab int) error {
	if len(rows) != 1 || len(rows[0]) != vocab {
		return fmt.Errorf("%d rows of logits, want one of %d", len(rows), vocab)
	}
	low, high := slices.Min(rows[0]), slices.Max(rows[0]) // NaN if a logit is NaN
	if !(low < high) || math.IsInf(low, 0) || math.IsInf(high, 0) {
		return fmt.Errorf("the logits are between %v and %v", low, high)
	}
	return nil
}

// readOnce returns how long it takes to read all weights from memory, on all cores.
func readOnce(params layer.Params) time.Duration {
	var arrays [][]float32
	for _, p := range params {
		arrays = append(arrays, p.Value.Data().([]float32))
	}
	return benchtest.Read(arrays, pool.Parallel)
}
