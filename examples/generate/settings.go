package main

import (
	"errors"
	"flag"
	"io"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
)

// settings are the values of the flags.
type settings struct {
	model, tokenizer, prompt, state string
	generation                      nn.GenerateConfig
	device                          options.Device
}

// parse reads the flags. Its errors name the flag, what it was and what it should be.
func parse(args []string, usage io.Writer) (set settings, err error) {
	g := &set.generation
	g.MaxTokens, g.Temperature, g.TopP, g.RepetitionPenalty = 200, 0.8, 0.95, 1
	seed := 1
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.StringVar(&set.model, "model", "", "`directory` of the checkpoint, or OWNER/NAME of the Hugging Face hub")
	flags.StringVar(&set.tokenizer, "tokenizer", "", "`directory` of the tokenizer.json, or OWNER/NAME (default the model's)")
	flags.StringVar(&set.prompt, "prompt", "", "`text` to continue")
	flags.StringVar(&set.state, "state", "", "`file` for the state: goes on from what it holds, if it is there, and is written at the end")
	options.Whole(flags, &g.MaxTokens, 1, "max", "tokens to write at most")
	options.Whole(flags, &seed, 0, "seed", "seed of the choice of tokens")
	options.Number(flags, &g.Temperature, 0, "temperature", "divides the logits: 0 always takes the likeliest token")
	options.Whole(flags, &g.TopK, 0, "top-k", "choose among so many of the likeliest tokens, 0 for all")
	options.Number(flags, &g.TopP, 0, "top-p", "choose among the fewest tokens whose probabilities add up to this, 1 for all")
	options.Number(flags, &g.MinP, 0, "min-p", "choose among tokens at least so many times as probable as the likeliest, 0 for all")
	options.Number(flags, &g.RepetitionPenalty, options.Positive, "repetition-penalty", "divides the logits of tokens that were there before, 1 for none")
	set.device.Flags(flags)
	err = options.Parse(flags, args, usage, "Generate continues a prompt with a pretrained Mamba checkpoint.", "quote the prompt: -prompt \"some text\"")
	if err != nil {
		return set, err
	}
	g.Seed = uint64(seed)
	switch {
	case set.model == "":
		return set, errors.New("-model is missing, should be a directory, or OWNER/NAME of the Hugging Face hub")
	case g.TopP > 1:
		return set, errors.New("-top-p is more than 1, should be 0 to 1")
	case g.MinP > 1:
		return set, errors.New("-min-p is more than 1, should be 0 to 1")
	}
	return set, set.device.Check()
}
