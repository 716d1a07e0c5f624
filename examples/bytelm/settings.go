package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// settings are the values of the flags.
type settings struct {
	steps, layers, dmodel, length, batch int
	lr                                   float64
	seed                                 int
	text, prompt, out                    string
	generate                             int
	temperature                          float64
}

// parse reads the flags. Its errors name the flag, what it was and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		steps: 1600, layers: 2, dmodel: 64, length: 128, batch: 4,
		lr: 5e-3, seed: 1, generate: 400, temperature: 0.7,
	}
	flags := flag.NewFlagSet("bytelm", flag.ContinueOnError)
	flags.Var(whole{&set.steps, 1}, "steps", "training steps")
	flags.Var(whole{&set.layers, 1}, "layers", "Mamba blocks in the stack")
	flags.Var(whole{&set.dmodel, 1}, "dmodel", "channels between the blocks")
	flags.Var(whole{&set.length, 1}, "length", "bytes in a training window")
	flags.Var(whole{&set.batch, 1}, "batch", "windows in a training step")
	flags.Var(number{&set.lr, math.SmallestNonzeroFloat64}, "lr", "peak learn rate of Adam")
	flags.Var(whole{&set.seed, 0}, "seed", "seed of the weights, the windows and the continuation")
	flags.StringVar(&set.text, "text", "", "`file or directory` to train on (default the source of Go's standard library)")
	flags.StringVar(&set.prompt, "prompt", "", "`text` to continue (default \"func \" for Go's source, else how the held-out text begins)")
	flags.StringVar(&set.out, "out", "bytelm.png", "PNG `file` for the loss curve, none if empty")
	flags.Var(whole{&set.generate, 0}, "generate", "bytes to write after the prompt")
	flags.Var(number{&set.temperature, 0}, "temperature", "of the continuation: 0 always takes the likeliest byte")

	// The flag package would print all of this after every error, where one clear line is enough.
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(usage, "Bytelm trains a byte-level Mamba language model on text and lets it continue a prompt.")
			flags.SetOutput(usage)
			flags.PrintDefaults()
		}
		return set, err
	}
	if flags.NArg() > 0 {
		return set, fmt.Errorf("unexpected argument %q: name the text with -text", flags.Arg(0))
	}
	if set.out != "" && !strings.EqualFold(filepath.Ext(set.out), ".png") {
		return set, fmt.Errorf("invalid value %q for flag -out: should end in .png", set.out)
	}
	return set, nil
}

// whole is a flag for a whole number with a least value.
type whole struct {
	value *int
	least int
}

func (w whole) String() string {
	if w.value == nil {
		return ""
	}
	return strconv.Itoa(*w.value)
}

func (w whole) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < w.least {
		return fmt.Errorf("should be a whole number, at least %d", w.least)
	}
	*w.value = v
	return nil
}

// number is a flag for a finite number with a least value.
type number struct {
	value *float64
	least float64
}

func (n number) String() string {
	if n.value == nil {
		return ""
	}
	return strconv.FormatFloat(*n.value, 'g', -1, 64)
}

func (n number) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= n.least) || math.IsInf(v, 0) {
		if n.least > 0 {
			return fmt.Errorf("should be a number above 0")
		}
		return fmt.Errorf("should be a number, at least %v", n.least)
	}
	*n.value = v
	return nil
}
