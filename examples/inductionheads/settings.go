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
	direct                         bool
}

// model is one of those that are compared.
type model struct {
	kind nn.Kind
	name string
}

var models = []model{{nn.Mamba, "Mamba"}, {nn.S4, "S4"}, {nn.Attention, "attention"}, {nn.LSTM, "LSTM"}}

// parse reads the flags. Its errors name the flag, what it was and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		length: 256, vocab: 16, longest: 1 << 16, steps: 5000, batch: 8, layers: 2, dmodel: 32, heads: 4,
		lr: 8e-3, dtmin: 1e-5, dtmax: 1e-3, limit: 20, seed: 1, sequences: 256, only: models,
	}
	flags := flag.NewFlagSet("inductionheads", flag.ContinueOnError)
	options.Whole(flags, &set.length, 3, "length", "tokens of the sequences to train on")
	options.Whole(flags, &set.vocab, 3, "vocab", "tokens there are, the last one is the special one")
	options.Whole(flags, &set.longest, 64, "longest", "most tokens of the sequences to test on, which double from 64 on; the paper has 1048576")
	options.Whole(flags, &set.steps, 1, "steps", "training steps at -length; at each shorter one a quarter of them, or fewer when nothing is wrong any more")
	options.Whole(flags, &set.batch, 1, "batch", "sequences in a training step")
	options.Whole(flags, &set.layers, 1, "layers", "layers of each model")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "channels between the layers")
	options.Whole(flags, &set.heads, 1, "heads", "heads of attention")
	options.Number(flags, &set.lr, options.Positive, "lr", "learn rate, after a rise over the first steps")
	options.Number(flags, &set.dtmin, options.Positive, "dtmin", "smallest step that Δ starts at: small ones remember long")
	options.Number(flags, &set.dtmax, options.Positive, "dtmax", "largest step that Δ starts at")
	options.Number(flags, &set.decay, 0, "decay", "weight decay")
	options.Number(flags, &set.limit, options.Positive, "limit", "seconds for a test of a model at a length: fewer sequences, and no longer ones, if it took longer")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights and of the sequences")
	options.Whole(flags, &set.sequences, 1, "sequences", "most sequences of a test")
	flags.StringVar(&set.out, "out", "inductionheads.png", "PNG `file` for accuracy against length, none if empty")
	flags.BoolVar(&set.direct, "direct", false, "train at -length from the first step on, not at shorter lengths before")
	only := flags.String("only", "", "`kinds` to train, with commas between them (default all: "+strings.Join(names(models), ",")+")")

	if err := options.Parse(flags, args, usage,
		"Inductionheads trains models on short sequences, and asks them about long ones.", "there are only flags"); err != nil {
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
	return set, nil
}

// lengths are those to train on: half, a quarter, … of the last one first, down to 16.
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
