// Inductionheads trains models on short sequences and tests them on long ones.
//
//	go run ./examples/inductionheads                            # about a quarter of an hour on two cores
//	go run ./examples/inductionheads -device cuda               # on a GPU
//	go run ./examples/inductionheads -only mamba -longest 1048576 -limit 120
//	go run ./examples/inductionheads -h                         # all flags
//
// The task: a special token comes once, somewhere among random tokens. At the end it comes again, and the model has to repeat the token
// that followed it the first time (task.NewInductionHeads; Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
// Spaces", section 4.1.2). A model that has learned the rule, and not the length, is right at every length.
//
// After Ctrl-C the program stops training or testing and prints the results so far; a second Ctrl-C ends it at once. The same flags give
// the same models.
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
		fmt.Fprintln(stderr, "inductionheads:", err)
		return 1
	}
	return 0
}

// result holds the answers of a model.
type result struct {
	model
	answers []answer
}

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
	fmt.Fprintf(out, "task      induction heads: one of %d tokens; a guess is right in %.1f%%\n", set.vocab-1, 100/float64(set.vocab-1))
	fmt.Fprintf(out, "training  length: %d, steps: %d, batch: %d, layers: %d, d_model: %d, seed: %d\n",
		set.length, set.steps, set.batch, set.layers, set.dmodel, set.seed)
	var results []result
	for _, m := range set.only {
		if ctx.Err() != nil {
			break
		}
		r, err := learn(ctx, set, m, where, out)
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

// learn trains a model and tests it at one length after another.
func learn(ctx context.Context, set settings, m model, where []nn.Option, out io.Writer) (result, error) {
	fmt.Fprintf(out, "model     %s, learn rate: %v\n", m.name, set.rate(m))
	r := result{model: m}
	lm, err := set.train(ctx, m, where, out)
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
			fmt.Fprintf(out, "stopped   after length %d: a test took longer than -limit, %v s\n", length, set.limit)
			break
		}
	}
	return r, nil
}

// train trains on sequences of growing length, up to -length. It goes to the next length when all answers are right, or after a quarter of
// -steps. With length 256 from the start, the answers stay at chance for a very long time.
func (set settings) train(ctx context.Context, m model, where []nn.Option, out io.Writer) (lm *nn.LM, err error) {
	for _, length := range set.lengths() {
		problem, err := task.NewInductionHeads(length, set.vocab)
		if err != nil {
			return nil, err
		}
		// At -length training continues when all answers are right: a model that forgets a little in 256 tokens forgets everything
		// in 65536, and only the last digits of the loss show it.
		var points []experiment.Point
		steps, enough := max(set.steps/4, 1), 3
		if length == set.length {
			steps, enough = set.steps, 0
		}
		lm, points, err = experiment.Train(ctx, experiment.Config{
			Model: nn.Config{DModel: set.dmodel, NLayer: set.layers, NHead: set.heads, Pattern: []nn.Kind{m.kind},
				DtMin: set.dtmin, DtMax: set.dtmax, DtInitFloor: min(set.dtmin, 1e-4)}, Options: where, From: lm, Decay: set.decay,
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

// table prints accuracy against length, with a column for each model.
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
