package nn

import (
	"math/rand/v2"
	"slices"
	"testing"

	"gorgonia.org/tensor"

	G "gorgonia.org/gorgonia"
)

// A Stepper's logits are those of the whole sequence at each position, in both types, for several sequences at a time, for every width of the
// convolution, and also after a Reset.
func TestStepper(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		for _, width := range []int{1, 2, 4} {
			for _, batch := range []int{1, 3} {
				const length, vocab = 11, 7
				r := rand.New(rand.NewPCG(1, 2))
				lm := NewLM(LMConfig{Config: Config{DModel: 5, NLayer: 2, DState: 3, DConv: width}, Vocab: vocab}, WithDtype(dt))
				scramble(lm.Params(), r)
				ids := make([]int, batch*length)
				for i := range ids {
					ids[i] = r.IntN(vocab)
				}
				want := forward(t, must(lm.Apply(intLeaf(G.NewGraph(), "ids", ids, batch, length))))[0]
				tol := 1e-12
				if dt == tensor.Float32 {
					tol = 1e-5
				}
				s := must(NewStepper(lm, batch))
				for range 2 {
					for i := range length {
						got, err := s.Step(steps(ids, batch, length, i, i+1, 1))
						if err != nil {
							t.Fatal(err)
						}
						at := results{"logits": steps(want, batch, length, i, i+1, vocab)}
						if err := (results{"logits": slices.Concat(got...)}).near(at, tol); err != nil {
							t.Errorf("%v, d_conv %d, batch %d, step %d: %v", dt, width, batch, i, err)
						}
					}
					s.Reset()
				}
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		}
	}
}

// Later steps do not change rows that a Stepper has returned.
func TestStepperReturnsCopies(t *testing.T) {
	s := must(NewStepper(NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: 3}, WithDtype(tensor.Float64)), 1))
	defer s.Close()
	first := must(s.Step([]int{0}))
	kept := slices.Clone(first[0])
	second := must(s.Step([]int{1}))
	if !slices.Equal(first[0], kept) {
		t.Error("a step has changed the logits that the step before returned")
	}
	if slices.Equal(first[0], second[0]) {
		t.Error("another token has the same logits")
	}
}

// Wrong tokens are an error, and the state does not change.
func TestStepperErrors(t *testing.T) {
	lm := NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: 3})
	stepper, undisturbed := must(NewStepper(lm, 2)), must(NewStepper(lm, 2))
	defer stepper.Close()
	defer undisturbed.Close()
	for _, token := range []int{0, 2, 1} {
		got, want := must(stepper.Step([]int{token, 1})), must(undisturbed.Step([]int{token, 1}))
		if !same(got, want) {
			t.Errorf("after errors the logits are %v, want %v", got, want)
		}
		for _, c := range []struct {
			tokens []int
			want   string
		}{
			{nil, "nn: step: 0 tokens, want 2, one for each sequence"},
			{[]int{1}, "nn: step: 1 tokens, want 2, one for each sequence"},
			{[]int{1, 2, 0}, "nn: step: 3 tokens, want 2, one for each sequence"},
			{[]int{0, 3}, "nn: step: token 1 is 3, want 0 to 2"},
			{[]int{-1, 0}, "nn: step: token 0 is -1, want 0 to 2"},
		} {
			if rows, err := stepper.Step(c.tokens); rows != nil || err == nil || err.Error() != c.want {
				t.Errorf("a step with %v returns %v, %v, want %s", c.tokens, rows, err, c.want)
			}
		}
	}
	for _, batch := range []int{0, -1} {
		if _, err := NewStepper(lm, batch); err == nil {
			t.Errorf("a stepper for a batch of %d is no error", batch)
		}
	}
	if _, err := NewStepper(lm, 0); err == nil || err.Error() != "nn: stepper: batch is 0, want at least 1" {
		t.Errorf("a stepper for a batch of 0 returns %v", err)
	}
}
