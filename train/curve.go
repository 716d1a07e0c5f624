package train

import (
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Point is a loss, in nats per token, after a step.
type Point struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

// Curve is what a training run leaves behind beside its weights.
type Curve struct {
	Training []Point `json:"training"`
	HeldOut  []Point `json:"held_out"`
}

// Mean returns the mean training loss of the last steps.
func (c *Curve) Mean(steps int) float64 {
	last := c.Training[max(len(c.Training)-steps, 0):]
	sum := 0.0
	for _, p := range last {
		sum += p.Loss
	}
	return sum / float64(len(last))
}

// Plot is how a curve is drawn.
type Plot struct {
	Label string  // of the vertical axis
	Scale float64 // from nats to what the label says; 1 if zero
	Lines []Line  // for comparison
}

// Line is a horizontal line at a value, on the scale of the axis.
type Line struct {
	Name  string
	Value float64
}

// WritePNG draws the curve to a file, which it replaces once the picture is whole. There has to be a point.
func (c *Curve) WritePNG(path string, how Plot) error {
	p := plot.New()
	p.X.Label.Text = "step"
	p.Y.Label.Text = how.Label
	p.Legend.Top = true
	p.Legend.XOffs = -vg.Points(8)
	p.Legend.YOffs = -vg.Points(4)
	p.Add(plotter.NewGrid())
	p.Y.Min = 0

	training, err := plotter.NewLine(how.points(c.Training))
	if err == nil {
		training.Color = color.Gray{Y: 170}
		p.Add(training)
		p.Legend.Add("training", training)
	}
	first, last := c.ends()
	for _, line := range how.Lines {
		l, err := plotter.NewLine(plotter.XYs{{X: first, Y: line.Value}, {X: last, Y: line.Value}})
		if err != nil {
			return err
		}
		l.Dashes = []vg.Length{vg.Points(4), vg.Points(4)}
		p.Add(l)
		p.Legend.Add(line.Name, l)
	}
	if len(c.HeldOut) > 0 {
		heldOut, dots, err := plotter.NewLinePoints(how.points(c.HeldOut))
		if err != nil {
			return err
		}
		heldOut.Color = color.RGBA{R: 200, G: 60, B: 20, A: 255}
		heldOut.Width = vg.Points(2)
		dots.Color = heldOut.Color
		p.Add(heldOut, dots)
		p.Legend.Add("held out", heldOut, dots)
	}
	p.Y.Min = 0
	picture, err := p.WriterTo(18*vg.Centimeter, 11*vg.Centimeter, "png")
	if err != nil {
		return err
	}
	return replace(path, func(w io.Writer) error {
		_, err := picture.WriteTo(w)
		return err
	})
}

// ends returns the first and the last step that there is a point of.
func (c *Curve) ends() (first, last float64) {
	first, last = math.Inf(1), math.Inf(-1)
	for _, points := range [][]Point{c.Training, c.HeldOut} {
		for _, p := range points {
			first, last = min(first, float64(p.Step)), max(last, float64(p.Step))
		}
	}
	return first, last
}

func (how Plot) points(of []Point) (xys plotter.XYs) {
	scale := how.Scale
	if scale == 0 {
		scale = 1
	}
	for _, p := range of {
		xys = append(xys, plotter.XY{X: float64(p.Step), Y: scale * p.Loss})
	}
	return xys
}
