package nn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// file returns the file that Save writes for a sequence.
func file(t *testing.T, s *Sequence) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sequencesOf(prompts [][]int) (all []*Sequence) {
	for i, p := range prompts {
		all = append(all, NewSequence(uint64(i), p...))
	}
	return all
}

// poison sets an element of a weight to NaN, and returns a function that restores it.
func poison(lm *LM, name string, element int) (mend func()) {
	d := lm.Params().ByName(name).Value.Data().([]float32)
	was := d[element]
	d[element] = float32(math.NaN())
	return func() { d[element] = was }
}

// A failed step, the first or a later one, leaves all sequences of the batch as they were: state, pending tokens, random source and seen
// tokens. After the weight is restored they continue to the same tokens and the same bits.
func TestContinueAfterNaN(t *testing.T) {
	const most = 6
	lm := smallLM(tensor.Float32, 4)
	cfg := GenerateConfig{Sampling: samplings["all"], MaxTokens: most, Piece: 3}
	whole := sequencesOf(prompts)
	want := must(newGenerator(t, lm, cfg).Continue(t.Context(), whole, nil))
	for step := range most { // number of steps before the failure
		s := sequencesOf(prompts)
		g := newGenerator(t, lm, cfg)
		mend, told := func() {}, 0
		if step == 0 {
			mend = poison(lm, "backbone.norm_f.weight", 0)
		}
		got, err := g.Continue(t.Context(), s, func(int, int) error {
			if told++; told == step*len(prompts) {
				mend = poison(lm, "backbone.norm_f.weight", 0)
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "sequence 0: the logit of token 0 is not a number") {
			t.Fatalf("after %d steps the error is %v", step, err)
		}
		for i := range s {
			if len(got[i]) != step || len(s[i].Pending()) != 1 {
				t.Errorf("after %d steps sequence %d has the tokens %v and pending %v", step, i, got[i], s[i].Pending())
			}
		}
		before := file(t, s[1])
		if _, err := g.Continue(t.Context(), s, nil); err == nil {
			t.Error("no error a second time")
		}
		if file(t, s[1]) != before {
			t.Errorf("after %d steps a step that fails again changes a sequence", step)
		}
		mend()
		rest := cfg
		rest.MaxTokens -= step
		more := must(newGenerator(t, lm, rest).Continue(t.Context(), s, nil))
		for i := range s {
			if all := slices.Concat(got[i], more[i]); !slices.Equal(all, want[i]) {
				t.Errorf("after %d steps, sequence %d: %v, want %v", step, i, all, want[i])
			} else if err := differ(s[i], whole[i]); err != nil {
				t.Errorf("after %d steps, sequence %d: %v", step, i, err)
			}
		}
	}
}

// NaN logits of one sequence fail the step for the whole batch: no sequence gets a token.
func TestContinueAfterOneNaN(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := newGenerator(t, lm, GenerateConfig{Sampling: samplings["all"], MaxTokens: 3})
	s := []*Sequence{NewSequence(1, 2), NewSequence(2, 17), NewSequence(3, 4)}
	mend := poison(lm, "backbone.embeddings.weight", 17*6)
	var before []string
	for _, x := range s {
		before = append(before, file(t, x))
	}
	got, err := g.Continue(t.Context(), s, nil)
	if want := "nn: generate: sequence 1: the logit of token 0 is not a number"; err == nil || err.Error() != want {
		t.Fatalf("%v, want %s", err, want)
	}
	for i, x := range s {
		if len(got[i]) > 0 || file(t, x) != before[i] {
			t.Errorf("sequence %d has the tokens %v, or has changed", i, got[i])
		}
	}
	mend()
	want := sequencesOf(nil)
	want = append(want, NewSequence(1, 2), NewSequence(2, 17), NewSequence(3, 4))
	must(g.Continue(t.Context(), want, nil))
	must(g.Continue(t.Context(), s, nil))
	for i := range s {
		if err := differ(s[i], want[i]); err != nil {
			t.Errorf("sequence %d: %v", i, err)
		}
	}
}

// The function each may read a sequence, clone it and append to it. It sees the sequence up to the token, and appended tokens are read before
// the next token is chosen.
func TestSequenceDuringContinue(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	cfg := GenerateConfig{Sampling: Sampling{Temperature: 1}, MaxTokens: 4}
	s := sequencesOf(prompts)
	var clone *Sequence
	g := newGenerator(t, lm, cfg)
	got := must(g.Continue(t.Context(), s, func(i, token int) error {
		p := s[i].Pending()
		if p[len(p)-1] != token {
			t.Errorf("sequence %d has pending %v when each is called with token %d", i, p, token)
		}
		if i == 2 && len(p) == 3 && clone == nil {
			clone = s[2].Clone()
			s[2].Append(7, 8)
		}
		return nil
	}))
	first := NewSequence(2, prompts[2]...)
	short := cfg
	short.MaxTokens = 2
	start := must(newGenerator(t, lm, short).Continue(t.Context(), []*Sequence{first}, nil))[0]
	same := first.Clone()
	first.Append(7, 8)
	want := slices.Concat(start, must(newGenerator(t, lm, short).Continue(t.Context(), []*Sequence{first}, nil))[0])
	if !slices.Equal(got[2], want) {
		t.Errorf("with tokens appended after the second: %v, want %v", got[2], want)
	}
	cloned := must(g.Continue(t.Context(), []*Sequence{clone, same}, nil))
	if !slices.Equal(cloned[0], cloned[1]) {
		t.Errorf("the clone continues with %v, want %v", cloned[0], cloned[1])
	}
	if _, err := g.Continue(t.Context(), sequencesOf(prompts[:1]), nil); err != nil {
		t.Fatal(err)
	}
	bad := NewSequence(0, 1)
	_, err := g.Continue(t.Context(), []*Sequence{bad}, func(int, int) error { bad.Append(-5); return nil })
	if want := "nn: generate: sequence 0 has token -5 at 1, want 0 to 18"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// A Generator, Stepper or Sequence that is in use returns an error to a second caller, and a closed one to any caller.
func TestInUseAndClosed(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := must(NewGenerator(lm, GenerateConfig{MaxTokens: 2}))
	other := newGenerator(t, lm, GenerateConfig{MaxTokens: 2})
	s := NewSequence(1, 2, 3)
	is := func(err error, what string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want an error with %q", err, what)
		}
	}
	_, err := g.Continue(t.Context(), []*Sequence{s}, func(int, int) error {
		var wait sync.WaitGroup
		wait.Go(func() {
			_, err := g.Generate(t.Context(), prompts, nil)
			is(err, "the generator is in use")
			is(g.Close(), "the generator is in use")
			_, err = other.Continue(t.Context(), []*Sequence{NewSequence(0, 1), s}, nil)
			is(err, "sequence 1 is in use")
		})
		wait.Wait()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	is(g.Close(), "the generator is closed")
	_, err = g.Generate(t.Context(), prompts, nil)
	is(err, "the generator is closed")
	_, err = new(Generator).Generate(t.Context(), prompts, nil)
	is(err, "the generator is closed, or not made by its constructor")
	_, err = (*Generator)(nil).Continue(t.Context(), nil, nil)
	is(err, "the generator is closed, or not made by its constructor")
	var none context.Context
	_, err = other.Generate(none, prompts, nil)
	is(err, "the context is missing")
	_, err = other.Continue(t.Context(), []*Sequence{nil}, nil)
	is(err, "sequence 0 is missing")

	step := must(NewStepper(lm, 1))
	step.mu.Lock() // as a running call does
	_, err = step.Step([]int{1})
	is(err, "the stepper is in use")
	is(step.Close(), "the stepper is in use")
	step.mu.Unlock()
	if err := step.Close(); err != nil {
		t.Fatal(err)
	}
	is(step.Close(), "the stepper is closed")
	_, err = step.Step([]int{1})
	is(err, "the stepper is closed")
	step.Reset()
	for _, zero := range []*Stepper{nil, new(Stepper)} {
		zero.Reset()
		_, err = zero.Step([]int{1})
		is(err, "the stepper is closed, or not made by its constructor")
		is(zero.Close(), "the stepper is closed, or not made by its constructor")
	}
	_, err = NewStepper(nil, 1)
	is(err, "the model is missing")
	_, err = NewGenerator(nil, GenerateConfig{MaxTokens: 1})
	is(err, "the model is missing")
}

// Attention without a window has no state of fixed size. The constructors return an error that names the layer.
func TestNoStateOfFixedSize(t *testing.T) {
	cfg := LMConfig{Config: Config{DModel: 8, NLayer: 3, Pattern: []Kind{Mamba, S4, Attention}}, Vocab: 5}
	want := "nn: layer 2: backbone.layers.2.mixer: attention without a window has a state that would grow with every step, want a Window of at least 2 (in package nn, Config.Window)"
	lm := NewLM(cfg)
	if _, err := NewGenerator(lm, GenerateConfig{MaxTokens: 1}); err == nil || err.Error() != want {
		t.Errorf("a generator: %v, want %s", err, want)
	}
	if _, err := NewStepper(lm, 1); err == nil || err.Error() != want {
		t.Errorf("a stepper: %v, want %s", err, want)
	}
	cfg.Window = 4
	must(NewGenerator(NewLM(cfg), GenerateConfig{MaxTokens: 1}))
	must(NewStepper(NewLM(cfg), 1))
}

// Several Generators, Steppers and training graphs use one model, each in its own goroutine. They share nothing that they write; the race
// detector checks this.
func TestConcurrentUseOfAModel(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	ids, targets := counting(1, 5, smallVocab)
	want := fmt.Sprint(must(newGenerator(t, lm, GenerateConfig{MaxTokens: 6, Piece: 3}).Generate(t.Context(), prompts, nil)))
	var wait sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wait.Go(func() {
			errs[i] = func() error {
				g, err := NewGenerator(lm, GenerateConfig{MaxTokens: 6, Piece: 3})
				if err != nil {
					return err
				}
				defer g.Close()
				got, err := g.Generate(t.Context(), prompts, nil)
				if err == nil && fmt.Sprint(got) != want {
					err = fmt.Errorf("%v, want %s", got, want)
				}
				if err != nil {
					return err
				}
				s, err := NewStepper(lm, 2)
				if err != nil {
					return err
				}
				defer s.Close()
				if _, err := s.Step([]int{1, 2}); err != nil {
					return err
				}
				graph := G.NewGraph()
				loss, err := lm.Loss(intLeaf(graph, "ids", ids, 1, 5), intLeaf(graph, "targets", targets, 1, 5))
				if err != nil {
					return err
				}
				if _, err := G.Grad(loss, lm.Params().Nodes(graph)...); err != nil {
					return err
				}
				m := G.NewTapeMachine(graph, G.BindDualValues(lm.Params().Nodes(graph)...))
				return errors.Join(m.RunAll(), m.Close())
			}()
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
