package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/gomamba/mamba/examples/internal/models"
	"github.com/gomamba/mamba/examples/internal/options"
)

// settings has the values of the flags.
type settings struct {
	model, weights, tokenizer, name, template string
	addr, keyFile, key, logFormat             string
	batch, queue, piece, cache, likely        int
	maxTokens, maxPrompt, steps               int
	maxBody                                   int64
	timeout, grace                            time.Duration
	device                                    options.Device
}

// parse reads the flags. Its errors name the flag, its value and what it should be.
func parse(args []string, usage io.Writer) (set settings, err error) {
	set = settings{batch: 64, queue: 256, cache: 256, likely: 1 << 20, maxTokens: 4096, maxPrompt: 1 << 17, steps: 300}
	body := 1024
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.StringVar(&set.model, "model", "", "`directory` of the checkpoint, a file .gguf, or OWNER/NAME of the Hugging Face hub (default a small model of bytes that is trained first)")
	flags.StringVar(&set.weights, "weights", "", "type of the matrices: float32, bf16, int8, int4, or file for that on file (default float32, or file for a .gguf); int4 on the host only")
	flags.StringVar(&set.tokenizer, "tokenizer", "", "`directory` of the tokenizer.json, or OWNER/NAME (default the model's)")
	flags.StringVar(&set.template, "chat-template", "", "`file` with the Jinja template of chats (default the model's)")
	flags.StringVar(&set.name, "name", "", "`text` by which clients name the model (default that of its directory)")
	flags.StringVar(&set.addr, "addr", "127.0.0.1:8080", "`HOST:PORT` to listen at; port 0 takes a free one")
	flags.StringVar(&set.keyFile, "key-file", "", "`file` with the API key that clients must send (default the environment variable API_KEY, or no key)")
	flags.StringVar(&set.logFormat, "log", "text", "form of the log, text or json")
	options.Whole(flags, &set.batch, 1, "batch", "answers that are generated together")
	options.Whole(flags, &set.queue, 1, "queue", "answers that wait; a request beyond them gets status 429")
	options.Whole(flags, &set.piece, 0, "piece", "tokens of a prompt that are read between two steps; 0 for 64, or 512 on a GPU")
	options.Whole(flags, &set.cache, 0, "cache", "MiB for the states of beginnings that several prompts share; 0 for none")
	options.Whole(flags, &set.likely, 0, "logprobs", "probabilities that all open requests together may ask for, and a request a quarter of them; each takes some 250 bytes")
	options.Whole(flags, &set.maxTokens, 1, "max-tokens", "the most tokens of an answer")
	options.Whole(flags, &set.maxPrompt, 1, "max-prompt", "the most tokens of a prompt")
	options.Whole(flags, &body, 1, "max-body", "the largest body of a request in KiB")
	options.Whole(flags, &set.steps, 1, "steps", "training steps of the model without -model")
	flags.DurationVar(&set.timeout, "timeout", 10*time.Minute, "time limit of a request, its wait in the queue included")
	flags.DurationVar(&set.grace, "grace", 30*time.Second, "time for accepted requests after SIGTERM")
	set.device.Flags(flags)
	err = options.Parse(flags, args, usage, "Serve answers requests in the form of OpenAI's API with a Mamba model.", "name the model with -model")
	if err != nil {
		return set, err
	}
	set.maxBody = int64(body) << 10
	switch {
	case set.logFormat != "text" && set.logFormat != "json":
		return set, fmt.Errorf("-log is %q, should be text or json", set.logFormat)
	case set.timeout <= 0:
		return set, fmt.Errorf("-timeout is %v, should be more than 0", set.timeout)
	case set.grace < 0:
		return set, fmt.Errorf("-grace is %v, should not be negative", set.grace)
	case set.model == "" && set.tokenizer+set.weights != "":
		return set, errors.New("-tokenizer or -weights is set without -model, should be left out")
	}
	if err := models.CheckWeights(set.weights); err != nil {
		return set, err
	}
	if set.key = os.Getenv("API_KEY"); set.keyFile != "" {
		text, err := os.ReadFile(set.keyFile)
		if err != nil {
			return set, fmt.Errorf("-key-file: %w", err)
		}
		if set.key = strings.TrimSpace(string(text)); set.key == "" {
			return set, fmt.Errorf("-key-file is %q, which is empty, should hold a key", set.keyFile)
		}
	}
	return set, set.device.Check()
}
