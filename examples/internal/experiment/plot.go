package experiment

import (
	"bytes"
	"fmt"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/gomamba/mamba/examples/internal/options"
)

// Series is a line of a picture.
type Series struct {
	Name   string
	X, Y   []float64
	Dashed bool
}

// Picture is how series are drawn.
type Picture struct {
	X, Y       string // labels of the axes
	LogX, LogY bool
	Percent    bool // the vertical axis is 0 to 100
	TopLeft    bool // the legend is at the top left instead of the top right
}

// WritePNG draws series to a file, which it replaces once the picture is whole. What has no place on a logarithmic axis, a number
// that is not above 0, is left out, and so is a series without a point.
func (how Picture) WritePNG(path string, series []Series) error {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = how.X, how.Y
	p.Legend.Top, p.Legend.Left = true, how.TopLeft
	p.Legend.XOffs, p.Legend.YOffs = -vg.Points(8), -vg.Points(4)
	if how.TopLeft {
		p.Legend.XOffs = vg.Points(8)
	}
	p.Add(plotter.NewGrid())
	for i, s := range series {
		var xys plotter.XYs
		for j, x := range s.X {
			if y := s.Y[j]; (x > 0 || !how.LogX) && (y > 0 || !how.LogY) {
				xys = append(xys, plotter.XY{X: x, Y: y})
			}
		}
		if len(xys) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		var c color.Color = plotutil.Color(i)
		line.Color, dots.Color = c, c
		line.Width = vg.Points(1.5)
		dots.Shape = plotutil.Shape(i)
		if s.Dashed {
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		p.Add(line, dots)
		p.Legend.Add(s.Name, line, dots)
	}
	if how.LogX {
		logarithmic(&p.X, powers{2})
	}
	if how.LogY {
		logarithmic(&p.Y, plot.LogTicks{Prec: -1})
	}
	if how.Percent {
		// Room for the legend, above what a good model's curve reaches.
		p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, 105+7*float64(len(series)), hundred{}
	}
	picture, err := p.WriterTo(18*vg.Centimeter, 11*vg.Centimeter, "png")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if _, err := picture.WriteTo(&b); err != nil {
		return err
	}
	// Straight to the file, as options.CheckPNG tried: one beside it might be forbidden where this one is not.
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return options.OutError(path, err)
	}
	return nil
}

// logarithmic makes an axis that knows its numbers logarithmic. An axis of one number alone would be widened by 1 to both sides,
// so to 0 and below, where there is no logarithm; one without numbers stays as it is.
func logarithmic(a *plot.Axis, ticks plot.Ticker) {
	if a.Min > a.Max {
		return
	}
	if a.Min == a.Max {
		a.Min, a.Max = a.Min/2, a.Max*2
	}
	a.Scale, a.Tick.Marker = plot.LogScale{}, ticks
}

// powers are ticks at the powers of a base.
type powers struct{ base float64 }

func (t powers) Ticks(low, high float64) (ticks []plot.Tick) {
	for v := 1.0; v <= high*1.001; v *= t.base {
		if v >= low*0.999 {
			ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v)})
		}
	}
	for skip := (len(ticks) + 7) / 8; skip > 1; skip = 0 { // so many labels would overlap
		for i := range ticks {
			if i%skip != 0 {
				ticks[i].Label = ""
			}
		}
	}
	return ticks
}

// hundred are ticks from 0 to 100.
type hundred struct{}

func (hundred) Ticks(float64, float64) (ticks []plot.Tick) {
	for v := 0; v <= 100; v += 20 {
		ticks = append(ticks, plot.Tick{Value: float64(v), Label: fmt.Sprint(v)})
	}
	return ticks
}
