package mamba_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// BenchmarkFineTune measures a training step of train.Trainer, AdamW included, that trains all weights or a LoRA. The model has the shape of the
// published 130M model and random weights. peak-GB is the process's peak of resident memory during the steps, with the model's 0.52 GB.
func BenchmarkFineTune(b *testing.B) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50280}
	if testing.Short() {
		leftOut(b, stepName(cfg), "its weights are half a gigabyte, and -short is set")
		return
	}
	lm := nn.NewLM(cfg)
	measureFineTune(b, lm, "weights=all")
	if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 8}); err != nil {
		b.Fatal(err)
	}
	measureFineTune(b, lm, "weights=lora")
}

func measureFineTune(b *testing.B, lm *nn.LM, name string) {
	b.Helper()
	const batch, length = 1, 512
	document := train.Document{Tokens: make([]int, length)}
	for i := range document.Tokens {
		document.Tokens[i] = 97 * i % lm.Config().Vocab
	}
	b.Run(fmt.Sprintf("%s/B=%d/L=%d/%s", name, batch, length, stepName(lm.Config())), func(b *testing.B) {
		benchtest.Processors(b)
		trainer, err := train.New(lm, train.Config{
			Batch: batch, Length: length, Steps: 1 + b.N, Data: []train.Document{document}, AdamW: train.AdamWConfig{LearnRate: 1e-5},
			Report: func(c *train.Curve) {
				if len(c.Training) == 1 { // the first step does more and is not measured
					forgetPeak()
					b.ReportAllocs()
					b.ResetTimer()
				}
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := trainer.Run(b.Context()); err != nil {
			b.Fatal(err)
		}
		work{tokens: batch * length}.report(b)
		if peak := peakGB(); peak > 0 {
			b.ReportMetric(peak, "peak-GB")
		}
		if err := trainer.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

// forgetPeak resets the peak that peakGB returns. It has an effect only on Linux.
func forgetPeak() {
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// peakGB returns the peak of resident memory in gigabytes, or 0 if the system does not report it.
func peakGB() float64 {
	if runtime.GOOS != "linux" {
		return 0
	}
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib float64
			_, _ = fmt.Sscan(rest, &kib)
			return kib * 1024 / 1e9
		}
	}
	return 0
}
