package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
)

// settings are the values of the flags.
type settings struct {
	length, vocab, longest         int
	steps, batch                   int
	layers, dmodel, heads          int
	lr, limit, dtmin, dtmax, decay float64
	seed, sequences                int
	out                            string
	only                           []model
	device                         options.Device
	direct                         bool
}

// model is a model of the comparison.
type model struct {
	kind nn.Kind
	name string
	lr   float64 // learn rate without -lr: one at which the model learns at every length up to -length, if it does at any
}

// Attention needs a lower learn rate than the others: at 0.008 it forgets, at longer lengths, what it has learned at shorter ones.
var models = []model{{nn.Mamba, "Mamba", 8e-3}, {nn.S4, "S4", 8e-3}, {nn.Attention, "attention", 2e-3}, {nn.LSTM, "LSTM", 8e-3}}

// rate returns the learn rate of a model.
func (set settings) rate(m model) float64 {
	if set.lr > 0 {
		return set.lr
	}
	return m.lr
}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		length: 256, vocab: 16, longest: 1 << 16, steps: 5000, batch: 8, layers: 2, dmodel: 32, heads: 4,
		dtmin: 1e-5, dtmax: 1e-3, limit: 20, seed: 1, sequences: 256, only: models,
	}
	flags := flag.NewFlagSet("inductionheads", flag.ContinueOnError)
	options.Whole(flags, &set.length, 3, "length", "tokens of a training sequence")
	options.Whole(flags, &set.vocab, 3, "vocab", "size of the vocabulary; the last token is the special one")
	options.Whole(flags, &set.longest, 64, "longest", "longest test sequence in tokens; the tests begin at 64 and double. The paper goes to 1048576")
	options.Whole(flags, &set.steps, 1, "steps", "training steps at -length; at each shorter length a quarter of this at most, fewer once every answer is right")
	options.Whole(flags, &set.batch, 1, "batch", "sequences of a training step")
	options.Whole(flags, &set.layers, 1, "layers", "number of layers of each model")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "width of each model: channels between the layers")
	options.Whole(flags, &set.heads, 1, "heads", "number of heads of attention")
	options.Number(flags, &set.lr, options.Positive, "lr", "learn rate, reached over the first steps (default 0.008, and 0.002 for attention)")
	options.Number(flags, &set.dtmin, options.Positive, "dtmin", "smallest initial value of Δ; a small Δ remembers for long")
	options.Number(flags, &set.dtmax, options.Positive, "dtmax", "largest initial value of Δ")
	options.Number(flags, &set.decay, 0, "decay", "weight decay")
	options.Number(flags, &set.limit, options.Positive, "limit", "seconds for the test of a model at one length: it ends with fewer sequences when they are over, and longer lengths are left out")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights and of the sequences")
	options.Whole(flags, &set.sequences, 1, "sequences", "largest number of sequences of a test")
	flags.StringVar(&set.out, "out", "inductionheads.png", "PNG `file` for accuracy against length; empty for none")
	flags.BoolVar(&set.direct, "direct", false, "train at -length from the first step on, instead of at shorter lengths first")
	set.device.Flags(flags)
	only := flags.String("only", "", "models to train, with commas between them (default all: "+strings.Join(names(models), ",")+")")

	if err := options.Parse(flags, args, usage,
		"Inductionheads trains models on short sequences and tests them on long ones.", "there are only flags"); err != nil {
		return set, err
	}
	if *only != "" {
		set.only = nil
		for name := range strings.SplitSeq(*only, ",") {
			i := slices.Index(names(models), strings.TrimSpace(name))
			if i < 0 {
				return set, fmt.Errorf("invalid value %q for flag -only: should be some of %s", *only, strings.Join(names(models), ","))
			}
			set.only = append(set.only, models[i])
		}
	}
	return set, set.device.Check()
}

// lengths returns the training lengths: -length, and before it its half, its quarter and so on, as long as they are at least 16.
func (set settings) lengths() []int {
	lengths := []int{set.length}
	for !set.direct && lengths[0] >= 32 {
		lengths = append([]int{lengths[0] / 2}, lengths...)
	}
	return lengths
}

func names(of []model) (names []string) {
	for _, m := range of {
		names = append(names, string(m.kind))
	}
	return names
}
