// Inductionheads trains models on short sequences, and asks them about long ones.
//
//	go run ./examples/inductionheads                            # some minutes on two cores
//	go run ./examples/inductionheads -only mamba -longest 1048576 -limit 120
//	go run ./examples/inductionheads -h                         # everything that can be set
//
// The task: among random tokens a special one comes once, somewhere. At the end it comes again, and what followed it the first
// time is to be said (task.NewInductionHeads; Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
// section 4.1.2). What has learned to do that, and not only to do it at one length, can do it at any.
//
// Ctrl-C stops the training or the tests that are at work and still shows what there is; a second Ctrl-C ends the program at
// once. The same flags give the same models.
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
	// From the first signal on, the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program, with its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	if err == nil {
		err = work(ctx, set, stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "inductionheads:", err)
		return 1
	}
	return 0
}

// result is what a model answers.
type result struct {
	model
	answers []answer
}

func work(ctx context.Context, set settings, out io.Writer) error {
	if err := options.CheckPNG(set.out); err != nil {
		return err
	}
	fmt.Fprintf(out, "task      induction heads: one of %d tokens, guessing is right %.1f%% of the time\n", set.vocab-1, 100/float64(set.vocab-1))
	fmt.Fprintf(out, "training  length: %d, steps: %d, batch: %d, layers: %d, d_model: %d, seed: %d\n",
		set.length, set.steps, set.batch, set.layers, set.dmodel, set.seed)
	var results []result
	for _, m := range set.only {
		if ctx.Err() != nil {
			break
		}
		r, err := learn(ctx, set, m, out)
		if err != nil {
			return fmt.Errorf("%s: %w", m.kind, err)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		fmt.Fprintln(out, "stopped   before the first model")
		return nil
	}
	table(out, results)
	if set.out == "" || len(results[0].answers) == 0 {
		return nil
	}
	if err := draw(set, results); err != nil {
		return options.OutError(set.out, err)
	}
	fmt.Fprintf(out, "curves    %s\n", set.out)
	return nil
}

// learn trains a model and tests it, at one length after another.
func learn(ctx context.Context, set settings, m model, out io.Writer) (result, error) {
	fmt.Fprintf(out, "model     %s, learn rate: %v\n", m.name, set.rate(m))
	r := result{model: m}
	lm, err := set.train(ctx, m, out)
	if err != nil {
		return r, err
	}
	for length := 64; length <= set.longest; length *= 2 {
		a, err := ask(ctx, set, m, lm, length)
		if errors.Is(err, context.Canceled) || a.Sequences == 0 && err == nil {
			fmt.Fprintf(out, "stopped   before length %d\n", length)
			break
		}
		if err != nil {
			return r, err
		}
		r.answers = append(r.answers, a)
		fmt.Fprintf(out, "test      %s at length %d: %.1f%% right of %d, %.1f s\n", m.kind, length, 100*a.OfTokens(), a.Sequences, a.took.Seconds())
		if a.took.Seconds() > set.limit && length < set.longest {
			fmt.Fprintf(out, "stopped   behind length %d: a test took longer than -limit, %v s\n", length, set.limit)
			break
		}
	}
	return r, nil
}

// train trains on sequences of one length after another, the last of which is -length. Each begins when nothing is wrong at the
// one before, or after a quarter of the steps: at a length of 256 at once, all answers are chance for a very long time.
func (set settings) train(ctx context.Context, m model, out io.Writer) (lm *nn.LM, err error) {
	for _, length := range set.lengths() {
		problem, err := task.NewInductionHeads(length, set.vocab)
		if err != nil {
			return nil, err
		}
		// At -length itself training goes on when nothing is wrong any more: a model that forgets a little in 256 steps forgets
		// all in 65536, and only the last digits of the loss tell it.
		var points []experiment.Point
		steps, enough := max(set.steps/4, 1), 3
		if length == set.length {
			steps, enough = set.steps, 0
		}
		lm, points, err = experiment.Train(ctx, experiment.Config{
			Model: nn.Config{DModel: set.dmodel, NLayer: set.layers, NHead: set.heads, Pattern: []nn.Kind{m.kind},
				DtMin: set.dtmin, DtMax: set.dtmax, DtInitFloor: min(set.dtmin, 1e-4)}, From: lm, Decay: set.decay,
			Task: problem, Batch: set.batch * set.length / length, Steps: steps, LearnRate: set.rate(m), Clip: 1, Constant: true, Seed: uint64(set.seed),
			EvalEvery: max(steps/20, 1), Held: set.sequences, Enough: enough,
			Progress: &report.Progress{Out: out},
		})
		if err != nil {
			return nil, err
		}
		last := points[len(points)-1]
		fmt.Fprintf(out, "trained   %d steps at length %d: %.1f%% right\n", last.Step, length, 100*last.OfTokens())
		if ctx.Err() != nil {
			break
		}
	}
	return lm, nil
}

// table prints accuracy against length, a column for each model.
func table(out io.Writer, results []result) {
	fmt.Fprintf(out, "\n%8s", "length")
	longest := 0
	for _, r := range results {
		fmt.Fprintf(out, " %10s", r.name)
		longest = max(longest, len(r.answers))
	}
	fmt.Fprintln(out, "   right, %")
	for i := range longest {
		fmt.Fprintf(out, "%8d", 64<<i)
		for _, r := range results {
			if i < len(r.answers) {
				fmt.Fprintf(out, " %10.1f", 100*r.answers[i].OfTokens())
			} else {
				fmt.Fprintf(out, " %10s", "")
			}
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out)
}

func draw(set settings, results []result) error {
	panel := report.Panel{X: fmt.Sprintf("length of the test sequences, tokens (training: at most %d)", set.length), Y: "right, %",
		LogX: true, Percent: true, Levels: []report.Level{{Name: "guessing", Value: 100 / float64(set.vocab-1)}}}
	for _, r := range results {
		l := report.Line{Name: r.name, Dashed: r.kind == nn.LSTM} // so that Mamba's line shows under it
		for _, a := range r.answers {
			l.X, l.Y = append(l.X, float64(a.length)), append(l.Y, 100*a.OfTokens())
		}
		panel.Lines = append(panel.Lines, l)
	}
	return report.WritePNG(set.out, panel)
}
