package train

import (
	"fmt"
	"reflect"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/nn"
)

// Config describes a training run of a language model on documents. A zero field stands for the default.
type Config struct {
	Batch, Length int // sequences in a batch, and tokens in a sequence; required
	Steps         int // number of training steps; required
	Accumulate    int // batches whose gradients are added up in a step; 1 by default. The loss is the mean over the tokens of all of them

	Data    []Document // the documents to train on; required
	HeldOut []Document // the documents to evaluate on; none by default
	Seed    uint64     // seed of the order of the data

	AdamW AdamWConfig // LearnRate is required

	EvalEvery int    // steps between evaluations; the trainer also evaluates before the first step and after the last one
	File      string // file in which the run is saved, for Resume; by default it is not saved
	SaveEvery int    // steps between saves; the trainer also saves after the last step

	// Settings holds values by name that are saved with the run. Resume returns an error if they differ. Use it for everything that the
	// run depends on but that is not in this configuration, such as the flags of a program.
	Settings map[string]string

	// Group is the processes that train together, as dist.Join returned it; nil for this one alone. See RunConfig.Group.
	Group *dist.Group
	Shard bool // see RunConfig.Shard
	// Segments divides each sequence among the ranks instead of giving them different batches (nn.WithSegments): for sequences that are too long for the memory of one
	// process. The steps are those of one process with the same configuration, within rounding.
	Segments bool

	// Report is called after each step; with a Group on rank 0 only.
	Report func(*Curve)
	Trace  *Trace // see RunConfig.Trace
	// Options are the options of the model's calls, such as nn.WithRecompute.
	Options []nn.CallOption
}

// New returns a trainer of a language model, before its first step. Call Close when you no longer use it.
//
// It is NewTrainer with LMLoss as the loss and a Packer as the source.
func New(lm *nn.LM, cfg Config) (*Trainer, error) {
	if lm == nil {
		return nil, fmt.Errorf("train: the model is missing, want one that nn.NewLM returned")
	}
	if err := lm.Err(); err != nil {
		return nil, err
	}
	run := RunConfig{Steps: cfg.Steps, Accumulate: cfg.Accumulate, AdamW: cfg.AdamW, EvalEvery: cfg.EvalEvery, File: cfg.File,
		SaveEvery: cfg.SaveEvery, Settings: cfg.Settings, Group: cfg.Group, Shard: cfg.Shard,
		Segments: cfg.Segments, Report: cfg.Report, Trace: cfg.Trace}
	if err := atLeast(field{"Batch", cfg.Batch, 1}, field{"Length", cfg.Length, 1}); err != nil {
		return nil, err
	}
	if err := run.complete(); err != nil {
		return nil, err
	}
	if err := batchBytes(cfg.Batch, cfg.Length).Times(run.Accumulate).Fits("the batches of a step"); err != nil {
		return nil, fmt.Errorf("train: Batch is %d, Length is %d, Accumulate is %d: %w", cfg.Batch, cfg.Length, run.Accumulate, err)
	}
	for _, c := range []struct {
		name string
		docs []Document
	}{{"Data", cfg.Data}, {"HeldOut", cfg.HeldOut}} {
		for i, d := range c.docs {
			for j, token := range d.Tokens {
				if token < 0 || token >= lm.Config().Vocab {
					return nil, fmt.Errorf("train: token %d of document %d of %s is %d, want 0 to %d, the model's vocabulary",
						j, i, c.name, token, lm.Config().Vocab-1)
				}
			}
		}
	}
	packer, err := NewPacker(cfg.Data, cfg.Batch, cfg.Length, cfg.Seed)
	if err != nil {
		return nil, fmt.Errorf("%w (Config.Data)", err)
	}
	// Scans and convolutions without starts are faster. The batches of evaluations have starts.
	alone := cfg.Group.Size() == 1
	data := &early{Packer: packer, single: alone && single(cfg.Data, cfg.Length), one: alone && run.Accumulate == 1}
	p := Problem{Params: lm.Params(), Loss: LMLoss(lm, cfg.Options...), Data: data}
	if len(cfg.HeldOut) > 0 {
		if p.HeldOut, err = Pack(cfg.HeldOut, cfg.Batch, cfg.Length); err != nil {
			return nil, fmt.Errorf("%w (Config.HeldOut)", err)
		}
	}
	if cfg.Segments && cfg.Group.Size() > 1 {
		if err := divide(&cfg, lm, &p); err != nil {
			return nil, err
		}
	}
	var evaluated Source
	if data.single {
		evaluated = packer
	}
	t, err := makeTrainer(p, run, evaluated)
	if err != nil {
		return nil, err
	}
	if cfg.Segments && cfg.Group.Size() > 1 {
		t.cut = func(b Batch) (Batch, error) { return segment(b, cfg.Group) }
	}
	t.tokens = t.shares() * run.Accumulate * cfg.Batch * cfg.Length
	t.describe = func() map[string]string {
		all := map[string]string{"Batch": fmt.Sprint(cfg.Batch), "Length": fmt.Sprint(cfg.Length), "Seed": fmt.Sprint(cfg.Seed),
			"Data": describeDocuments(cfg.Data), "HeldOut": describeDocuments(cfg.HeldOut)}
		addFields(all, "model.", reflect.ValueOf(lm.Config()))
		return all
	}
	return t, nil
}

// LMLoss returns the loss of a language model for Problem.Loss: the mean over all targets, in nats per token. Its inputs are those of
// NewTokenBatch. Options are those of the model's calls. The model's Dropout and DropPath are on in training and off in evaluation.
func LMLoss(lm *nn.LM, options ...nn.CallOption) func(*Call) (*G.Node, error) {
	return func(c *Call) (*G.Node, error) {
		if lm == nil {
			return nil, fmt.Errorf("train: the model is missing, want one that nn.NewLM returned")
		}
		var all []nn.CallOption
		if cfg := lm.Config(); c.Training && (cfg.Dropout > 0 || cfg.DropPath > 0) {
			all = append(all, nn.WithTraining(c.Step()))
		}
		options := append(all, options...)
		if start := c.inputs["start"]; start != nil {
			options = append(options, nn.WithStart(start))
		}
		return lm.Loss(c.Input("ids"), c.Input("targets"), options...)
	}
}

// NewTokenBatch returns a batch for LMLoss. The slices have shape (batch, length), row by row: tokens; for each token the one to
// predict, or nn.Ignore; and marks that are 1 where a sequence starts and 0 elsewhere, or nil if all sequences start at the first column.
// The weight is the number of targets that are not nn.Ignore.
//
// Errors: length less than 1; slices that are not whole rows of the same number.
func NewTokenBatch(length int, ids, targets, start []int) (Batch, error) {
	if length < 1 || len(ids) == 0 || len(ids)%length != 0 {
		return Batch{}, fmt.Errorf("train: token batch: length is %d and ids has %d elements, want at least 1 and a multiple of it", length, len(ids))
	}
	b := Batch{Values: map[string]*tensor.Dense{}}
	for _, in := range []struct {
		name string
		data []int
	}{{"ids", ids}, {"targets", targets}, {"start", start}} {
		if in.name == "start" && start == nil {
			continue
		}
		if len(in.data) != len(ids) {
			return Batch{}, fmt.Errorf("train: token batch: %s has %d elements, want %d as ids has", in.name, len(in.data), len(ids))
		}
		b.Values[in.name] = tensor.New(tensor.WithShape(len(ids)/length, length), tensor.WithBacking(in.data))
	}
	b.Weight = weightOf(targets)
	return b, nil
}

// weightOf returns the number of targets that are not nn.Ignore.
func weightOf(targets []int) float64 {
	n := 0
	for _, target := range targets {
		if target != nn.Ignore {
			n++
		}
	}
	return float64(n)
}
