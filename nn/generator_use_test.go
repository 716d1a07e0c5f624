package nn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// One Generator continues batches of any sizes, one after another, as a new one would. Later changes to the caller's options do not
// reach it.
func TestGeneratorBatchSizes(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	cfg := GenerateConfig{MaxTokens: 12, StopTokens: []int{2, 9}, Piece: 2}
	g := newGenerator(t, lm, cfg)
	want := must(newGenerator(t, lm, GenerateConfig{MaxTokens: 12, StopTokens: []int{2, 9}, Piece: 2}).Generate(t.Context(), prompts, nil))
	clear(cfg.StopTokens)
	for _, n := range []int{1, len(prompts), 2, len(prompts), 1} {
		if got := must(g.Generate(t.Context(), prompts[:n], nil)); fmt.Sprint(got) != fmt.Sprint(want[:n]) {
			t.Errorf("%d prompts: %v, want %v", n, got, want[:n])
		}
	}
}

// A context that ends stops a prompt before its next piece, and generation before its next step.
func TestCancelAtOnce(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 6, Piece: 2})
	ctx, cancel := context.WithCancel(t.Context())
	s := NewSequence(0, 1, 2, 3, 4, 5, 6)
	got, err := g.Continue(ctx, []*Sequence{s}, func(int, int) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || len(got[0]) != 1 {
		t.Errorf("ended after one token: %v, %v", got, err)
	}
	s = NewSequence(0, 1, 2, 3, 4, 5, 6)
	if _, err := g.Continue(ctx, []*Sequence{s}, nil); !errors.Is(err, context.Canceled) || len(s.Pending()) != 6 {
		t.Errorf("a context that has ended: %v, pending are %v, want all six", err, s.Pending())
	}
}

// A sequence, its clones, and what Pending returns share no memory.
func TestClonesAreApart(t *testing.T) {
	s := NewSequence(0, make([]int, 5)...)
	s.pending = append(make([]int, 0, 10), s.pending...) // there is room after them
	s.Append(1)
	c := s.Clone()
	c.Append(7)
	s.Append(8)
	p := s.Pending()
	p[0] = 3
	if got := c.Pending(); !slices.Equal(got, []int{0, 0, 0, 0, 0, 1, 7}) {
		t.Errorf("the clone has %v", got)
	}
	if got := s.Pending(); !slices.Equal(got, []int{0, 0, 0, 0, 0, 1, 8}) {
		t.Errorf("the original has %v", got)
	}
	if s.seen.has(7) || c.seen.has(8) {
		t.Error("the original and its clone share the tokens seen")
	}
}

// Tokens that are pending are seen, even if a file does not say so: the repetition penalty applies to them.
func TestPendingIsSeen(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := newGenerator(t, lm, GenerateConfig{Sampling: Sampling{RepetitionPenalty: 1e6}, MaxTokens: 1})
	whole, file := NewSequence(0), NewSequence(0)
	for token := range smallVocab - 1 {
		whole.Append(token)
	}
	file.pending = whole.Pending() // and nothing seen
	want, got := must(g.Continue(t.Context(), []*Sequence{whole}, nil)), must(g.Continue(t.Context(), []*Sequence{file}, nil))
	if err := differ(file, whole); err != nil || got[0][0] != want[0][0] {
		t.Errorf("%v, want %v: %v", got, want, err)
	}
}

// failingVM is a machine whose Close fails.
type failingVM struct{ G.VM }

var errVM = errors.New("the machine fails")

func (v failingVM) Close() error { return errors.Join(v.VM.Close(), errVM) }

// A graph that cannot be closed is an error, of a call that needs another one and of Close. A later call makes the graph anew.
func TestGraphThatCannotBeClosed(t *testing.T) {
	lm := smallLM(tensor.Float64, 4) // in float32 no machine runs the step
	g := must(NewGenerator(lm, GenerateConfig{MaxTokens: 1, Piece: 2}))
	long := []int{1, 2, 3, 4}
	for _, r := range []func() *reader{func() *reader { return g.step }, func() *reader { return g.rest }} {
		must(g.Generate(t.Context(), [][]int{long}, nil))
		other := [][]int{{1}, {2, 3, 4}} // another batch
		if r() == g.rest {
			g.cfg.Piece = 3 // another length of the rest
			other = [][]int{{1, 2, 3}}
		}
		r().machine = failingVM{r().machine}
		if _, err := g.Generate(t.Context(), other, nil); !errors.Is(err, errVM) {
			t.Errorf("error %v, want %v", err, errVM)
		}
		if _, err := g.Generate(t.Context(), other, nil); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	g.cfg.Piece = 2
	must(g.Generate(t.Context(), [][]int{long}, nil))
	g.step.machine = failingVM{g.step.machine}
	if err := g.Close(); !errors.Is(err, errVM) {
		t.Errorf("Close: error %v, want %v", err, errVM)
	}
}

// Layers of all kinds refuse a call option that is nil, and a state that could not be made.
func TestEveryKindRefuses(t *testing.T) {
	for _, kind := range Kinds() {
		s := NewMambaStack(Config{DModel: 4, Pattern: []Kind{kind}, Window: 3})
		g := G.NewGraph()
		x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 2, 4), G.WithName("x"))
		if _, err := s.Apply(x, nil); err == nil || !strings.Contains(err.Error(), "call option 0 is nil") {
			t.Errorf("%s, a nil option: error %v", kind, err)
		}
		if _, err := s.ZeroState(g, 0); err == nil || !strings.Contains(err.Error(), "ZeroState: batch is 0, want at least 1") {
			t.Errorf("%s, a state of no batch: error %v", kind, err)
		}
	}
}
