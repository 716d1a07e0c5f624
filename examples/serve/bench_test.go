package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// loaded returns a model of bytes with random weights for the benchmarks. If $MAMBA_SERVE_DEVICE is a precision, the model is on the GPU, in the
// shape of the published one of 130 million parameters.
func loaded(b *testing.B) *model {
	b.Helper()
	cfg := nn.Config{DModel: 512, NLayer: 6}
	if testing.Short() {
		cfg = tiny
	}
	name := os.Getenv("MAMBA_SERVE_DEVICE")
	if name == "" {
		m := testModel(cfg)
		m.ends = nil
		return m
	}
	set, err := parse([]string{"-device", "cuda", "-precision", name}, io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	where, _, closeDevice, err := set.device.Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(closeDevice)
	if !testing.Short() {
		cfg = nn.Config{DModel: 768, NLayer: 24}
	}
	const vocab = 50280
	return &model{lm: nn.NewLM(nn.LMConfig{Config: cfg, Vocab: vocab}, where...), name: "test", vocab: vocab, tokenizer: wordTokenizer(b, vocab)}
}

// wordTokenizer returns a tokenizer of n tokens: the bytes, and words that no text has.
func wordTokenizer(b *testing.B, n int) *tokens.Tokenizer {
	b.Helper()
	vocab, other := map[string]int{}, rune(256)
	for i := range 256 { // the characters that a byte-level BPE has for bytes
		c := rune(i)
		if i <= ' ' || i > '~' && i <= 0xa0 || i == 0xad {
			c = other
			other++
		}
		vocab[string(c)] = i
	}
	for i := 256; i < n; i++ {
		vocab[fmt.Sprintf("word%d", i)] = i
	}
	text, err := json.Marshal(object{"model": object{"type": "BPE", "vocab": vocab, "merges": []string{}},
		"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}, "decoder": object{"type": "ByteLevel"}})
	dir := b.TempDir()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "tokenizer.json"), text, 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
	t, err := tokens.Open(dir, n)
	if err != nil {
		b.Fatal(err)
	}
	return t
}

// timed sends a request, and returns the time to the first part of its stream, and the lines of the answer.
func (s *testServer) timed(body object) (first time.Duration, answer []byte, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	start := time.Now()
	resp, err := s.client.Post(s.url+"/v1/completions", "application/json", bytes.NewReader(text))
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if first == 0 && bytes.HasPrefix(lines.Bytes(), []byte("data: {")) {
			first = time.Since(start)
		}
		answer = append(append(answer, lines.Bytes()...), '\n')
	}
	return first, answer, lines.Err()
}

// BenchmarkLoad has 64 clients at once, each with a prompt of L tokens and an answer of 128 tokens. It shows medians: tokens per second of the
// server and of a Generator with the same 64 sequences, their ratio, the median of the time to the first token, also in steps of a batch of 64 (the
// Generator's time divided by 128), and how many answers are those of the Generator (a batch of 64 rounds otherwise than smaller ones).
func BenchmarkLoad(b *testing.B) {
	m, small := loaded(b), testModel(nn.Config{DModel: 64, NLayer: 2}) // the small one is that of examples/bytelm
	small.ends = nil
	for _, length := range []int{16, 32} {
		b.Run(fmt.Sprintf("L=%d", length), func(b *testing.B) { measureLoad(b, m, length, 1, true) })
	}
	b.Run("greedy", func(b *testing.B) { measureLoad(b, m, 32, 0, true) })
	for _, stream := range []bool{true, false} {
		b.Run(fmt.Sprintf("bytelm/stream=%t", stream), func(b *testing.B) { measureLoad(b, small, 16, 1, stream) })
	}
}

func measureLoad(b *testing.B, m *model, read int, temperature float64, stream bool) {
	const clients = 64
	answer := 128
	if testing.Short() {
		answer = 4
	}
	s := start(b, m)
	sampling := nn.Sampling{Temperature: temperature}
	g, err := nn.NewGenerator(m.lm, nn.GenerateConfig{Sampling: sampling, MaxTokens: answer, Piece: 64})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	prompt := func(i int) string { return fmt.Sprintf("%0*d", read, i) }
	answers := make([][]byte, clients)
	serve := func() (firsts []time.Duration) {
		var wait sync.WaitGroup
		var mu sync.Mutex
		for i := range clients {
			wait.Go(func() {
				first, text, err := s.timed(object{"model": "test", "prompt": prompt(i), "max_tokens": answer, "seed": i, "stream": stream, "temperature": temperature})
				if err != nil || (first == 0) == stream {
					b.Errorf("client %d: first part after %v, %v", i, first, err)
				}
				answers[i] = text
				mu.Lock()
				firsts = append(firsts, first)
				mu.Unlock()
			})
		}
		wait.Wait()
		slices.Sort(firsts)
		return firsts
	}
	var want [][]int
	generate := func(prompts [][]int) {
		if want, err = g.Generate(context.Background(), prompts, nil); err != nil {
			b.Fatal(err)
		}
	}
	prompts := make([][]int, clients)
	for i := range prompts {
		prompts[i], _ = m.tokenizer.Encode(prompt(i))
	}
	for range 3 { // a GPU's graphs are captured when they are used for the third time
		if serve(); os.Getenv("MAMBA_SERVE_DEVICE") == "" {
			break
		}
	}
	generate(prompts)
	var firsts, serves, generates []time.Duration
	benchtest.Processors(b)
	for b.Loop() {
		start := time.Now()
		firsts = append(firsts, serve()[clients/2])
		middle := time.Now()
		generate(prompts)
		serves, generates = append(serves, middle.Sub(start)), append(generates, time.Since(middle))
	}
	slices.Sort(firsts)
	slices.Sort(serves)
	slices.Sort(generates)
	serving, generating := serves[len(serves)/2], generates[len(generates)/2]
	equal := 0
	for i, text := range answers {
		got, all := "", []object{{}}
		if stream {
			all = parts(b, string(text))
		} else if err := json.Unmarshal(text, &all[0]); err != nil {
			b.Fatal(err)
		}
		for _, o := range all {
			got += o["choices"].([]any)[0].(object)["text"].(string)
		}
		if wanted, _, _ := cutAnswer(m, want[i], nil); got == wanted {
			equal++
		}
	}
	count := float64(clients * answer)
	step := generating.Seconds() / float64(answer)
	b.ReportMetric(count/serving.Seconds(), "server-tokens/s")
	b.ReportMetric(count/generating.Seconds(), "generator-tokens/s")
	b.ReportMetric(generating.Seconds()/serving.Seconds(), "ratio")
	b.ReportMetric(firsts[len(firsts)/2].Seconds()*1e3, "first-ms")
	b.ReportMetric(firsts[len(firsts)/2].Seconds()/step, "first-steps")
	b.ReportMetric(float64(equal), "equal")
}

// BenchmarkPrefix has 100 requests one after another, whose prompts begin with a system prompt of 2,000 tokens: the same for all, or another one for each. It
// shows the median of the time to the first token.
func BenchmarkPrefix(b *testing.B) {
	requests := 100
	if testing.Short() {
		requests = 3
	}
	m := loaded(b)
	for _, shared := range []bool{true, false} {
		b.Run(fmt.Sprintf("shared=%t", shared), func(b *testing.B) {
			s := start(b, m)
			var firsts []time.Duration
			benchtest.Processors(b)
			for b.Loop() {
				for i := range requests {
					system := "the same"
					if !shared {
						system = fmt.Sprintf("number %d of %d", i, b.N)
					}
					first, _, err := s.timed(object{"model": "test", "prompt": fmt.Sprintf("%-2000s question %d", system, i), "max_tokens": 2, "stream": true})
					if err != nil {
						b.Fatal(err)
					}
					firsts = append(firsts, first)
				}
			}
			slices.Sort(firsts)
			b.ReportMetric(firsts[len(firsts)/2].Seconds()*1e3, "first-ms")
			b.ReportMetric(firsts[len(firsts)*95/100].Seconds()*1e3, "first-p95-ms")
		})
	}
}

// BenchmarkSequences shows what a running answer costs: the memory of its state, and the time of a step by the number of answers.
func BenchmarkSequences(b *testing.B) {
	m := loaded(b)
	counts := []int{1, 8, 24, 64, 256}
	if testing.Short() {
		counts = counts[:2]
	}
	for _, n := range counts {
		b.Run(fmt.Sprintf("B=%d", n), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			batch, err := nn.NewBatch(m.lm, nn.BatchConfig{})
			if err != nil {
				b.Fatal(err)
			}
			defer batch.Close()
			for i := range n {
				if err := batch.Join(nn.NewSequence(uint64(i), 'a'), nn.Sampling{Temperature: 1}); err != nil {
					b.Fatal(err)
				}
			}
			benchtest.Processors(b)
			for b.Loop() {
				if err := batch.Step(nil); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n)/1e3, "KB/answer")
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}
