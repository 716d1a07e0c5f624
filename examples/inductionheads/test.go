package main

import (
	"context"
	"time"

	"github.com/gomamba/mamba/examples/internal/experiment"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
)

// answer is the accuracy of a model at a length.
type answer struct {
	length int
	task.Accuracy
	took time.Duration
}

// wholeLength is the largest length at which sequences are read as a whole, several in a batch. Longer sequences are read in pieces: the
// state is carried on, and the memory does not grow. Attention has no such state and reads every sequence as a whole.
const wholeLength = 2048

// ask tests a model at a length, on -sequences sequences, or on fewer if that would take longer than -limit, but at least one.
func ask(ctx context.Context, set settings, m model, lm *nn.LM, length int) (a answer, err error) {
	problem, err := task.NewInductionHeads(length, set.vocab)
	if err != nil {
		return a, err
	}
	a.length = length
	start := time.Now()
	// done reports whether n more sequences would take too long.
	done := func(n int) bool {
		a.took = time.Since(start)
		if a.Sequences >= set.sequences || ctx.Err() != nil {
			return true
		}
		return a.Sequences > 0 && a.took.Seconds()*float64(a.Sequences+n)/float64(a.Sequences) > set.limit
	}
	data := task.NewStream(problem, experiment.HeldOut)
	if length > wholeLength && m.kind != nn.Attention {
		g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 1, Piece: wholeLength})
		if err != nil {
			return a, err
		}
		defer g.Close()
		for !done(1) {
			b, err := data.Next(1)
			if err != nil {
				return a, err
			}
			next, err := g.Generate(ctx, [][]int{b.IDs}, nil)
			if err != nil {
				return a, err
			}
			predicted := make([]int, length)
			predicted[length-1] = next[0][0]
			if err := a.Add(predicted, b.Targets, length); err != nil {
				return a, err
			}
		}
		return a, nil
	}
	batch := max(min(wholeLength/length, set.sequences), 1)
	s, err := experiment.NewScorer(lm, batch, length)
	if err != nil {
		return a, err
	}
	defer s.Close()
	for !done(batch) {
		b, err := data.Next(batch)
		if err != nil {
			return a, err
		}
		if err := s.Add(&a.Accuracy, b); err != nil {
			return a, err
		}
	}
	return a, nil
}
