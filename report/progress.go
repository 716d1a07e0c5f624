package report

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/gomamba/mamba/train"
)

// Progress shows how far a training run is. On a terminal it draws a bar. Elsewhere, and on a terminal
// that has fewer than 40 columns or does not tell its width, it prints about twenty lines, and a line for each evaluation.
//
// Every field may be left zero. The methods of a nil Progress do nothing.
type Progress struct {
	Out    io.Writer // os.Stderr if nil
	Steps  int       // steps of the whole run; if zero, no bar, no time left, and a line for every step
	Tokens int       // tokens in a step, for the rate; if zero, the rate counts steps

	// Summary returns the state of the run in a few words, with two spaces between its parts: if the line is too long, a bar
	// leaves out the last parts. last is the number of steps over which to take the mean of the training loss. If Summary is
	// nil, the losses are shown in nats, and the metrics.
	Summary func(c *train.Curve, last int) string

	// Rate returns the speed in words. Its argument is in tokens per second, or in steps per second if Tokens is zero. If Rate
	// is nil, the speed is shown as "850 tokens/s".
	Rate func(perSecond float64) string

	bar     *progressbar.ProgressBar
	columns func() int // of the terminal, 0 if there is none
	first   int        // steps done before Start
	start   time.Time
}

const (
	leastColumns = 40 // of a terminal, for a bar
	leastBar     = 10 // columns of the bar itself
	mostBar      = 40
	aroundBar    = 12 // columns of " 100% ||   " and of the last one, which stays empty
)

// Start begins to measure time. done is the number of steps that an earlier run made, 0 for a new run. If Start is not called,
// the first Update calls it.
func (p *Progress) Start(done int) {
	if p == nil {
		return
	}
	if p.Out == nil {
		p.Out = os.Stderr
	}
	if p.columns == nil {
		p.columns = func() int { return columns(p.Out) }
	}
	p.first, p.start = done, time.Now()
	if p.Steps > 0 && p.columns() >= leastColumns {
		p.bar = progressbar.NewOptions(p.Steps,
			progressbar.OptionSetWriter(p.Out),
			progressbar.OptionSetPredictTime(false), // it does not know of the steps before Start
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionThrottle(100*time.Millisecond),
		)
		_ = p.bar.Set(min(done, p.Steps))
	}
}

// columns returns the width of a terminal, or 0 if out is none or its width is unknown.
func columns(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// Update shows a curve after each step. A curve without training points shows nothing.
func (p *Progress) Update(c *train.Curve) {
	if p == nil || c == nil || len(c.Training) == 0 {
		return
	}
	step := c.Training[len(c.Training)-1].Step
	if p.start.IsZero() {
		p.Start(step - 1)
	}
	rate, left := p.speed(step, time.Since(p.start))
	if p.bar != nil {
		bar, text := fit(p.columns(), strings.Split(p.summary(c, 20), "  "), rate, left)
		progressbar.OptionSetWidth(bar)(p.bar)
		// Errors are ignored: training goes on where a bar cannot be drawn.
		p.bar.Describe(text)
		_ = p.bar.Set(min(step, p.Steps))
		return
	}
	every, scored := max(p.Steps/20, 1), 0
	if n := len(c.HeldOut); n > 0 {
		scored = c.HeldOut[n-1].Step
	}
	if step%every != 0 && step != scored {
		return
	}
	line := fmt.Sprintf("step %d", step)
	if p.Steps > 0 {
		line = fmt.Sprintf("step %*d of %d", len(fmt.Sprint(p.Steps)), step, p.Steps)
	}
	fmt.Fprintln(p.Out, join(line, p.summary(c, every), rate, left))
}

// speed returns the rate and the time left in words. Both are empty before the first step has taken any time.
func (p *Progress) speed(step int, elapsed time.Duration) (rate, left string) {
	done := step - p.first
	if done <= 0 || elapsed <= 0 {
		return "", ""
	}
	perSecond, unit := float64(done)/elapsed.Seconds(), "steps/s"
	if p.Tokens > 0 {
		perSecond, unit = perSecond*float64(p.Tokens), "tokens/s"
	}
	if p.Rate != nil {
		rate = p.Rate(perSecond)
	} else {
		rate = fmt.Sprintf("%.3g %s", perSecond, unit)
		if perSecond >= 100 {
			rate = fmt.Sprintf("%.0f %s", perSecond, unit)
		}
	}
	if p.Steps > 0 {
		remaining := time.Duration(float64(elapsed) / float64(done) * float64(max(p.Steps-step, 0)))
		left = fmt.Sprintf("%v left", remaining.Round(time.Second))
	}
	return rate, left
}

func (p *Progress) summary(c *train.Curve, last int) string {
	if p.Summary != nil {
		return p.Summary(c, last)
	}
	text := fmt.Sprintf("loss %.3f", c.Mean(last))
	if n := len(c.HeldOut); n > 0 {
		text += fmt.Sprintf("  held out %.3f", c.HeldOut[n-1].Loss)
		for _, name := range slices.Sorted(maps.Keys(c.Metrics)) {
			if values := c.Metrics[name]; len(values) == n {
				text += fmt.Sprintf("  %s %.3g", name, values[n-1])
			}
		}
	}
	return text
}

// fit returns the width of the bar and the text after it, for a line of the given number of columns. If the bar has no room, the
// text leaves out the rate first, and then the last parts of the summary.
func fit(columns int, summary []string, rate, left string) (bar int, text string) {
	room := columns - aroundBar - leastBar
	text = join(append(slices.Clone(summary), rate, left)...)
	for n := len(summary); utf8.RuneCountInString(text) > room && n >= 0; n-- {
		text = join(append(slices.Clone(summary[:n]), left)...)
	}
	if utf8.RuneCountInString(text) > room {
		text = ""
	}
	return max(min(columns-aroundBar-utf8.RuneCountInString(text), mostBar), 1), text
}

// join joins the parts that are not empty.
func join(parts ...string) string {
	var there []string
	for _, part := range parts {
		if part != "" {
			there = append(there, part)
		}
	}
	return strings.Join(there, "  ")
}

// Finish ends the line of the bar, so that the program's next output begins a new line.
func (p *Progress) Finish() {
	if p != nil && p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.Out)
		p.bar = nil
	}
}
