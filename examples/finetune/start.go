package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// start returns the model to start from, and the texts to show perplexities of: the last one is to be trained on.
func start(ctx context.Context, set settings, out io.Writer) (lm *nn.LM, enc encoding, texts []text, err error) {
	var code, tuned []document
	name := set.data
	if set.data != "" {
		if tuned, err = readDocuments(set.data); err != nil {
			return nil, enc, nil, err
		}
	}
	if set.data == "" || set.model == "" {
		var comments []document
		if code, comments, err = goTexts(); err != nil {
			return nil, enc, nil, err
		}
		if set.data == "" {
			tuned, name = comments, "Go's comments"
		}
	}
	if set.model != "" {
		if lm, enc, err = load(set.model, set.where); err != nil {
			return nil, enc, nil, err
		}
		describe(out, set.model, lm)
	} else {
		enc = byBytes
	}
	c, err := newCorpus(tuned, enc, set.heldout, set.evaltokens)
	if err != nil {
		return nil, enc, nil, fmt.Errorf("%s: %w", name, err)
	}
	if set.model == "" {
		base := text{name: "Go's code, the text of the small model"}
		if lm, base.corpus, err = trainBase(ctx, set, code, out); err != nil {
			return nil, enc, nil, err
		}
		texts = append(texts, base)
	}
	return lm, enc, append(texts, text{name: name, corpus: c}), nil
}

func describe(out io.Writer, name string, lm *nn.LM) {
	c := lm.Config()
	fmt.Fprintf(out, "model       %s: Mamba, parameters: %d, layers: %d, d_model: %d, vocabulary: %d\n", name, lm.Params().Count(), c.NLayer, c.DModel, c.Vocab)
}

// trainBase makes a small model and trains it on Go code for a moment.
func trainBase(ctx context.Context, set settings, code []document, out io.Writer) (*nn.LM, *corpus, error) {
	c, err := newCorpus(code, byBytes, 0.1, set.evaltokens)
	if err != nil {
		return nil, nil, err
	}
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: set.dmodel, NLayer: set.layers}, Vocab: 256},
		append(slices.Clone(set.where), nn.WithSeed(uint64(set.seed)))...)
	describe(out, "a small one", lm)
	own := settings{steps: set.basesteps, batch: set.batch, length: set.length, accumulate: 1, lr: 5e-3, clip: 1, decay: 0.01,
		warmup: max(set.basesteps/20, 1), seed: set.seed, device: set.device, save: max(set.basesteps/10, 1), eval: max(set.basesteps/10, 1), resume: set.resume}
	fmt.Fprintf(out, "base        Go's code: documents: %d, bytes: %d, held out: %d, steps: %d\n", len(c.train)+len(c.heldOut), c.tokens, len(c.heldOut), own.steps)
	saved := own.saved(map[string]string{"-layers": fmt.Sprint(set.layers), "-dmodel": fmt.Sprint(set.dmodel), "the code": c.sum})
	t, show, err := newTrainer(lm, own, c, baseFile(set), saved, out)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	if err := loop(ctx, t, show, own, out); err != nil {
		return nil, nil, err
	}
	return lm, c, checkpoint.Save(baseDir(set), lm)
}

// load reads a checkpoint, and how it makes tokens of text.
func load(dir string, where []nn.Option) (*nn.LM, encoding, error) {
	lm, err := checkpoint.Load(dir, where...)
	if err != nil {
		return nil, encoding{}, err
	}
	tokenizer, err := tokens.Open(dir, lm.Config().Vocab)
	return lm, encoding{tokenizer}, err
}

// copyTokenizer copies the files of the tokenizer, so that the result is complete.
func copyTokenizer(from, to string) error {
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o666); err != nil {
			return outError(to, err)
		}
	}
	return nil
}

// fingerprint tells models apart: a run goes on only from the one that it started from.
func fingerprint(lm *nn.LM) string {
	h := sha256.New()
	for _, p := range lm.Params() {
		fmt.Fprint(h, p.Name, p.Value.Shape())
		if err := binary.Write(h, binary.LittleEndian, p.Value.Data()); err != nil {
			panic(err) // floats have a size, and a hash has no errors
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
