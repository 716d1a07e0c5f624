package main

import (
	"flag"
	"io"

	"github.com/gomamba/mamba/examples/internal/options"
)

// settings are the values of the flags.
type settings struct {
	steps, layers, dmodel, length, batch int
	lr                                   float64
	seed                                 int
	text, prompt, out                    string
	generate                             int
	temperature                          float64
	device                               options.Device
}

// parse reads the flags. Its errors name the flag, what it was and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		steps: 1600, layers: 2, dmodel: 64, length: 128, batch: 4,
		lr: 5e-3, seed: 1, generate: 400, temperature: 0.7,
	}
	flags := flag.NewFlagSet("bytelm", flag.ContinueOnError)
	options.Whole(flags, &set.steps, 1, "steps", "training steps")
	options.Whole(flags, &set.layers, 1, "layers", "Mamba blocks in the stack")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "channels between the blocks")
	options.Whole(flags, &set.length, 1, "length", "bytes in a training window")
	options.Whole(flags, &set.batch, 1, "batch", "windows in a training step")
	options.Number(flags, &set.lr, options.Positive, "lr", "peak learn rate of Adam")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights, the windows and the continuation")
	flags.StringVar(&set.text, "text", "", "`file or directory` to train on (default the source of Go's standard library)")
	flags.StringVar(&set.prompt, "prompt", "", "`text` to continue (default \"func \" for Go's source, else how the held-out text begins)")
	flags.StringVar(&set.out, "out", "bytelm.png", "PNG `file` for the loss curve, none if empty")
	options.Whole(flags, &set.generate, 0, "generate", "bytes to write after the prompt")
	options.Number(flags, &set.temperature, 0, "temperature", "of the continuation: 0 always takes the likeliest byte")

	set.device.Flags(flags)

	if err := options.Parse(flags, args, usage, "Bytelm trains a byte-level Mamba language model on text and lets it continue a prompt.",
		"name the text with -text"); err != nil {
		return set, err
	}
	return set, set.device.Check()
}
