// Scaling measures the time and memory of Mamba, and of attention of the same width, against the length of a sequence.
//
//	go run ./examples/scaling                              # a few minutes on two cores
//	go run ./examples/scaling -device cuda -longest 1048576  # on a GPU
//	go run ./examples/scaling -kinds mamba,s4,lstm -longest 16384
//	go run ./examples/scaling -images -shortest 256 -longest 1024 -dmodel 16  # a MambaUNet on images
//	go run ./examples/scaling -h                           # all flags
//
// Each point is one sequence: a forward pass, or a forward and a backward pass (training). Time is the median of -runs runs. Memory is
// what a run needs at its peak: the graph, its values, and the workspaces of the kernels. On a GPU it is the GPU's memory, and the sequence
// and the results are there. An exponent of 1 means that twice the length
// costs twice as much; an exponent of 2, four times as much. With -images, a step has the same number of pixels whatever the side of its images. A kind whose run takes longer than -limit is not run at longer lengths.
//
// After Ctrl-C the program finishes the current point and prints the results so far; a second Ctrl-C ends it at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
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
		err = measureAll(ctx, set, stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "scaling:", err)
		return 1
	}
	return 0
}

// result holds the points of a kind and a pass.
type result struct {
	kind nn.Kind
	pass
	points []point
}

func measureAll(ctx context.Context, set settings, out io.Writer) error {
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
	if set.images {
		fmt.Fprintf(out, "MambaUNet of 4 stages, blocks: %d, channels: %d, pixels of a step: %d; median of %d runs\n\n", set.layers, set.dmodel, set.longest*set.longest, set.runs)
		fmt.Fprintf(out, "%-10s %-9s %8s %12s %14s %12s %11s\n", "kind", "pass", "side", "time", "per pixel", "memory", "per pixel")
	} else {
		fmt.Fprintf(out, "layers: %d, d_model: %d, batch: 1, float32; median of %d runs\n\n", set.layers, set.dmodel, set.runs)
		fmt.Fprintf(out, "%-10s %-9s %8s %12s %14s %12s\n", "kind", "pass", "length", "time", "per step", "memory")
	}
	var results []result
	for _, kind := range set.kinds {
		newModel := sequences
		if set.images {
			newModel = images
		}
		m, err := newModel(set, kind, where...)
		if err != nil {
			return err
		}
		if set.device.GPU() { // the first run of all prepares the kernels and the workspace of cuBLAS
			if _, err := measure(set, m, passes[1], set.shortest); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
		for _, p := range passes {
			r := result{kind: kind, pass: p}
			for length := set.shortest; length <= set.longest && ctx.Err() == nil; length *= 2 {
				at, err := measure(set, m, p, length)
				if err != nil {
					return fmt.Errorf("%s, length %d: %w", kind, length, err)
				}
				r.points = append(r.points, at)
				steps := set.steps(length)
				fmt.Fprintf(out, "%-10s %-9s %8d %9.2f ms %11.3f µs %9.1f MB", kind, p.name, length, 1e3*at.seconds, 1e6*at.seconds/float64(steps), at.bytes/1e6)
				if set.images {
					fmt.Fprintf(out, " %9.0f B", at.bytes/float64(steps))
				}
				fmt.Fprintln(out)
				if at.seconds > set.limit && length < set.longest {
					fmt.Fprintf(out, "%s, %s: stopped after length %d, which took longer than -limit, %v s\n", kind, p.name, length, set.limit)
					break
				}
			}
			results = append(results, r)
		}
	}
	if ctx.Err() != nil {
		fmt.Fprintln(out, "stopped")
	}
	fmt.Fprintln(out)
	for _, r := range results {
		if set.images {
			break // the number of pixels is the same, so the time of a pixel says it
		}
		time := exponent(r.points, set.fit, func(p point) float64 { return p.seconds })
		memory := exponent(r.points, set.fit, func(p point) float64 { return p.bytes })
		if math.IsNaN(time) {
			continue
		}
		fmt.Fprintf(out, "exponent  %s, %s: time %.2f, memory %.2f, from length %d to %d\n",
			r.kind, r.name, time, memory, max(set.fit, set.shortest), r.points[len(r.points)-1].length)
	}
	if set.out == "" || len(results) == 0 || len(results[0].points) == 0 {
		return nil
	}
	if err := draw(set, results); err != nil {
		return options.OutError(set.out, err)
	}
	fmt.Fprintf(out, "curves    %s\n", set.out)
	return nil
}

// draw draws time and memory against length, each on axes of its own. A kind of layer has one color.
func draw(set settings, results []result) error {
	time := report.Panel{X: "length, tokens", Y: "time of a run, ms", LogX: true, LogY: true}
	memory := report.Panel{X: "length, tokens", Y: "memory of a run at its peak, MB", LogX: true, LogY: true}
	if set.images {
		time.X, memory.X = "side of the images, pixels", "side of the images, pixels"
	}
	for _, r := range results {
		var length, ms, mb []float64
		for _, p := range r.points {
			length, ms, mb = append(length, float64(p.length)), append(ms, 1e3*p.seconds), append(mb, p.bytes/1e6)
		}
		l := report.Line{Name: fmt.Sprintf("%s, %s", r.kind, r.name), Color: report.Color(slices.Index(set.kinds, r.kind)), Dashed: !r.backward, X: length}
		l.Y = ms
		time.Lines = append(time.Lines, l)
		l.Y = mb
		memory.Lines = append(memory.Lines, l)
	}
	return report.WritePNG(set.out, time, memory)
}
