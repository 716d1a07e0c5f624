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

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		steps: 1600, layers: 2, dmodel: 64, length: 128, batch: 4,
		lr: 5e-3, seed: 1, generate: 400, temperature: 0.7,
	}
	flags := flag.NewFlagSet("bytelm", flag.ContinueOnError)
	options.Whole(flags, &set.steps, 1, "steps", "training steps")
	options.Whole(flags, &set.layers, 1, "layers", "number of Mamba blocks")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "width of the model: channels between the blocks")
	options.Whole(flags, &set.length, 1, "length", "bytes of a training window")
	options.Whole(flags, &set.batch, 1, "batch", "windows of a training step")
	options.Number(flags, &set.lr, options.Positive, "lr", "peak learn rate of AdamW")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights, the windows and the continuation")
	flags.StringVar(&set.text, "text", "", "`path` of a file or directory to train on (default the source of Go's standard library)")
	flags.StringVar(&set.prompt, "prompt", "", "`text` to continue (default \"func \" for Go's source, otherwise the beginning of the held-out text)")
	flags.StringVar(&set.out, "out", "bytelm.png", "PNG `file` for the loss curve; empty for none")
	options.Whole(flags, &set.generate, 0, "generate", "bytes to generate after the prompt")
	options.Number(flags, &set.temperature, 0, "temperature", "temperature of the generated text; 0 always takes the most likely byte")

	set.device.Flags(flags)

	if err := options.Parse(flags, args, usage, "Bytelm trains a byte-level Mamba language model on text and lets it continue a prompt.",
		"name the text with -text"); err != nil {
		return set, err
	}
	return set, set.device.Check()
}
