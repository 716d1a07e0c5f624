// Bytelm trains a byte-level Mamba language model on real text and lets it continue a prompt.
//
//	go run ./examples/bytelm                       # the source of Go's standard library
//	go run ./examples/bytelm -text FILE_OR_DIR     # any other text
//	go run ./examples/bytelm -device cuda          # on a GPU
//	go run ./examples/bytelm -h                    # everything that can be set
//
// A tenth of the text is held out. The program prints its bits per byte beside those of the training text, and at the end beside
// those of a bigram model on the same held-out windows. After Ctrl-C it finishes the current step and writes everything; a second
// Ctrl-C ends it at once. The same flags give the same model.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/task"
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
		err = work(ctx, set, stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "bytelm:", err)
		return 1
	}
	return 0
}

// work does everything, in the order of the output.
func work(ctx context.Context, set settings, out io.Writer) error {
	if err := options.CheckPNG(set.out); err != nil {
		return err
	}
	where, device, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	if device != "" {
		fmt.Fprintf(out, "device    %s\n", device)
	}
	d, err := readData(set)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "text      %s: %s, files: %d\n", d.path, size(len(d.train)+len(d.heldOut)), d.files)
	fmt.Fprintf(out, "split     %s for training, %s held out, of which %s are scored\n",
		size(len(d.train)), size(len(d.heldOut)), size(d.scored))
	fmt.Fprintf(out, "bigram    %.3f bits per byte held out\n", d.bigram)

	lm, err := newModel(set, where)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "model     Mamba, parameters: %d, layers: %d, d_model: %d\n", lm.Params().Count(), set.layers, set.dmodel)
	fmt.Fprintf(out, "training  steps: %d, batch: %d, length: %d, learn rate: %v, seed: %d\n",
		set.steps, set.batch, set.length, set.lr, set.seed)
	curve, err := learn(ctx, set, lm, d, newProgress(out, set))
	if err != nil {
		return err
	}

	if done := len(curve.Training); done < set.steps {
		fmt.Fprintf(out, "stopped   after step %d of %d\n", done, set.steps)
	}
	mamba := bits(curve.HeldOut[len(curve.HeldOut)-1].Loss)
	verdict := "Mamba is better"
	if mamba >= d.bigram {
		verdict = "bigram is better"
	}
	fmt.Fprintf(out, "held out  bits per byte: Mamba %.3f, bigram %.3f: %s\n", mamba, d.bigram, verdict)
	if set.generate > 0 {
		text, err := write(lm, d.prompt, set.generate, set.temperature, rand.New(rand.NewPCG(uint64(set.seed), 1)))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "prompt    %q, continued by %d bytes at temperature %v:\n\n%s\n\n", d.prompt, set.generate,
			set.temperature, task.Printable(append(d.prompt, text...)))
	}
	if set.out == "" {
		return nil
	}
	loss := report.Loss{Label: "bits per byte", Scale: math.Log2E, Levels: []report.Level{{Name: "bigram, held out", Value: d.bigram}}}
	if err := report.WritePNG(set.out, loss.Panel(&curve)); err != nil {
		return options.OutError(set.out, err)
	}
	fmt.Fprintf(out, "curve     %s\n", set.out)
	return nil
}
