package mamba_test

import (
	"fmt"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/nn"
)

// BenchmarkGenerate measures nn.Generator with a model of the shape of the published 130M model and random weights: reading a prompt of 1024
// tokens and choosing the next token, and generating tokens, for one sequence and for eight sequences at a time. peak-GB is the process's peak
// of resident memory, with the model's 0.52 GB.
func BenchmarkGenerate(b *testing.B) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50280}
	if testing.Short() {
		leftOut(b, stepName(cfg), "its weights are half a gigabyte, and -short is set")
		return
	}
	lm := nn.NewLM(cfg)
	measureGenerate(b, lm, "prefill", 1, 1024, 1)
	for _, options := range []struct {
		name string
		nn.Sampling
	}{
		{"greedy", nn.Sampling{}},
		{"sampled", nn.Sampling{Temperature: 0.8, TopK: 50, TopP: 0.95, RepetitionPenalty: 1.1}},
		{"top-p", nn.Sampling{Temperature: 0.8, TopP: 0.95}},
	} {
		measureGenerate(b, lm, "generate/"+options.name, 1, 1, 16, options.Sampling)
	}
	measureGenerate(b, lm, "generate/greedy", 8, 1, 16)
}

// measureGenerate reads prompts of a length and generates tokens after each of them.
func measureGenerate(b *testing.B, lm *nn.LM, name string, batch, length, tokens int, sampling ...nn.Sampling) {
	b.Helper()
	cfg := nn.GenerateConfig{MaxTokens: tokens}
	for _, s := range sampling {
		cfg.Sampling = s
	}
	g, err := nn.NewGenerator(lm, cfg)
	if err != nil {
		b.Fatal(err)
	}
	prompts := make([][]int, batch)
	for i := range prompts {
		for j := range length {
			prompts[i] = append(prompts[i], (i+7*j)%lm.Config().Vocab)
		}
	}
	run := func() error {
		got, err := g.Generate(b.Context(), prompts, nil)
		for i := range got {
			if len(got[i]) != tokens {
				return fmt.Errorf("%d tokens, want %d", len(got[i]), tokens)
			}
		}
		return err
	}
	warm := false // set once for all runs of -count
	b.Run(fmt.Sprintf("%s/B=%d/L=%d/%s", name, batch, length, stepName(lm.Config())), func(b *testing.B) {
		if !warm {
			if err := run(); err != nil {
				b.Fatal(err)
			}
			warm = true
		}
		forgetPeak()
		b.ReportAllocs()
		benchtest.Processors(b)
		for b.Loop() {
			if err := run(); err != nil {
				b.Fatal(err)
			}
		}
		work{tokens: batch * max(tokens, length)}.report(b)
		if peak := peakGB(); peak > 0 {
			b.ReportMetric(peak, "peak-GB")
		}
	})
	if err := g.Close(); err != nil {
		b.Fatal(err)
	}
}
