package mamba_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/size"
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
	for _, batch := range []int{1, 8} {
		measureStream(b, lm, batch)
	}
}

// measureStream measures a token of each of some sequences, beside the time to read all weights once with the same number of processors: the least
// that a step can take. x-stream is the ratio of the medians. Both are measured in turn, in one call of Continue.
func measureStream(b *testing.B, lm *nn.LM, batch int) {
	b.Helper()
	b.Run(fmt.Sprintf("stream/B=%d/L=1/%s", batch, stepName(lm.Config())), func(b *testing.B) {
		g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 1 << 20})
		if err != nil {
			b.Fatal(err)
		}
		sequences := make([]*nn.Sequence, batch)
		for i := range sequences {
			sequences[i] = nn.NewSequence(1, 1+i)
		}
		var steps, readings []time.Duration
		b.ReportAllocs()
		benchtest.Processors(b)
		for b.Loop() {
			left := 8 + 1 // the first token of a call includes what a call begins with
			start := time.Now()
			_, err := g.Continue(b.Context(), sequences, func(sequence, _ int) error {
				if sequence < batch-1 {
					return nil
				}
				if left < 9 {
					steps = append(steps, time.Since(start))
					readings = append(readings, readOnce(lm.Params()))
				}
				if left--; left == 0 {
					return io.EOF
				}
				start = time.Now()
				return nil
			})
			if err != io.EOF {
				b.Fatal(err)
			}
		}
		step, reading := benchtest.Median(steps), benchtest.Median(readings)
		b.ReportMetric(step, "ns/step")
		b.ReportMetric(reading, "ns/reading")
		b.ReportMetric(step/reading, "x-stream")
		b.ReportMetric(4*float64(lm.Params().Count())/reading, "stream-GB/s")
		if err := g.Close(); err != nil {
			b.Fatal(err)
		}
	})
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

// BenchmarkGenerateNarrow is BenchmarkGenerate for a model loaded with narrow weights (checkpoint.Weights). GB is what its weights take.
// reading, in the same run, is what reading as many bytes takes.
func BenchmarkGenerateNarrow(b *testing.B) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50280}
	if testing.Short() {
		leftOut(b, stepName(cfg), "its weights are half a gigabyte, and -short is set")
		return
	}
	dir := b.TempDir()
	if err := checkpoint.Save(dir, nn.NewLM(cfg)); err != nil {
		b.Fatal(err)
	}
	for _, types := range []string{"float32", "bfloat16", "int8", "int4"} {
		lm, err := checkpoint.Load(dir, checkpoint.Weights(types))
		if err != nil {
			b.Fatal(err)
		}
		measureNarrow(b, lm, types)
	}
}

// measureNarrow measures one sequence, eight, and a prompt, beside reading the weights.
func measureNarrow(b *testing.B, lm *nn.LM, name string) {
	bytes := 0
	for _, p := range lm.Params() {
		if w := p.Narrow(); w != nil {
			bytes += w.Bytes()
		} else {
			bytes += 4 * p.Shape().TotalSize()
		}
	}
	benchmarkReading(b, name, bytes)
	measureGenerate(b, lm, name, 1, 1, 32)
	measureGenerate(b, lm, name, 8, 1, 16)
	measureGenerate(b, lm, name+"/prompt", 1, 1024, 1)
}

// BenchmarkGenerateGGUF is BenchmarkGenerateNarrow for the files that $MAMBA_GGUF names, separated by commas: llama.cpp reads the same ones.
func BenchmarkGenerateGGUF(b *testing.B) {
	files := os.Getenv("MAMBA_GGUF")
	if files == "" {
		leftOut(b, "files", "$MAMBA_GGUF names none")
		return
	}
	for _, file := range strings.Split(files, ",") {
		lm, err := checkpoint.Load(file)
		if err != nil {
			b.Fatal(err)
		}
		measureNarrow(b, lm, strings.TrimSuffix(filepath.Base(file), ".gguf"))
	}
}

// benchmarkReading reads memory on all processors.
func benchmarkReading(b *testing.B, name string, bytes int) {
	memory := make([]float64, bytes/8)
	size.HugePages(memory) // as the weights have them
	for i := range memory {
		memory[i] = float64(i)
	}
	b.Run("reading/"+name, func(b *testing.B) {
		sums := make([]float64, 8*1024)
		benchtest.Processors(b)
		for b.Loop() {
			processors := min(runtime.GOMAXPROCS(0), 1024)
			var all sync.WaitGroup
			for p := range processors {
				all.Go(func() {
					part := memory[p*len(memory)/processors : (p+1)*len(memory)/processors]
					var s [8]float64
					for i := 0; i+8 <= len(part); i += 8 {
						s[0] += part[i]
						s[1] += part[i+1]
						s[2] += part[i+2]
						s[3] += part[i+3]
						s[4] += part[i+4]
						s[5] += part[i+5]
						s[6] += part[i+6]
						s[7] += part[i+7]
					}
					sums[8*p] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7]
				})
			}
			all.Wait()
		}
		b.ReportMetric(float64(bytes)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GB/s")
	})
}
