// Package loop trains the models of the examples on batches of package task.
package loop

import (
	"context"
	"errors"
	"fmt"

	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
)

// Train makes cfg.Steps steps. It calls report after each step, with last true after the last one. When the context ends, it finishes the
// current step; this is then the last one, and not an error. At least one step is made. It also ends when report returns enough or an
// error.
func Train(ctx context.Context, p train.Problem, cfg train.RunConfig, report func(t *train.Trainer, last bool) (enough bool, err error)) error {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var t *train.Trainer
	var failed error
	cfg.Report = func(*train.Curve) {
		last := t.Done() == cfg.Steps || ctx.Err() != nil
		enough, err := report(t, last)
		if failed = err; last || enough || err != nil {
			stop()
		}
	}
	t, err := train.NewTrainer(p, cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	err = t.Run(run)
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, train.ErrDiverged):
		return fmt.Errorf("the loss or its gradient is not finite at step %d: -lr is %v, should be lower", t.Done()+1, cfg.AdamW.LearnRate)
	case run.Err() == nil:
		return err
	}
	return nil
}

// Batch returns a batch with sequences of a length.
func Batch(b task.Batch, length int) (train.Batch, error) {
	return train.NewTokenBatch(length, b.IDs, b.Targets, nil)
}

// Source returns a source of the batches of a stream, with sequences of a length. open returns the stream at its beginning. The source opens
// it again to go back.
func Source(length int, open func() (next func() (task.Batch, error), err error)) train.Source {
	var next func() (task.Batch, error)
	at := 0 // the number of the batch that next returns
	return train.NewSource(func(i int) (train.Batch, error) {
		if next == nil || i < at {
			var err error
			if next, err = open(); err != nil {
				return train.Batch{}, err
			}
			at = 0
		}
		for {
			b, err := next()
			if err != nil {
				return train.Batch{}, err
			}
			if at++; at > i {
				return Batch(b, length)
			}
		}
	})
}
