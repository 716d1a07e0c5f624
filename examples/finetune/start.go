package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// start returns the model to start from, and the texts to show perplexities of: the last one is to be trained on.
//
// Without -model it trains a small model of bytes first: on Go's code, and then the comments are the new text; with -data, on the
// training part of that data, so that no Go installation is needed.
func start(ctx context.Context, set settings, out io.Writer) (lm *nn.LM, enc encoding, texts []text, err error) {
	enc = byBytes
	if set.model != "" {
		if lm, enc, err = load(set.model, set.where); err != nil {
			return nil, enc, nil, err
		}
		describe(out, set.model, lm)
	}
	name := set.data
	var code, tuned []document
	if set.data != "" {
		tuned, err = readDocuments(set.data)
	} else {
		name = "Go's comments"
		code, tuned, err = goTexts()
	}
	if err != nil {
		return nil, enc, nil, err
	}
	data, err := newCorpus(tuned, enc, set.heldout, set.evaltokens)
	if err != nil {
		return nil, enc, nil, fmt.Errorf("%s: %w", name, err)
	}
	if set.model == "" {
		base := text{name: name, corpus: data}
		if set.data == "" {
			base.name = "Go's code"
			if base.corpus, err = newCorpus(code, enc, 0.1, set.evaltokens); err != nil {
				return nil, enc, nil, err
			}
			texts = append(texts, base)
		}
		if lm, err = trainBase(ctx, set, base, out); err != nil {
			return nil, enc, nil, err
		}
	}
	return lm, enc, append(texts, text{name: name, corpus: data}), nil
}

func describe(out io.Writer, name string, lm *nn.LM) {
	c := lm.Config()
	fmt.Fprintf(out, "model       %s: Mamba, parameters: %d\n            layers: %d, d_model: %d, vocabulary: %d\n", name, lm.Params().Count(), c.NLayer, c.DModel, c.Vocab)
}

// trainBase makes a small model of bytes and trains it on a text for a moment.
func trainBase(ctx context.Context, set settings, base text, out io.Writer) (*nn.LM, error) {
	c := base.corpus
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: set.dmodel, NLayer: set.layers}, Vocab: 256},
		append(slices.Clone(set.where), nn.WithSeed(uint64(set.seed)))...)
	describe(out, "a small one", lm)
	if set.basesteps == 0 {
		set.basesteps = baseSteps(c, set.batch*set.length)
	}
	own := settings{steps: set.basesteps, batch: set.batch, length: set.length, accumulate: 1, lr: 5e-3, clip: 1, decay: 0.01,
		warmup: max(set.basesteps/20, 1), seed: set.seed, heldout: set.heldout, evaltokens: set.evaltokens, device: set.device, group: set.group, shard: set.shard, segments: set.segments, recompute: set.recompute, save: max(set.basesteps/10, 1), eval: max(set.basesteps/10, 1), resume: set.resume}
	fmt.Fprintf(out, "base        %s: documents: %d, bytes: %d, held out: %d\n            steps: %d, batch: %s1 x %d, length: %d, learn rate: %v\n", base.name, len(c.train)+len(c.heldOut), c.tokens, len(c.heldOut),
		own.steps, ranks(set), own.batch, own.length, own.lr)
	saved := own.saved(map[string]string{"-layers": fmt.Sprint(set.layers), "-dmodel": fmt.Sprint(set.dmodel), "the text": c.sum})
	t, show, err := newTrainer(lm, own, c, baseFile(set), saved, out)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	if err := loop.Run(ctx, t, show, own.resume, out); err != nil {
		return nil, err
	}
	if set.group.Rank() > 0 {
		return lm, nil
	}
	return lm, checkpoint.Save(baseDir(set), lm)
}

// baseSteps returns the default number of steps of the small model, each of so many tokens. It makes at most four passes over the text:
// after more, the model knows a short text by heart and predicts other text worse than before.
func baseSteps(c *corpus, tokens int) int {
	const most, passes = 800, 4
	n := 0
	for _, d := range c.train {
		n += len(d.Tokens)
	}
	return min(most, (passes*n+tokens-1)/tokens)
}

// load reads a checkpoint and its tokenizer.
func load(dir string, where []nn.Option) (*nn.LM, encoding, error) {
	lm, err := checkpoint.Load(dir, append(where, checkpoint.Weights("float32"))...) // a GGUF file's narrow weights are not trained
	if err != nil {
		return nil, encoding{}, err
	}
	tokenizer, err := tokens.Open(dir, lm.Config().Vocab)
	return lm, encoding{tokenizer}, err
}

// copyTokenizer copies the files of the tokenizer into the directory of the result.
func copyTokenizer(from, to string) error {
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"} {
		data, err := tensorfile.ReadFile(filepath.Join(from, name), 1<<30)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o666); err != nil {
			return options.OutDirError(to, err)
		}
	}
	return nil
}
