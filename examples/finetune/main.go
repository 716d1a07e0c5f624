// Finetune trains a Mamba language model further on text.
//
//	go run ./examples/finetune                                      # a small model, which it trains first
//	go run ./examples/finetune -data FILE                           # the same on your own text
//	go run ./examples/finetune -model DIR -data FILE                # all weights of a checkpoint
//	go run ./examples/finetune -model DIR -data FILE -lora 8 -merge # LoRA on the projections
//	mpirun -n 4 ./finetune -distributed -data FILE                  # four processes, on one machine or several
//	go run ./examples/finetune -h                                   # all flags
//
// The model is a directory in the Hugging Face layout. The data has one document per line, or is JSON Lines (.jsonl) with text, or
// with prompt and completion: prompts are not learned. A tenth of the documents is held out. The program prints their perplexity
// before and after. It writes the result, the loss curve and the state for -resume into the directory that -out names.
//
// A run can be stopped, by Ctrl-C or by a kill at any moment. With -resume it continues and ends with the same weights, bit for bit.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
)

func main() { loop.Main(run) }

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	if err != nil {
		return loop.Exit("finetune", err, stdout, stderr)
	}
	return loop.Work(ctx, "finetune", set.distributed, stdout, stderr, func(group *dist.Group, out io.Writer) error {
		set.group = group
		return work(ctx, set, out)
	})
}

// text is a corpus with a name, and the perplexity of its held-out part before and after training.
type text struct {
	name string
	*corpus
	batches       []train.Batch
	before, after float64
}

// work does everything, in the order of the output.
func work(ctx context.Context, set settings, out io.Writer) (err error) {
	if err := loop.SameResume(set.group, set.resume); err != nil {
		return err
	}
	if set.group.Rank() == 0 {
		lock, err := prepare(set)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Release()) }()
	}
	if err := set.group.Barrier(); err != nil { // nobody begins in a folder that is in use
		return err
	}
	where, device, closeDevice, err := set.device.OpenAt(set.group.GPU)
	if err != nil {
		return err
	}
	defer closeDevice()
	if set.where = where; device != "" {
		fmt.Fprintf(out, "device      %s\n", device)
	}
	lm, enc, texts, err := start(ctx, set, out)
	if err != nil {
		return err
	}
	tuned := texts[len(texts)-1]
	fmt.Fprintf(out, "data        %s: documents: %d, %ss: %d, held out: %d\n", tuned.name, len(tuned.train)+len(tuned.heldOut), enc.unit(),
		tuned.tokens, len(tuned.heldOut))
	model := loop.Fingerprint(lm.Params())
	what := "all weights"
	if set.lora > 0 {
		if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: set.lora, Alpha: set.alpha, Seed: uint64(set.seed)}); err != nil {
			return err
		}
		what = fmt.Sprintf("LoRA of rank %d", set.lora)
	}
	fmt.Fprintf(out, "finetune    %s: %d of %d parameters\n", what, lm.Params().Trainable().Count(), lm.Params().Count())
	fmt.Fprintf(out, "            steps: %d, batch: %s%d x %d, length: %d, learn rate: %v\n", set.steps, ranks(set), set.accumulate, set.batch, set.length, set.lr)

	if set.traced {
		set.trace = new(train.Trace)
	}
	t, show, err := newTrainer(lm, set, tuned.corpus, stateFile(set), set.saved(map[string]string{"-model": model, "-data": tuned.sum}), out)
	if err != nil {
		return err
	}
	defer t.Close()
	for i := range texts {
		if texts[i].before, err = texts[i].perplexity(t, set); err != nil {
			return err
		}
	}
	err = loop.Run(ctx, t, show, set.resume, out)
	if err := errors.Join(err, loop.Trace(set.trace, filepath.Join(set.out, "trace.json"), set.group, out)); err != nil {
		return err
	}
	for i := range texts {
		if texts[i].after, err = texts[i].perplexity(t, set); err != nil {
			return err
		}
	}
	if set.heldout > 0 {
		fmt.Fprintf(out, "\nperplexity per %-28s before     after\n", enc.unit()+", held out")
		for _, x := range texts {
			fmt.Fprintf(out, "  %-36s %10.3f %10.3f\n", x.name, x.before, x.after)
		}
		if tuned := texts[len(texts)-1]; tuned.after > tuned.before {
			fmt.Fprintf(out, "The held-out part is predicted worse than before: the model begins to know the\n"+
				"training text by heart. Train on more text, or with fewer -steps or a lower -lr.\n")
		}
		fmt.Fprintln(out)
	}
	if set.group.Rank() == 0 {
		return finish(set, lm, t.Curve(), enc, out)
	}
	return nil
}

// ranks returns the number of processes as a factor of the batch, "" for one.
func ranks(set settings) string {
	if n := set.group.Size(); n > 1 && !set.segments {
		return fmt.Sprintf("%d x ", n)
	}
	return ""
}

// perplexity returns the perplexity of the held-out documents.
func (x *text) perplexity(t *train.Trainer, set settings) (float64, error) {
	if len(x.heldOut) == 0 {
		return math.NaN(), nil
	}
	if x.batches == nil {
		var err error
		if x.batches, err = train.Pack(x.heldOut, set.batch, set.length); err != nil {
			return 0, fmt.Errorf("%s, held out: %w", x.name, err)
		}
	}
	loss, err := t.Evaluate(x.batches)
	return perplexity(loss), err
}

func stateFile(set settings) string { return filepath.Join(set.out, "train.safetensors") }
func baseDir(set settings) string   { return filepath.Join(set.out, "base") }
func baseFile(set settings) string  { return filepath.Join(baseDir(set), "train.safetensors") }

// modelFiles and loraFiles are the two kinds of results.
var (
	modelFiles = []string{"config.json", "model.safetensors"}
	loraFiles  = []string{"adapter_config.json", "adapter_model.safetensors"}
)

// replacing is a file that says that the results beside it are those of a run that has ended, whose state a new run has removed and may not have saved its own.
const replacing = "replacing"

// prepare makes the directory of -out and locks it. It refuses to overwrite a run there that has not ended, or a model or LoRA that no
// run has written, and removes the state of a run that has ended.
func prepare(set settings) (*tensorfile.Lock, error) {
	if set.model != "" && sameFolder(set.model, set.out) {
		return nil, fmt.Errorf("-out is %q, the directory of -model: should be another", set.out)
	}
	base := ""
	if set.model == "" {
		base = "base"
	}
	lock, err := loop.Lock(set.out, base, "finetune")
	if err != nil {
		return nil, err
	}
	if err := clearStates(set); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return lock, nil
}

// clearStates removes the state of a run that has ended.
func clearStates(set settings) error {
	mark := filepath.Join(set.out, replacing)
	_, state := os.Lstat(stateFile(set))
	if _, err := os.Lstat(mark); errors.Is(state, fs.ErrNotExist) && err != nil {
		for _, name := range slices.Concat(modelFiles, loraFiles) {
			if _, err := os.Lstat(filepath.Join(set.out, name)); err == nil {
				return fmt.Errorf("-out is %q, which holds a %s that no run has written: should be a new directory, or that of an earlier run", set.out, name)
			}
		}
	}
	if set.resume {
		return nil
	}
	there, err := loop.Unfinished(set.out, stateFile(set))
	if err == nil && !there {
		if there, err = loop.Unfinished(set.out, baseFile(set)); err == nil && there { // the model alone has been trained
			err = loop.Continue(set.out, baseFile(set))
		}
	}
	if err != nil {
		return err
	}
	if there {
		if err := os.WriteFile(mark, nil, 0o666); err != nil {
			return options.OutDirError(set.out, err)
		}
	}
	for _, f := range []string{stateFile(set), baseFile(set)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return options.OutDirError(set.out, err)
		}
	}
	return nil
}

func sameFolder(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// newTrainer returns a trainer on a corpus, and its progress.
func newTrainer(lm *nn.LM, set settings, c *corpus, file string, saved map[string]string, out io.Writer) (*train.Trainer, *report.Progress, error) {
	show := &report.Progress{
		Out: out, Steps: set.steps, Tokens: set.accumulate * set.batch * set.length,
		Summary: func(c *train.Curve, last int) string {
			text := fmt.Sprintf("loss %.3f  perplexity %.3f", c.Mean(last), perplexity(c.Mean(last)))
			if n := len(c.HeldOut); n > 0 {
				text += fmt.Sprintf("  held out %.3f", perplexity(c.HeldOut[n-1].Loss))
			}
			return text
		},
		Rate: func(tokens float64) string { return fmt.Sprintf("%.0f tokens/s", tokens) },
	}
	if !set.segments {
		show.Tokens *= set.group.Size()
	}
	var calls []nn.CallOption
	if set.recompute {
		calls = append(calls, nn.WithRecompute(nn.RecomputeAll))
	}
	t, err := train.New(lm, train.Config{
		Batch: set.batch, Length: set.length, Steps: set.steps, Accumulate: set.accumulate,
		Data: c.train, HeldOut: c.heldOut, Seed: uint64(set.seed),
		AdamW: train.AdamWConfig{LearnRate: set.lr, Decay: set.decay, Clip: set.clip, Schedule: train.WarmupCosine(set.warmup, set.steps, 0.1)},
		File:  file, SaveEvery: set.save, EvalEvery: set.eval, Settings: saved, Group: set.group, Shard: set.shard, Segments: set.segments, Report: show.Update, Trace: set.trace, Options: calls,
	})
	return t, show, err
}

// finish writes the result, the tokenizer and the picture.
func finish(set settings, lm *nn.LM, curve *train.Curve, enc encoding, out io.Writer) error {
	what := "model"
	if set.merge {
		if _, err := lm.Params().MergeLoRA(); err != nil {
			return err
		}
		what = "merged"
	}
	var err error
	stale := loraFiles // of an earlier run in the same directory
	if set.lora > 0 && !set.merge {
		what, stale = "LoRA", modelFiles
		err = train.SaveLoRA(set.out, baseName(set), lm.Params())
	} else {
		err = checkpoint.Save(set.out, lm)
	}
	if err != nil {
		return err
	}
	for _, name := range append([]string{replacing}, stale...) {
		if err := os.Remove(filepath.Join(set.out, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return options.OutDirError(set.out, err)
		}
	}
	if set.model != "" {
		if err := copyTokenizer(set.model, set.out); err != nil {
			return err
		}
	}
	png := filepath.Join(set.out, "loss.png")
	if err := report.WritePNG(png, report.Loss{Label: "loss, nats per " + enc.unit()}.Panel(curve)); err != nil {
		return options.OutDirError(set.out, err)
	}
	fmt.Fprintf(out, "%-11s %s\ncurve       %s\n", what, set.out, png)
	return nil
}

// baseName returns the directory of the model that a LoRA belongs to.
func baseName(set settings) string {
	if set.model != "" {
		return set.model
	}
	return baseDir(set)
}
