package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/examples/internal/models"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/tokens"
	"github.com/gomamba/mamba/train"
)

// model is what is served.
type model struct {
	lm        *nn.LM
	name      string
	vocab     int
	tokenizer *tokens.Tokenizer
	ends      []int     // tokens that end an answer
	chat      *template // nil for a model without one
}

// openModel loads the model of -model, or trains one.
func openModel(ctx context.Context, set settings, where []nn.Option, stderr io.Writer, log *slog.Logger) (m *model, err error) {
	if set.model == "" {
		m, err = trainModel(ctx, set.steps, where, log)
	} else {
		m, err = loadModel(ctx, set, where, stderr)
	}
	if err != nil {
		return nil, err
	}
	if set.name != "" {
		m.name = set.name
	}
	if set.template != "" {
		text, err := os.ReadFile(set.template)
		if err != nil {
			return nil, fmt.Errorf("-chat-template: %w", err)
		}
		var names map[string]any
		if m.chat != nil {
			names = m.chat.names
		}
		if m.chat, err = newTemplate(string(text), names); err != nil {
			return nil, fmt.Errorf("-chat-template: %w", err)
		}
	}
	m.vocab, m.ends = m.lm.Config().Vocab, m.tokenizer.End()
	cfg := m.lm.Config()
	log.Info("model", "name", m.name, "parameters", m.lm.Params().Count(), "layers", cfg.NLayer, "d_model", cfg.DModel, "vocabulary", cfg.Vocab,
		"chat", m.chat != nil)
	return m, nil
}

func loadModel(ctx context.Context, set settings, where []nn.Option, stderr io.Writer) (*model, error) {
	dir, err := models.Directory(ctx, "-model", set.model, stderr)
	if err != nil {
		return nil, err
	}
	if set.weights != "" {
		where = append(where, checkpoint.Weights(set.weights))
	}
	lm, err := checkpoint.Load(dir, where...)
	if err != nil {
		return nil, err
	}
	if set.tokenizer != "" {
		if dir, err = models.Directory(ctx, "-tokenizer", set.tokenizer, stderr); err != nil {
			return nil, err
		}
	}
	tokenizer, err := tokens.Open(dir, lm.Config().Vocab)
	if err != nil {
		return nil, err
	}
	chat, err := openTemplate(dir)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(set.model) // of "." too
	return &model{lm: lm, name: strings.TrimSuffix(filepath.Base(path), ".gguf"), tokenizer: tokenizer, chat: chat}, err
}

// trainModel trains the model of examples/bytelm for a moment, on the source of Go's library.
func trainModel(ctx context.Context, steps int, where []nn.Option, log *slog.Logger) (*model, error) {
	const batch, length, seed = 4, 128, 1
	text, err := task.GoSource(8 << 20)
	if err != nil {
		return nil, fmt.Errorf("%w; name a model with -model", err)
	}
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 256}, append(where, nn.WithSeed(seed))...)
	source := loop.Source(length, func() (func() (task.Batch, error), error) {
		s, err := task.NewSampler(text.Join(), batch, length, seed)
		return s.Next, err
	})
	start := time.Now()
	var curve *train.Curve
	err = loop.Train(ctx, train.Problem{Params: lm.Params(), Loss: train.LMLoss(lm), Data: source},
		train.RunConfig{Steps: steps, AdamW: train.AdamWConfig{LearnRate: 5e-3, Schedule: train.WarmupCosine(min(50, steps/10), steps, 0.1)}},
		func(t *train.Trainer, last bool) (bool, error) {
			curve = t.Curve()
			return false, nil
		})
	if err != nil {
		return nil, err
	}
	log.Info("trained", "steps", len(curve.Training), "loss", fmt.Sprintf("%.3f", curve.Mean(len(curve.Training)/10+1)), "took", time.Since(start).Round(time.Millisecond))
	return &model{lm: lm, name: "bytelm", tokenizer: tokens.Bytes()}, ctx.Err()
}
