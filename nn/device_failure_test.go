package nn_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// TestDeviceNaN checks that NaN logits end generation on a device with an error, for greedy and random choice, at the first step and at later
// steps. The sequences are then as they were before the step, and continue to the same tokens after the weight is restored.
func TestDeviceNaN(t *testing.T) {
	_, lm := onBoth(t)
	w := lm.Params().ByName("backbone.norm_f.weight")
	set := func(v float32) {
		w.Value.Data().([]float32)[0] = v
		lm.Params().ValuesChanged()
	}
	was := w.Value.Data().([]float32)[0]
	for _, sampling := range []nn.Sampling{{}, {Temperature: 1}} {
		generate := func(s []*nn.Sequence, n int, each func(int, int) error) ([][]int, error) {
			g, err := nn.NewGenerator(lm, nn.GenerateConfig{Sampling: sampling, MaxTokens: n, Piece: 3})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			return g.Continue(t.Context(), s, each)
		}
		sequences := func() []*nn.Sequence { return []*nn.Sequence{nn.NewSequence(1, 5, 6, 7, 8, 9), nn.NewSequence(2, 3)} }
		want, err := generate(sequences(), 6, nil)
		if err != nil {
			t.Fatal(err)
		}
		for steps := range 5 {
			s, told := sequences(), 0
			if steps == 0 {
				set(float32(math.NaN()))
			}
			got, err := generate(s, 6, func(int, int) error {
				if told++; told == 2*steps {
					set(float32(math.NaN()))
				}
				return nil
			})
			set(was)
			if err == nil || !strings.Contains(err.Error(), "is not a number") || len(got[0]) != steps {
				t.Fatalf("%+v, after %d steps: %v, %v", sampling, steps, got, err)
			}
			if p := s[0].Pending(); len(p) != 1 {
				t.Errorf("%+v, after %d steps pending is %v", sampling, steps, p)
			}
			more, err := generate(s, 6-steps, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range s {
				if all := fmt.Sprint(append(got[i], more[i]...)); all != fmt.Sprint(want[i]) {
					t.Errorf("%+v, after %d steps, sequence %d: %s, want %v", sampling, steps, i, all, want[i])
				}
			}
		}
	}
}

// TestDeviceStepperFailures checks that a step in which any one allocation or copy fails leaves the state as it was. The same step then has
// the same result as for a stepper without failures, also after a Reset.
func TestDeviceStepperFailures(t *testing.T) {
	_, lm := onBoth(t)
	limits := []gputest.Limit{gputest.Allocations(t), gputest.Copies(t)}
	stepper := func() *nn.Stepper {
		s, err := nn.NewStepper(lm, 2)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	calm, s := stepper(), stepper()
	defer calm.Close()
	defer s.Close()
	failures := 0
	for step := range 9 {
		if step == 6 {
			calm.Reset()
			s.Reset()
		}
		tokens := []int{7 * step % 61, 5 * step % 61}
		for _, p := range lm.Params() { // so that the step uploads all weights
			if w := p.OnDevice(); step%3 == 1 && w != nil {
				if err := w.Free(); err != nil {
					t.Fatal(err)
				}
			}
		}
		var got [][]float64
		limit := limits[step%2]
		for n := 0; got == nil; n++ {
			limit(n)
			rows, err := s.Step(tokens)
			limit(-1)
			if err == nil {
				got = rows
			} else if failures++; n > 1000 {
				t.Fatal(err)
			}
		}
		want, err := calm.Step(tokens)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("step %d differs after %d failures", step, failures)
		}
	}
	if failures == 0 {
		t.Error("no step failed")
	}
}
