package main

import (
	"errors"
	"flag"
	"io"

	"github.com/gomamba/mamba/examples/internal/models"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
)

// settings has the values of the flags.
type settings struct {
	model, weights, adapter, tokenizer, prompt, state string
	merge                                             bool
	generation                                        nn.GenerateConfig
	device                                            options.Device
}

// parse reads the flags. Its errors name the flag, its value and what it should be.
func parse(args []string, usage io.Writer) (set settings, err error) {
	g := &set.generation
	g.MaxTokens, g.Temperature, g.TopP, g.RepetitionPenalty = 200, 0.8, 0.95, 1
	seed := 1
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.StringVar(&set.model, "model", "", "`directory` of the checkpoint, a file .gguf, or OWNER/NAME of the Hugging Face hub")
	flags.StringVar(&set.weights, "weights", "", "type of the matrices: float32, bf16, int8, int4, or file for that on file (default float32, or file for a .gguf); int4 on the host only")
	flags.StringVar(&set.adapter, "adapter", "", "`directory` of a LoRA adapter for the model, or OWNER/NAME")
	flags.BoolVar(&set.merge, "merge", true, "merge the adapter into the weights; -merge=false keeps it apart")
	flags.StringVar(&set.tokenizer, "tokenizer", "", "`directory` of the tokenizer.json, or OWNER/NAME (default the model's)")
	flags.StringVar(&set.prompt, "prompt", "", "`text` to continue")
	flags.StringVar(&set.state, "state", "", "`file` to keep the state in: continues from it if it exists, and writes it at the end")
	options.Whole(flags, &g.MaxTokens, 1, "max", "the most tokens to write")
	options.Whole(flags, &seed, 0, "seed", "seed of the random choice of tokens")
	options.Number(flags, &g.Temperature, 0, "temperature", "divides the logits; 0 takes the most probable token")
	options.Whole(flags, &g.TopK, 0, "top-k", "choose among this number of the most probable tokens; 0 for all")
	options.Number(flags, &g.TopP, 0, "top-p", "choose among the fewest tokens whose probabilities add up to this; 1 for all")
	options.Number(flags, &g.MinP, 0, "min-p", "choose among tokens with at least this share of the highest probability; 0 for all")
	options.Number(flags, &g.RepetitionPenalty, options.Positive, "repetition-penalty", "divides the logits of tokens that occurred before; 1 for no penalty")
	set.device.Flags(flags)
	err = options.Parse(flags, args, usage, "Generate continues a prompt with a pretrained Mamba model.", "quote the prompt: -prompt \"some text\"")
	if err != nil {
		return set, err
	}
	g.Seed = uint64(seed)
	switch {
	case set.model == "" && set.adapter == "":
		return set, errors.New("-model is missing, should be a directory, or OWNER/NAME of the Hugging Face hub")
	case g.TopP > 1:
		return set, errors.New("-top-p is more than 1, should be 0 to 1")
	case g.MinP > 1:
		return set, errors.New("-min-p is more than 1, should be 0 to 1")
	}
	if err := models.CheckWeights(set.weights); err != nil {
		return set, err
	}
	return set, set.device.Check()
}
