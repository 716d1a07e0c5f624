package train

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Progress shows how far a training run is: a bar on a terminal, and otherwise about twenty lines, which a log can hold.
type Progress struct {
	Out     io.Writer
	Steps   int                             // in all
	Tokens  int                             // of a step
	Summary func(c *Curve, last int) string // the curve in a few words, the loss that of the last so many steps
	Rate    func(tokens float64) string     // so many tokens a second, in words

	bar   *progressbar.ProgressBar
	first int // the steps that were done before
	start time.Time
}

// Start begins to measure the time, after so many steps that were done before.
func (p *Progress) Start(done int) {
	p.first, p.start = done, time.Now()
	if file, ok := p.Out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.bar = progressbar.NewOptions(p.Steps,
			progressbar.OptionSetWriter(p.Out),
			progressbar.OptionSetPredictTime(false), // it knows nothing of steps that were done before
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
		)
		_ = p.bar.Set(done)
	}
}

// Update shows a curve that has one point more.
func (p *Progress) Update(c *Curve) {
	step, now := c.Training[len(c.Training)-1].Step, time.Now()
	elapsed := now.Sub(p.start)
	rate := p.Rate(float64((step-p.first)*p.Tokens) / elapsed.Seconds())
	left := time.Duration(float64(elapsed) / float64(step-p.first) * float64(p.Steps-step)).Round(time.Second)
	if p.bar != nil {
		// The bar is decoration: where it cannot be drawn, training goes on.
		p.bar.Describe(fmt.Sprintf("%s  %s  %v left", p.Summary(c, 20), rate, left))
		_ = p.bar.Set(step)
		return
	}
	every, scored := max(p.Steps/20, 1), 0
	if n := len(c.HeldOut); n > 0 {
		scored = c.HeldOut[n-1].Step
	}
	if step%every != 0 && step != scored {
		return
	}
	fmt.Fprintf(p.Out, "step %*d of %d  %s  %s  %v left\n", len(fmt.Sprint(p.Steps)), step, p.Steps,
		p.Summary(c, every), rate, left)
}

// Finish ends the line of a bar.
func (p *Progress) Finish() {
	if p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.Out)
	}
}
