package train

import (
	"context"
	"math"
	"testing"

	"gorgonia.org/tensor"
)

func TestSingle(t *testing.T) {
	of := func(lengths ...int) (docs []Document) {
		for _, n := range lengths {
			docs = append(docs, Document{Tokens: make([]int, n)})
		}
		return docs
	}
	for _, docs := range [][]Document{
		nil, of(9), of(5), of(17, 9, 9), of(12), of(5, 5), of(5, 6), of(6, 5), of(12, 12, 3), of(12, 12), of(9, 9, 6, 3, 9), of(9, 4, 6, 9), of(3, 9, 6), of(3, 9, 5), of(3, 4), of(4, 9, 9, 5),
	} {
		fits := false // by trying
		pieces := cut(docs, 8)
		for i, p := range pieces {
			for _, q := range pieces[:i] {
				fits = fits || p.n+q.n <= 8
			}
		}
		if got := single(docs, 8); got == fits {
			t.Errorf("%v: %v", pieces, got)
		}
	}
}

// A run on batches without starts has the losses of one with starts, and evaluates batches of Pack.
func TestTrainerSingle(t *testing.T) {
	cfg := config()
	cfg.Data, cfg.HeldOut = nil, documents(9)
	for i, d := range documents(30) {
		for len(d.Tokens) < 2*cfg.Length {
			d.Tokens = append(d.Tokens, d.Tokens...)
		}
		cfg.Data = append(cfg.Data, Document{Tokens: d.Tokens[:cfg.Length+1-i%(cfg.Length/2)], Prompt: i % 4})
	}
	losses := func(starts bool) (all []Point) {
		lm := newLM(tensor.Float32, false)
		tr := newTrainer(t, lm, cfg)
		if tr.train.inputs["start"] != nil || tr.scorer.inputs["start"] == nil {
			t.Fatal("the batches to train on have starts, or those of evaluations have none")
		}
		if starts {
			p, err := NewPacker(cfg.Data, cfg.Batch, cfg.Length, cfg.Seed)
			if err != nil {
				t.Fatal(err)
			}
			if tr, err = NewTrainer(Problem{Params: lm.Params(), Loss: LMLoss(lm), Data: p, HeldOut: tr.heldOut}, RunConfig{Steps: cfg.Steps, AdamW: cfg.AdamW, EvalEvery: cfg.EvalEvery, Accumulate: cfg.Accumulate}); err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			if tr.train.inputs["start"] == nil {
				t.Fatal("a problem's batches lost their starts")
			}
		}
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		return append(tr.Curve().Training, tr.Curve().HeldOut...)
	}
	want, got := losses(true), losses(false)
	for i := range want {
		if math.Abs(got[i].Loss-want[i].Loss) > 1e-5*want[i].Loss {
			t.Errorf("loss %d is %v, with starts %v", i, got[i].Loss, want[i].Loss)
		}
	}
	t.Log(want[len(want)-1], got[len(got)-1])
}
