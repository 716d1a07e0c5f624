package mamba_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
	"unsafe"

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
			reading := median(readings)
			b.ReportMetric(median(steps)/reading, "x-stream")
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

// median returns the median in nanoseconds.
func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds())
}

// sink uses the sums, so that the compiler does not remove the reads.
var sink uint64

// readOnce returns how long it takes to read all weights from memory, on all cores.
func readOnce(params layer.Params) time.Duration {
	const piece = 1 << 17 // words, one megabyte
	var pieces [][]uint64
	for _, p := range params {
		v := p.Value.Data().([]float32)
		if len(v) < 2 {
			continue
		}
		// Words of 64 bits need half as many loads, and sums of integers have a lower latency than sums of floats.
		pieces = slices.AppendSeq(pieces, slices.Chunk(unsafe.Slice((*uint64)(unsafe.Pointer(&v[0])), len(v)/2), piece))
	}
	sums := make([]uint64, len(pieces))
	start := time.Now()
	pool.Parallel(len(pieces), func(i int) { sums[i] = sum(pieces[i]) })
	took := time.Since(start)
	for _, s := range sums {
		sink += s
	}
	return took
}

// sum adds into four variables, so that it waits only for the memory.
func sum(v []uint64) uint64 {
	var a, b, c, d uint64
	for ; len(v) >= 8; v = v[8:] {
		a += v[0] + v[4]
		b += v[1] + v[5]
		c += v[2] + v[6]
		d += v[3] + v[7]
	}
	for _, x := range v {
		a += x
	}
	return a + b + c + d
}
