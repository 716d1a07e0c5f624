package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far the training is.
type progress interface {
	update(*curve)
	finish()
}

// newProgress is a bar on a terminal, and otherwise lines, which a log can hold.
func newProgress(out io.Writer, set settings) progress {
	bytes := set.batch * set.length
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		return &bar{out: out, bytes: bytes, bar: progressbar.NewOptions64(int64(set.steps)*int64(bytes),
			progressbar.OptionSetWriter(out),
			progressbar.OptionShowBytes(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
		)}
	}
	return &lines{out: out, steps: set.steps, bytes: bytes, start: time.Now()}
}

// latest describes the loss of the last steps and the last held-out score, in bits per byte.
func latest(c *curve, steps int) string {
	text := fmt.Sprintf("training %.3f", c.mean(steps))
	if n := len(c.heldOut); n > 0 {
		text += fmt.Sprintf("  held out %.3f", c.heldOut[n-1].bits)
	}
	return text
}

type bar struct {
	out   io.Writer
	bytes int
	bar   *progressbar.ProgressBar
}

// The bar is decoration: where it cannot be drawn, training goes on.
func (b *bar) update(c *curve) {
	b.bar.Describe(latest(c, 20))
	_ = b.bar.Add(b.bytes)
}

func (b *bar) finish() {
	_ = b.bar.Exit()
	fmt.Fprintln(b.out)
}

type lines struct {
	out          io.Writer
	steps, bytes int
	start        time.Time
}

// update prints about twenty lines in all: after each twentieth of the steps, and after the last one.
func (l *lines) update(c *curve) {
	every := max(l.steps/20, 1)
	step, scored := len(c.training), 0
	if n := len(c.heldOut); n > 0 {
		scored = c.heldOut[n-1].step
	}
	if step%every != 0 && step != scored {
		return
	}
	elapsed := time.Since(l.start)
	left := time.Duration(float64(elapsed) / float64(step) * float64(l.steps-step))
	fmt.Fprintf(l.out, "step %*d of %d  %s bits per byte  %s/s  %v left\n", len(fmt.Sprint(l.steps)), step, l.steps,
		latest(c, every), size(int(float64(step*l.bytes)/elapsed.Seconds())), left.Round(time.Second))
}

func (l *lines) finish() {}
