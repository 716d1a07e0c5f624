package report

import (
	"fmt"
	"image/color"
	"slices"

	"github.com/gomamba/mamba/train"
)

// Loss says how a loss curve is drawn. The zero value draws nats per token.
type Loss struct {
	Label  string  // of the vertical axis; "loss, nats per token" if empty
	Scale  float64 // from nats to the unit of Label; 1 if zero
	Levels []Level // for comparison, in the unit of Label
}

// meanOf is the number of steps from which the single steps are drawn pale, with running means over a fiftieth of the steps on
// top.
const meanOf = 200

// Panel returns a curve as a panel for WritePNG: the loss of each training step, their running mean if there are many, and the
// losses on held-out data. The vertical axis is logarithmic if the largest loss is more than twice the smallest, so that the end of
// the curve has room as well as its beginning. A curve that is nil or empty gives a panel without points, which WritePNG refuses.
func (l Loss) Panel(c *train.Curve) Panel {
	if l.Label == "" {
		l.Label = "loss, nats per token"
	}
	if l.Scale == 0 {
		l.Scale = 1
	}
	if c == nil {
		c = new(train.Curve)
	}
	p := Panel{X: "step", Y: l.Label, Levels: l.Levels}
	training := l.line("training", c.Training, Color(0))
	if n := len(c.Training); n >= meanOf {
		window := n / 50
		single, name := training, training.Name
		single.Name, single.Pale = "", true
		training = smooth(training, window)
		training.Name = name
		p.Lines = append(p.Lines, single)
		p.X = fmt.Sprintf("step (training: pale line, single steps; dark line, mean of %d steps)", window)
	}
	if len(c.Training) > 0 {
		p.Lines = append(p.Lines, training)
	}
	if len(c.HeldOut) > 0 {
		p.Lines = append(p.Lines, l.line("held out", c.HeldOut, Color(1)))
	}
	var values []float64
	for _, line := range p.Lines {
		values = append(values, line.Y...)
	}
	for _, level := range l.Levels {
		values = append(values, level.Value)
	}
	if len(values) > 0 {
		low := slices.Min(values)
		p.LogY = low > 0 && slices.Max(values) > 2*low
	}
	return p
}

func (l Loss) line(name string, points []train.Point, c color.Color) Line {
	line := Line{Name: name, Color: c}
	for _, p := range points {
		line.X, line.Y = append(line.X, float64(p.Step)), append(line.Y, l.Scale*p.Loss)
	}
	return line
}

// smooth returns the running means of a line, each over the same number of neighbouring points and at the place of the middle
// one.
func smooth(l Line, window int) Line {
	means, sum := Line{Name: l.Name, Color: l.Color}, 0.0
	for i, y := range l.Y {
		if sum += y; i >= window-1 {
			means.X, means.Y = append(means.X, l.X[i-window/2]), append(means.Y, sum/float64(window))
			sum -= l.Y[i-window+1]
		}
	}
	return means
}
