// Selectivecopy trains six models on selective copying and shows which of them learn it. The architectures are no gate, H3 and Mamba,
// each with a time-invariant state space (S4) and with a selective one (S6) inside.
//
//	go run ./examples/selectivecopy                 # about ten minutes on two cores
//	go run ./examples/selectivecopy -only s4,mamba  # some of the models
//	go run ./examples/selectivecopy -device cuda    # on a GPU
//	go run ./examples/selectivecopy -paper          # the setting of the paper: days
//	go run ./examples/selectivecopy -h              # all flags
//
// The task: tokens stand at random places among noise. After the noise the model has to repeat them in order (task.NewSelectiveCopying;
// Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 4.1.1 and table 1).
//
// After Ctrl-C the program stops training and prints the results so far; a second Ctrl-C ends it at once. The same flags give the same
// models.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/gomamba/mamba/examples/internal/experiment"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
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
		fmt.Fprintln(stderr, "selectivecopy:", err)
		return 1
	}
	return 0
}

// result is the training of a combination.
type result struct {
	combination
	points []experiment.Point
	done   int // number of steps
}

func (r result) last() task.Accuracy { return r.points[len(r.points)-1].Accuracy }

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
	problem, err := task.NewSelectiveCopying(set.length, set.memory, set.vocab)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "task      selective copying: %d of %d tokens at %d places\n          a guess is right in %.1f%%\n",
		set.memory, set.vocab-2, set.length, 100/float64(set.vocab-2))
	fmt.Fprintf(out, "training  steps: %d, batch: %d, learn rate: %v, seed: %d\nmodels    layers: %d, d_model: %d\n",
		set.steps, set.batch, set.lr, set.seed, set.layers, set.dmodel)
	var results []result
	for _, c := range set.only {
		fmt.Fprintf(out, "model     %s: %s with %s\n", c.kind, c.architecture, c.inner)
		points, err := learn(ctx, set, c, where, problem, out)
		if err != nil {
			return fmt.Errorf("%s: %w", c.kind, err)
		}
		r := result{c, points, points[len(points)-1].Step}
		if r.done < set.steps {
			fmt.Fprintf(out, "stopped   after step %d of %d\n", r.done, set.steps)
		}
		results = append(results, r)
		if ctx.Err() != nil { // after a result was added, so that there is one even if the context ended at once
			break
		}
	}
	table(out, results)
	if set.out == "" {
		return nil
	}
	if err := draw(set, results); err != nil {
		return options.OutError(set.out, err)
	}
	fmt.Fprintf(out, "curves    %s\n", set.out)
	return nil
}

// learn trains a combination and returns its evaluations.
func learn(ctx context.Context, set settings, c combination, where []nn.Option, problem task.Task, out io.Writer) ([]experiment.Point, error) {
	_, points, err := experiment.Train(ctx, experiment.Config{
		Model: nn.Config{DModel: set.dmodel, NLayer: set.layers, Pattern: []nn.Kind{c.kind}}, Options: where,
		Task: problem, Batch: set.batch, Steps: set.steps, LearnRate: set.lr, Clip: 1, Seed: uint64(set.seed),
		EvalEvery: max(set.steps/20, 1), Held: set.held,
		Progress: &report.Progress{Out: out},
	})
	return points, err
}

// table prints our accuracies beside those of the paper.
func table(out io.Writer, results []result) {
	fmt.Fprintf(out, "\n%-10s %-6s %12s %15s %12s\n", "", "inside", "tokens right", "sequences right", "paper")
	for _, r := range results {
		a := r.last()
		fmt.Fprintf(out, "%-10s %-6s %11.2f%% %14.2f%% %11.1f%%\n", r.architecture, r.inner, 100*a.OfTokens(), 100*a.OfSequences(), r.paperAccuracy)
	}
	fmt.Fprintf(out, "The paper's column is for length 4096 with 16 tokens (-paper).\n\n")
}

// draw draws accuracy against steps. An architecture has one color; its line is dashed with S4 inside and solid with S6.
func draw(set settings, results []result) error {
	panel := report.Panel{X: "step", Y: "tokens right, %", Percent: true,
		Levels: []report.Level{{Name: "guessing", Value: 100 / float64(set.vocab-2)}}}
	for _, r := range results {
		l := report.Line{Name: r.architecture + ", " + r.inner, Color: report.Color(r.color), Dashed: r.inner == "S4"}
		for _, p := range r.points {
			l.X, l.Y = append(l.X, float64(p.Step)), append(l.Y, 100*p.OfTokens())
		}
		panel.Lines = append(panel.Lines, l)
	}
	return report.WritePNG(set.out, panel)
}
