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
	length, memory, vocab int
	steps, batch          int
	layers, dmodel        int
	lr                    float64
	seed, held            int
	out                   string
	only                  []combination
	device                options.Device
}

// combination is an architecture with a state space inside, and its accuracy in the paper.
type combination struct {
	kind          nn.Kind
	architecture  string
	inner         string
	paperAccuracy float64 // in percent
	color         int     // of its line, for report.Color
}

// combinations are the rows of table 1 of the paper.
var combinations = []combination{
	{nn.S4, "no gate", "S4", 18.3, 2},
	{nn.S6, "no gate", "S6", 97.0, 2},
	{nn.H3, "H3", "S4", 57.0, 1},
	{nn.H3S6, "H3", "S6", 99.7, 1},
	{nn.MambaS4, "Mamba", "S4", 56.4, 0},
	{nn.Mamba, "Mamba", "S6", 99.8, 0},
}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{length: 64, memory: 8, vocab: 16, steps: 4000, batch: 16, layers: 2, dmodel: 64, lr: 2e-3, seed: 1, held: 512, only: combinations}
	flags := flag.NewFlagSet("selectivecopy", flag.ContinueOnError)
	options.Whole(flags, &set.length, 1, "length", "places for tokens and noise")
	options.Whole(flags, &set.memory, 1, "memory", "tokens among the noise that the model has to repeat")
	options.Whole(flags, &set.vocab, 4, "vocab", "size of the vocabulary: the noise token, the mark, and the tokens to repeat")
	options.Whole(flags, &set.steps, 1, "steps", "training steps of each model")
	options.Whole(flags, &set.batch, 1, "batch", "sequences of a training step")
	options.Whole(flags, &set.layers, 1, "layers", "number of layers of each model")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "width of each model: channels between the layers")
	options.Number(flags, &set.lr, options.Positive, "lr", "peak learn rate")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights and of the sequences")
	options.Whole(flags, &set.held, 1, "held", "held-out sequences to test on")
	flags.StringVar(&set.out, "out", "selectivecopy.png", "PNG `file` for the accuracy curves; empty for none")
	set.device.Flags(flags)
	only := flags.String("only", "", "models to train, with commas between them (default all: "+strings.Join(names(combinations), ",")+")")
	paper := flags.Bool("paper", false, "use the paper's setting: -length 4096 -memory 16 -batch 64 -lr 1e-4 -steps 400000; other flags can override it")

	if err := options.Parse(flags, args, usage,
		"Selectivecopy trains six models on selective copying and shows which of them learn it.", "there are only flags"); err != nil {
		return set, err
	}
	if *paper {
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{"length": "4096", "memory": "16", "batch": "64", "lr": "1e-4", "steps": "400000"} {
			if !given[name] {
				if err := flags.Set(name, value); err != nil {
					return set, err
				}
			}
		}
	}
	if set.memory > set.length {
		return set, fmt.Errorf("invalid value %q for flag -memory: should be at most -length, %d", fmt.Sprint(set.memory), set.length)
	}
	if *only != "" {
		set.only = nil
		for name := range strings.SplitSeq(*only, ",") {
			i := slices.Index(names(combinations), strings.TrimSpace(name))
			if i < 0 {
				return set, fmt.Errorf("invalid value %q for flag -only: should be some of %s", *only, strings.Join(names(combinations), ","))
			}
			set.only = append(set.only, combinations[i])
		}
	}
	return set, set.device.Check()
}

func names(of []combination) (names []string) {
	for _, c := range of {
		names = append(names, string(c.kind))
	}
	return names
}
