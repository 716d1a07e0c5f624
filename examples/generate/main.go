// Generate continues a prompt with a pretrained Mamba model, and writes the text as the model chooses it.
//
//	go run ./examples/generate -model DIR -prompt TEXT
//	go run ./examples/generate -model OWNER/NAME -prompt TEXT     # downloaded from the Hugging Face hub
//	go run ./examples/generate -model FILE.gguf -prompt TEXT      # llama.cpp's format
//	go run ./examples/generate -model DIR -weights int8 …         # smaller and faster: bf16, int8, int4
//	go run ./examples/generate -model DIR -adapter DIR …          # with a LoRA adapter
//	go run ./examples/generate -device cuda …                     # on a GPU
//	go run ./examples/generate -h                                 # all flags
//
// DIR has a checkpoint in the layout of Hugging Face or of state-spaces/mamba, with its tokenizer.json. The folder of -adapter is as the
// peft library or examples/finetune -lora writes it.
//
// The text goes to the standard output. All else goes to the standard error: what the model is, and at the end the speed of reading and
// writing. Ctrl-C stops after the current token and still shows the speed. A second Ctrl-C ends the program at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"time"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/models"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/tokens"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	// After the first signal, the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	if err == nil {
		err = generate(ctx, set, stdout, stderr)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "generate:", err)
		return 1
	}
	return 0
}

// generate does the work, in the order in which the program shows it.
func generate(ctx context.Context, set settings, stdout, stderr io.Writer) error {
	where, device, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	if device != "" {
		fmt.Fprintf(stderr, "device   %s\n", device)
	}
	dir, adapter, err := folders(ctx, set, stderr)
	if err != nil {
		return err
	}
	start := time.Now()
	if set.weights != "" {
		where = append(where, checkpoint.Weights(set.weights))
	}
	lm, err := checkpoint.Load(dir, where...)
	if err != nil {
		return err
	}
	cfg := lm.Config()
	fmt.Fprintf(stderr, "model    Mamba, parameters: %d, layers: %d, d_model: %d, loaded in %.1f s\n",
		lm.Params().Count(), cfg.NLayer, cfg.DModel, time.Since(start).Seconds())
	if adapter != "" {
		if err := adapt(lm, set, adapter, stderr); err != nil {
			return err
		}
	}
	tokenizer, err := openTokenizer(ctx, set, dir, cfg.Vocab, stderr)
	if err != nil {
		return err
	}
	sequence, err := beginning(set, tokenizer)
	if err != nil {
		return err
	}
	set.generation.StopTokens = tokenizer.End()
	generator, err := nn.NewGenerator(lm, set.generation)
	if err != nil {
		return err
	}
	defer generator.Close()

	prompt, text := len(sequence.Pending()), tokenizer.NewStream()
	if _, err := io.WriteString(stdout, set.prompt); err != nil {
		return err
	}
	clock := newClock(prompt)
	_, err = generator.Continue(ctx, []*nn.Sequence{sequence}, func(_, token int) error {
		clock.token()
		part, err := text.Decode(token)
		if err == nil {
			_, err = io.WriteString(stdout, task.Printable([]byte(part)))
		}
		return err
	})
	stopped := errors.Is(err, context.Canceled)
	if err != nil && !stopped {
		return err
	}
	if _, err := fmt.Fprintln(stdout, text.Flush()); err != nil {
		return err
	}
	clock.report(stderr, stopped)
	if set.state != "" {
		return sequence.Save(set.state)
	}
	return nil
}

// openTokenizer returns the tokenizer of -tokenizer, or else that of the model.
func openTokenizer(ctx context.Context, set settings, dir string, vocab int, stderr io.Writer) (*tokens.Tokenizer, error) {
	if set.tokenizer != "" {
		var err error
		if dir, err = models.Directory(ctx, "-tokenizer", set.tokenizer, stderr); err != nil {
			return nil, err
		}
	}
	t, err := tokens.Open(dir, vocab)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: name another directory with -tokenizer", err)
	}
	if err == nil && t.IsBytes() {
		fmt.Fprintln(stderr, "tokens   bytes: the vocabulary has 256, and there is no tokenizer.json")
	}
	return t, err
}

// beginning returns the sequence to continue: that of -state, or a new one, followed by the prompt.
func beginning(set settings, tokenizer *tokens.Tokenizer) (*nn.Sequence, error) {
	sequence := nn.NewSequence(set.generation.Seed)
	if set.state != "" {
		loaded, err := nn.LoadSequence(set.state)
		if err == nil {
			sequence = loaded
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	prompt, err := tokenizer.Encode(set.prompt)
	if err != nil {
		return nil, fmt.Errorf("-prompt: %w", err)
	}
	sequence.Append(prompt...)
	if len(sequence.Pending()) == 0 {
		return nil, errors.New("-prompt is empty, should be a text to continue")
	}
	return sequence, nil
}

// clock measures the time for reading the prompt, which ends with the first token, and for writing.
type clock struct {
	start, first, last time.Time
	read, written      int
}

func newClock(prompt int) *clock { return &clock{start: time.Now(), read: prompt} }

func (c *clock) token() {
	c.last = time.Now()
	if c.written == 0 {
		c.first = c.last
	}
	c.written++
}

func (c *clock) report(out io.Writer, stopped bool) {
	note := ""
	if stopped {
		note = ", stopped"
	}
	if c.written == 0 {
		fmt.Fprintf(out, "written  nothing%s\n", note)
		return
	}
	fmt.Fprintf(out, "prompt   tokens: %d, %.1f tokens/s\n", c.read, float64(c.read)/c.first.Sub(c.start).Seconds())
	rate := ""
	if took := c.last.Sub(c.first).Seconds(); c.written > 1 && took > 0 {
		rate = fmt.Sprintf(", %.1f tokens/s", float64(c.written-1)/took) // the time of the first token belongs to the prompt
	}
	fmt.Fprintf(out, "written  tokens: %d%s%s\n", c.written, rate, note)
}
