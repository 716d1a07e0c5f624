// Package experiment trains language models on synthetic tasks, for the examples that compare them.
package experiment

import (
	"context"
	"fmt"
	"slices"

	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Config is one model on one task.
type Config struct {
	Model     nn.Config   // the vocabulary is the task's
	Options   []nn.Option // of the model, such as nn.OnDevice
	From      *nn.LM      // if not nil, this model is trained further instead
	Task      task.Task
	Batch     int
	Steps     int
	LearnRate float64 // peak: the rate rises over a tenth of the steps, at most 100, and falls along half a cosine to a tenth
	Constant  bool    // the learn rate does not fall
	Clip      float64 // length to which a longer gradient is scaled down; no limit if zero
	Decay     float64 // weight decay
	Seed      uint64  // of the weights and of the data

	EvalEvery int // steps between evaluations
	Held      int // sequences of an evaluation; none of them is a training sequence
	Enough    int // training ends early after this number of evaluations in a row with every token right; never if zero

	Progress *report.Progress // shows the run if not nil; Train sets Steps, Tokens and Summary
}

// Point is an evaluation on held-out sequences.
type Point struct {
	Step int
	task.Accuracy
}

// HeldOut is the seed of the held-out data. It is far from the seeds that a person chooses for training.
const HeldOut = 1 << 40

// Train returns a trained model and its evaluations, the last one after the last step. When the context ends, Train finishes the current
// step, evaluates, and returns the results so far without an error.
func Train(ctx context.Context, cfg Config) (lm *nn.LM, points []Point, err error) {
	if lm = cfg.From; lm == nil {
		lm = nn.NewLM(nn.LMConfig{Config: cfg.Model, Vocab: cfg.Task.Vocab()}, append(slices.Clone(cfg.Options), nn.WithSeed(cfg.Seed))...)
	}
	if err := lm.Err(); err != nil {
		return nil, nil, err
	}
	scorer, err := NewScorer(lm, cfg.Batch, cfg.Task.Length())
	if err != nil {
		return nil, nil, err
	}
	defer scorer.Close()
	if p := cfg.Progress; p != nil {
		p.Steps, p.Tokens = cfg.Steps, cfg.Batch*cfg.Task.Length()
		p.Summary = func(c *train.Curve, last int) string {
			text := fmt.Sprintf("loss %.3f", c.Mean(last))
			if n := len(points); n > 0 {
				text += fmt.Sprintf("  right %.1f%%", 100*points[n-1].OfTokens())
			}
			return text
		}
	}
	end := 0.1
	if cfg.Constant {
		end = 1
	}
	cfg.Progress.Start(0)
	defer cfg.Progress.Finish()
	perfect := 0
	err = loop.Train(ctx, train.Problem{
		Params: lm.Params(), Loss: train.LMLoss(lm),
		Data: loop.Source(cfg.Task.Length(), func() (func() (task.Batch, error), error) {
			data := task.NewStream(cfg.Task, cfg.Seed)
			return func() (task.Batch, error) { return data.Next(cfg.Batch) }, nil
		}),
	}, train.RunConfig{Steps: cfg.Steps, AdamW: train.AdamWConfig{
		LearnRate: cfg.LearnRate, Clip: cfg.Clip, Decay: cfg.Decay,
		Schedule: train.WarmupCosine(min(100, cfg.Steps/10), cfg.Steps, end),
	}}, func(t *train.Trainer, last bool) (enough bool, err error) {
		if last || t.Done()%cfg.EvalEvery == 0 {
			a, err := scorer.Score(cfg.Task, cfg.Held)
			if err != nil {
				return false, err
			}
			points = append(points, Point{t.Done(), a})
			if perfect++; a.RightTokens < a.Tokens {
				perfect = 0
			}
		}
		cfg.Progress.Update(t.Curve())
		return cfg.Enough > 0 && perfect >= cfg.Enough, nil
	})
	if err != nil {
		return nil, points, err
	}
	return lm, points, nil
}

func input(g *G.ExprGraph, name string, batch, length int) *G.Node {
	return G.NewMatrix(g, tensor.Int, G.WithShape(batch, length), G.WithName(name))
}

func let(n *G.Node, data []int) error {
	return G.Let(n, tensor.New(tensor.WithShape(n.Shape()...), tensor.WithBacking(data)))
}

// Scorer counts the right answers of a model on whole sequences.
type Scorer struct {
	ids    *G.Node
	vocab  int
	logits *G.Value // apart from the machine
	vm     G.VM
}

// NewScorer returns a scorer for batches of sequences of a length. Close it after use.
func NewScorer(lm *nn.LM, batch, length int) (*Scorer, error) {
	g := G.NewGraph()
	s := &Scorer{ids: input(g, "ids", batch, length), vocab: lm.Config().Vocab}
	logits, err := lm.Apply(s.ids)
	if err != nil {
		return nil, err
	}
	s.logits = new(G.Value)
	G.Read(logits, s.logits)
	s.vm = G.NewTapeMachine(g)
	return s, nil
}

// Score returns the accuracy on held-out sequences of a task. It rounds their number up to whole batches.
func (s *Scorer) Score(t task.Task, sequences int) (a task.Accuracy, err error) {
	data, batch := task.NewStream(t, HeldOut), s.ids.Shape()[0]
	for a.Sequences < sequences {
		b, err := data.Next(batch)
		if err != nil {
			return a, err
		}
		if err := s.Add(&a, b); err != nil {
			return a, err
		}
	}
	return a, nil
}

// Add counts the answers of a batch.
func (s *Scorer) Add(a *task.Accuracy, b task.Batch) error {
	if err := let(s.ids, b.IDs); err != nil {
		return err
	}
	s.vm.Reset()
	if err := s.vm.RunAll(); err != nil {
		return err
	}
	best, err := task.Best((*s.logits).Data().([]float32), s.vocab)
	if err != nil {
		return err
	}
	return a.Add(best, b.Targets, s.ids.Shape()[1])
}

// Close frees the machine of the scorer.
func (s *Scorer) Close() error { return s.vm.Close() }
