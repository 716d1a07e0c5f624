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

// WritePNG draws series to a file, which it replaces once the picture is whole. Series without a point are left out.
func (how Picture) WritePNG(path string, series []Series) error {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = how.X, how.Y
	p.Legend.Top, p.Legend.Left = true, how.TopLeft
	p.Legend.XOffs, p.Legend.YOffs = -vg.Points(8), -vg.Points(4)
	if how.TopLeft {
		p.Legend.XOffs = vg.Points(8)
	}
	if how.LogX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, powers{2}
	}
	if how.LogY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	p.Add(plotter.NewGrid())
	for i, s := range series {
		if len(s.X) == 0 {
			continue
		}
		xys := make(plotter.XYs, len(s.X))
		for j := range xys {
			xys[j] = plotter.XY{X: s.X[j], Y: s.Y[j]}
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
	if how.Percent {
		p.Y.Min, p.Y.Max = 0, 102
	}
	picture, err := p.WriterTo(18*vg.Centimeter, 11*vg.Centimeter, "png")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if _, err := picture.WriteTo(&b); err != nil {
		return err
	}
	beside := path + ".new"
	if err := os.WriteFile(beside, b.Bytes(), 0o644); err != nil {
		return options.OutError(path, err)
	}
	return os.Rename(beside, path)
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
