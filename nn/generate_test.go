package nn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/golden"
)

const smallVocab = 19

// smallLM returns a small model with changed weights, so that its logits differ enough to distinguish tokens.
func smallLM(dt tensor.Dtype, width int) *LM {
	lm := NewLM(LMConfig{Config: Config{DModel: 6, NLayer: 2, DState: 3, DConv: width}, Vocab: smallVocab, UntiedHead: true}, WithDtype(dt))
	scramble(lm.Params(), rand.New(rand.NewPCG(7, 8)))
	return lm
}

// lastLogits is the definition of a step's logits: it computes the whole sequence at once, from its beginning.
func lastLogits(t *testing.T, lm *LM, tokens []int) []float64 {
	t.Helper()
	logits := forward(t, must(lm.Apply(intLeaf(G.NewGraph(), "ids", slices.Clone(tokens), 1, len(tokens)))))[0]
	return logits[len(logits)-lm.cfg.Vocab:]
}

// samplings lists all options, alone and together.
var samplings = map[string]Sampling{
	"greedy":                      {},
	"greedy, penalty":             {RepetitionPenalty: 1.3},
	"temperature":                 {Temperature: 1.5},
	"low temperature":             {Temperature: 0.3},
	"top-k":                       {Temperature: 1, TopK: 4},
	"top-p":                       {Temperature: 1, TopP: 0.7},
	"min-p":                       {Temperature: 1, MinP: 0.1},
	"penalty":                     {Temperature: 1, RepetitionPenalty: 1.2},
	"all":                         {Temperature: 0.9, TopK: 9, TopP: 0.95, MinP: 0.02, RepetitionPenalty: 1.1},
	"all, tokens liked again":     {Temperature: 0.9, TopK: 9, TopP: 0.95, MinP: 0.02, RepetitionPenalty: 0.8},
	"presence":                    {Temperature: 1, PresencePenalty: 1.5},
	"frequency":                   {Temperature: 1, FrequencyPenalty: 0.7},
	"greedy, all penalties":       {RepetitionPenalty: 1.1, PresencePenalty: -0.5, FrequencyPenalty: 0.9},
	"top-k of one is greedy, too": {Temperature: 3, TopK: 1},
}

var prompts = [][]int{{3}, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {0, 18}, {5, 5, 5, 11}}

func newGenerator(t *testing.T, lm *LM, cfg GenerateConfig) *Generator {
	t.Helper()
	g, err := NewGenerator(lm, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// A Generator reads prompts in pieces and then makes a step for each token. It chooses the token that the logits of the whole sequence so far
// give, for every option, in both types, for prompts of different lengths in one batch.
func TestGenerateIsForward(t *testing.T) {
	const length = 12
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		for _, width := range []int{1, 4} {
			lm := smallLM(dt, width)
			for name, options := range samplings {
				g := newGenerator(t, lm, GenerateConfig{Sampling: options, MaxTokens: length, Seed: 40, Piece: 3})
				got, err := g.Generate(t.Context(), prompts, nil)
				if err != nil {
					t.Fatal(err)
				}
				for i, prompt := range prompts {
					sequence, random, s := slices.Clone(prompt), rand.NewPCG(40+uint64(i), 0), &sampler{Sampling: options}
					for range length {
						token, err := choose(s, lastLogits(t, lm, sequence), setOf(sequence...), times(sequence[len(prompt):]), random)
						if err != nil {
							t.Fatal(err)
						}
						sequence = append(sequence, token)
					}
					if want := sequence[len(prompt):]; !slices.Equal(got[i], want) {
						t.Errorf("%v, d_conv %d, %s, prompt %d: %v, want %v", dt, width, name, i, got[i], want)
					}
				}
			}
		}
	}
}

// Without options, and with TopK 1 at any temperature, each token is the one of the largest logit.
func TestGreedyIsArgmax(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	for _, options := range []Sampling{{}, {Temperature: 7, TopK: 1}, {TopK: 5, TopP: 0.5, MinP: 0.5}} {
		got := must(newGenerator(t, lm, GenerateConfig{Sampling: options, MaxTokens: 20}).Generate(t.Context(), prompts[1:2], nil))[0]
		sequence := slices.Clone(prompts[1])
		for range 20 {
			logits := lastLogits(t, lm, sequence)
			sequence = append(sequence, slices.Index(logits, slices.Max(logits)))
		}
		if want := sequence[len(prompts[1]):]; !slices.Equal(got, want) {
			t.Errorf("%+v: %v, want %v", options, got, want)
		}
		if len(slices.Compact(slices.Sorted(slices.Values(got)))) < 3 {
			t.Fatalf("%v has too few different tokens to compare", got)
		}
	}
}

// Greedy tokens are those of the transformers library.
func TestGoldenGreedy(t *testing.T) {
	expected, err := golden.Read(filepath.Join(tiny, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	ints := func(name string) (tokens []int) {
		for _, v := range expected.Tensors[name].Data {
			tokens = append(tokens, int(v))
		}
		return tokens
	}
	prompt, want := ints("prompt"), ints("greedy")
	if len(prompt) == 0 || len(want) <= len(prompt) {
		t.Fatalf("prompt %v, tokens %v", prompt, want)
	}
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		g := newGenerator(t, goldenLM(t, dt), GenerateConfig{MaxTokens: len(want) - len(prompt)})
		got := must(g.Generate(t.Context(), [][]int{prompt}, nil))[0]
		if !slices.Equal(slices.Concat(prompt, got), want) {
			t.Errorf("%v: %v, want %v", dt, got, want[len(prompt):])
		}
	}
}

// values returns the elements of a sequence's state, by name.
func values(s *Sequence) results {
	r := results{}
	for name, v := range s.state {
		r[name] = elements(v)
	}
	return r
}

// differ returns an error that says where two sequences differ, in the bits of their states or elsewhere.
func differ(a, b *Sequence) error {
	if err := values(a).near(values(b), 0); err != nil {
		return err
	}
	if !slices.Equal(a.pending, b.pending) || !slices.Equal(a.seen.tokens(), b.seen.tokens()) || a.random != b.random || !maps.Equal(a.chosen, b.chosen) {
		return fmt.Errorf("pending %v, seen %v, random %v, chosen %v; want %v, %v, %v, %v",
			a.pending, a.seen.tokens(), a.random, a.chosen, b.pending, b.seen.tokens(), b.random, b.chosen)
	}
	return nil
}

// A batch of prompts of different lengths, some of which end before others, gives the same tokens and states as each prompt alone, bit for
// bit.
func TestBatchIsOneAtATime(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		lm := smallLM(dt, 4)
		for name, options := range samplings {
			g := newGenerator(t, lm, GenerateConfig{Sampling: options, MaxTokens: 30, StopTokens: []int{2, 9}, Piece: 4})
			var batch []*Sequence
			for i, prompt := range prompts {
				batch = append(batch, NewSequence(uint64(i), prompt...))
			}
			got := must(g.Continue(t.Context(), batch, nil))
			for i, prompt := range prompts {
				alone := NewSequence(uint64(i), prompt...)
				want := must(g.Continue(t.Context(), []*Sequence{alone}, nil))[0]
				if !slices.Equal(got[i], want) {
					t.Errorf("%v, %s, prompt %d: %v in a batch, %v alone", dt, name, i, got[i], want)
				} else if err := differ(batch[i], alone); err != nil {
					t.Errorf("%v, %s, prompt %d: %v", dt, name, i, err)
				}
			}
		}
	}
}

// A batch too large for the products' path for few rows gives the same to within rounding.
func TestLargeBatch(t *testing.T) {
	const batch = 40
	lm := smallLM(tensor.Float64, 4)
	g := newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 6})
	var together []*Sequence
	for i := range batch {
		together = append(together, NewSequence(uint64(i), i%smallVocab, i%7))
	}
	got := must(g.Continue(t.Context(), together, nil))
	for i := range batch {
		alone := NewSequence(uint64(i), i%smallVocab, i%7)
		if want := must(g.Continue(t.Context(), []*Sequence{alone}, nil))[0]; !slices.Equal(got[i], want) {
			t.Errorf("sequence %d: %v in a batch, %v alone", i, got[i], want)
		}
		if err := values(together[i]).near(values(alone), 1e-12); err != nil {
			t.Errorf("sequence %d: %v", i, err)
		}
	}
}

// A prompt gives the same for any length of its pieces, and the graph of a piece is reused.
func TestPiecesOfAPrompt(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	prompt := make([]int, 50)
	for i := range prompt {
		prompt[i] = i * i % smallVocab
	}
	var whole *Sequence
	var want []int
	for _, piece := range []int{0, 1, 2, 3, 7, 48, 49, 50} {
		s := NewSequence(1, prompt...)
		got := must(newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 8, Piece: piece}).Continue(t.Context(), []*Sequence{s}, nil))[0]
		if whole == nil {
			whole, want = s, got
			continue
		}
		if !slices.Equal(got, want) {
			t.Errorf("pieces of %d: %v, want %v", piece, got, want)
		}
		if err := values(s).near(values(whole), 1e-11); err != nil {
			t.Errorf("pieces of %d: %v", piece, err)
		}
	}
	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 1, Piece: 8})
	must(g.Generate(t.Context(), [][]int{prompt}, nil))
	piece, rest, step := g.piece, g.rest, g.step
	if piece == nil || piece.length() != 8 || rest == nil || rest.length() != 1 {
		t.Fatal("a prompt of 49 tokens before the last is not six pieces of 8 and one of 1")
	}
	must(g.Generate(t.Context(), [][]int{prompt}, nil))
	if g.piece != piece || g.rest != rest || g.step != step {
		t.Error("a graph of the same length was made again")
	}
}

// A sequence ends after a stop token, which is the last of its tokens, or after MaxTokens. The function each gets every token in the step in
// which it is chosen.
func TestStopTokens(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	endless := must(newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 25}).Generate(t.Context(), prompts, nil))
	stops := []int{endless[0][3], endless[1][6]}
	g := newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 25, StopTokens: stops})
	told, steps := make([][]int, len(prompts)), []int{}
	got := must(g.Generate(t.Context(), prompts, func(prompt, token int) error {
		told[prompt] = append(told[prompt], token)
		steps = append(steps, 1000*len(told[prompt])+prompt)
		return nil
	}))
	ended := 0
	for i := range prompts {
		end := slices.IndexFunc(endless[i], func(token int) bool { return slices.Contains(stops, token) })
		want := endless[i]
		if end >= 0 {
			want = want[:end+1]
			ended++
		}
		if !slices.Equal(got[i], want) {
			t.Errorf("prompt %d: %v, want %v", i, got[i], want)
		}
		if !slices.Equal(told[i], got[i]) {
			t.Errorf("prompt %d: each got the tokens %v, Generate returned %v", i, told[i], got[i])
		}
	}
	if ended < 2 || len(got[0]) > 4 || len(got[1]) > 7 {
		t.Errorf("%d sequences ended, of %v", ended, got)
	}
	if !slices.IsSorted(steps) {
		t.Errorf("each got tokens out of order: %v", steps)
	}
}

// endAfter is a context that ends after a number of calls of its method Err.
type endAfter struct {
	context.Context
	asks int
}

func (c *endAfter) Err() error {
	if c.asks--; c.asks < 0 {
		return context.Canceled
	}
	return nil
}

// If the context ends between pieces of a prompt or between steps, the tokens so far are returned with its error. The sequences then continue
// to the same tokens and bits as without an interruption.
func TestCancel(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	cfg := GenerateConfig{Sampling: samplings["all"], MaxTokens: 6, Piece: 3}
	sequences := func() (s []*Sequence) {
		for i, prompt := range prompts {
			s = append(s, NewSequence(uint64(i), prompt...))
		}
		return s
	}
	whole := sequences()
	want := must(newGenerator(t, lm, cfg).Continue(t.Context(), whole, nil))
	finished := false
	for asks := 0; !finished; asks++ {
		s := sequences()
		got, err := newGenerator(t, lm, cfg).Continue(&endAfter{t.Context(), asks}, s, nil)
		if finished = err == nil; !finished && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if len(got) != len(s) {
			t.Fatalf("tokens of %d sequences, want %d", len(got), len(s))
		}
		if n := len(got[0]); n < cfg.MaxTokens {
			rest := cfg
			rest.MaxTokens -= n
			more := must(newGenerator(t, lm, rest).Continue(t.Context(), s, nil))
			for i := range got {
				got[i] = append(got[i], more[i]...)
			}
		}
		for i := range s {
			if !slices.Equal(got[i], want[i]) {
				t.Errorf("interrupted at %d, sequence %d: %v, want %v", asks, i, got[i], want[i])
			} else if err := differ(s[i], whole[i]); err != nil {
				t.Errorf("interrupted at %d, sequence %d: %v", asks, i, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := newGenerator(t, lm, cfg).Generate(ctx, prompts, nil); err != context.Canceled || len(slices.Concat(got...)) > 0 {
		t.Errorf("a context that has ended: %v, %v", got, err)
	}
}

// An error of the function each ends generation, and no token is lost.
func TestErrorOfTheCallback(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	cfg := GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 9}
	want := must(newGenerator(t, lm, cfg).Generate(t.Context(), prompts, nil))
	enough := errors.New("enough")
	var s []*Sequence
	for i, prompt := range prompts {
		s = append(s, NewSequence(uint64(i), prompt...))
	}
	calls := 0
	g := newGenerator(t, lm, cfg)
	got, err := g.Continue(t.Context(), s, func(sequence, token int) error {
		if calls++; calls == 2*len(prompts)+2 {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Fatalf("the error is %v", err)
	}
	more := must(g.Continue(t.Context(), s, nil))
	for i := range got {
		if len(got[i]) != 3 || !slices.Equal(slices.Concat(got[i], more[i])[:9], want[i]) {
			t.Errorf("sequence %d: %v and then %v, want %v", i, got[i], more[i], want[i])
		}
	}
}

// A Generator uses the model's current weights, since it has no copies.
func TestGeneratorSharesWeights(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 8})
	before := must(g.Generate(t.Context(), prompts, nil))
	scramble(lm.Params(), rand.New(rand.NewPCG(9, 9)))
	after := must(g.Generate(t.Context(), prompts, nil))
	want := must(newGenerator(t, lm, GenerateConfig{MaxTokens: 8}).Generate(t.Context(), prompts, nil))
	if fmt.Sprint(after) != fmt.Sprint(want) || fmt.Sprint(after) == fmt.Sprint(before) {
		t.Errorf("%v, and with other weights %v, want %v", before, after, want)
	}
}

// A wrong model, option, prompt or sequence is an error that names it, before a token is read.
func TestGenerateErrors(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		cfg  GenerateConfig
		want string
	}{
		{GenerateConfig{}, "nn: MaxTokens is 0, want at least 1"},
		{GenerateConfig{MaxTokens: -3}, "nn: MaxTokens is -3, want at least 1"},
		{GenerateConfig{MaxTokens: 1, Piece: -1}, "nn: Piece is -1, want at least 1, or 0 for the default"},
		{GenerateConfig{MaxTokens: 1, StopTokens: []int{3, 19}}, "nn: StopTokens[1] is 19, want 0 to 18"},
		{GenerateConfig{MaxTokens: 1, StopTokens: []int{-1}}, "nn: StopTokens[0] is -1, want 0 to 18"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{Temperature: -1}}, "nn: Temperature is -1, want a finite number that is not negative"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{Temperature: nan}}, "nn: Temperature is NaN, want a finite number that is not negative"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{Temperature: inf}}, "nn: Temperature is +Inf, want a finite number that is not negative"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{TopK: -1}}, "nn: TopK is -1, want at least 0"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{TopP: 1.1}}, "nn: TopP is 1.1, want 0 to 1"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{TopP: -0.1}}, "nn: TopP is -0.1, want 0 to 1"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{TopP: nan}}, "nn: TopP is NaN, want 0 to 1"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{MinP: 2}}, "nn: MinP is 2, want 0 to 1"},
		{GenerateConfig{MaxTokens: 1, Sampling: Sampling{RepetitionPenalty: -1}}, "nn: RepetitionPenalty is -1, want a finite number that is not negative"},
	} {
		if g, err := NewGenerator(lm, c.cfg); g != nil || err == nil || err.Error() != c.want {
			t.Errorf("%+v returns %v, want %s", c.cfg, err, c.want)
		}
	}
	if _, err := NewGenerator(NewLM(LMConfig{}), GenerateConfig{MaxTokens: 1}); err == nil || err.Error() != "nn: DModel is 0, want at least 1" {
		t.Errorf("an invalid model returns %v", err)
	}

	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 2})
	for _, c := range []struct {
		prompts [][]int
		want    string
	}{
		{[][]int{{1}, {}}, "nn: generate: sequence 1 has no token to read, want at least one"},
		{[][]int{nil}, "nn: generate: sequence 0 has no token to read, want at least one"},
		{[][]int{{1}, {2, 19}}, "nn: generate: sequence 1 has token 19 at 1, want 0 to 18"},
		{[][]int{{-2}}, "nn: generate: sequence 0 has token -2 at 0, want 0 to 18"},
	} {
		if got, err := g.Generate(t.Context(), c.prompts, nil); got != nil || err == nil || err.Error() != c.want {
			t.Errorf("prompts %v return %v, %v, want %s", c.prompts, got, err, c.want)
		}
	}
	s := NewSequence(1, 2, 3)
	if _, err := g.Continue(t.Context(), []*Sequence{NewSequence(0, 1), s, s}, nil); err == nil || err.Error() != "nn: generate: sequence 2 is sequence 1 again, want a Clone" {
		t.Errorf("a sequence twice returns %v", err)
	}
	if got, err := g.Generate(t.Context(), nil, nil); len(got) != 0 || err != nil {
		t.Errorf("no prompts return %v, %v", got, err)
	}

	must(g.Continue(t.Context(), []*Sequence{s}, nil))
	other := func(cfg Config, dt tensor.Dtype) *LM {
		return NewLM(LMConfig{Config: cfg, Vocab: smallVocab}, WithDtype(dt))
	}
	for _, c := range []struct {
		lm   *LM
		want string
	}{
		{other(Config{DModel: 6, NLayer: 2, DState: 4}, tensor.Float32), "has state layers.0.scan of float32 (12, 3), want float32 (12, 4) as the model"},
		{other(Config{DModel: 6, NLayer: 2, DState: 3}, tensor.Float64), "has state layers.0.conv of float32 (3, 12), want float64 (3, 12) as the model"},
		{other(Config{DModel: 6, NLayer: 3, DState: 3}, tensor.Float32), "has no state layers.2.conv, which the model has"},
		{other(Config{DModel: 6, NLayer: 1, DState: 3}, tensor.Float32), "has a state of 4 tensors, want 2 as the model"},
	} {
		if _, err := newGenerator(t, c.lm, GenerateConfig{MaxTokens: 1}).Continue(t.Context(), []*Sequence{s}, nil); err == nil || err.Error() != "nn: generate: sequence 0 "+c.want {
			t.Errorf("a sequence of another model returns %v, want %s", err, c.want)
		}
	}

	// A model with NaN weights gives an error instead of a token.
	lm.Params().ByName("backbone.norm_f.weight").Value.Data().([]float32)[0] = float32(nan)
	if _, err := g.Generate(t.Context(), [][]int{{1}}, nil); err == nil || err.Error() != "nn: generate: sequence 0: the logit of token 0 is not a number" {
		t.Errorf("the error of NaN weights is %v", err)
	}
}
