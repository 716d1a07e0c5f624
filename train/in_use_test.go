package train

import (
	"context"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"gorgonia.org/tensor"
)

// A trainer in use returns an error to a second caller. A closed, a zero and a nil trainer return an error to any caller.
func TestTrainerInUseAndClosed(t *testing.T) {
	is := func(err error, what string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want an error with %q", err, what)
		}
	}
	calls := func(tr *Trainer) (errs []error) {
		_, evaluate := tr.Evaluate(nil)
		_, measure := tr.Measure(nil)
		_, resume := tr.Resume()
		return []error{tr.Run(context.Background()), evaluate, measure, tr.Save(), resume, tr.Close()}
	}
	cfg := config()
	var tr *Trainer
	reports := 0
	cfg.Report = func(*Curve) {
		if reports++; reports > 1 {
			return
		}
		is(tr.Run(t.Context()), "the trainer runs already")
		if _, err := tr.Evaluate(tr.heldOut); err != nil {
			t.Errorf("Evaluate inside Report: %v, want no error", err)
		}
		var wait sync.WaitGroup
		tr.mu.Lock() // like a running step
		wait.Go(func() {
			for _, err := range calls(tr) {
				is(err, "the trainer is in use by another goroutine")
			}
		})
		wait.Wait()
		tr.mu.Unlock()
	}
	tr, err := New(newLM(tensor.Float32, false), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if tr.Done() != cfg.Steps || tr.Tokens() == 0 || len(tr.Curve().Training) != cfg.Steps {
		t.Error("Curve, Done or Tokens of a closed trainer lost their values")
	}
	for _, x := range []*Trainer{tr, new(Trainer), nil} {
		for _, err := range calls(x) {
			is(err, "the trainer is closed, or not made by New or NewTrainer")
		}
	}
	var none *Trainer
	if none.Done() != 0 || none.Tokens() != 0 || len(none.Curve().Training) != 0 || new(Trainer).Done() != 0 {
		t.Error("Done, Tokens or Curve of a nil trainer are not zero")
	}
	_, err = New(nil, cfg)
	is(err, "the model is missing")
}

// After a step that failed, in the second of its batches too, the trainer is where it was: when the weight is mended, Run goes on to the
// same losses and weights as without the failure. Evaluating nothing is an error.
func TestRunAgain(t *testing.T) {
	run := func(fail bool) (*Trainer, [][]float64) {
		lm := newLM(tensor.Float32, false)
		weight := lm.Params().ByName("backbone.norm_f.weight").Value.Data().([]float32)
		was := weight[0]
		cfg := config()
		cfg.Accumulate = 2
		cfg.Report = func(c *Curve) {
			if fail && len(c.Training) == 3 {
				was, weight[0] = weight[0], float32(math.NaN())
			}
		}
		tr := newTrainer(t, lm, cfg)
		if fail {
			if err := tr.Run(t.Context()); err == nil || tr.Done() != 3 {
				t.Fatalf("%d steps, error %v, want 3 and an error", tr.Done(), err)
			}
			weight[0] = was
			fail = false
		}
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		return tr, weights(lm)
	}
	calm, want := run(false)
	failed, got := run(true)
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(failed.Curve(), calm.Curve()) {
		t.Errorf("after a failed step the losses are %v, want %v, or the weights differ", failed.Curve(), calm.Curve())
	}
	if _, err := calm.Evaluate(nil); err == nil || !strings.Contains(err.Error(), "the weights of 0 batches add up to 0, want more") {
		t.Errorf("evaluating nothing: error %v", err)
	}
}
