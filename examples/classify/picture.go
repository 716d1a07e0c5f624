package main

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/internal/tensorfile"
)

func denseOf(im *images.Image) *tensor.Dense {
	return tensor.New(tensor.WithShape(1, im.Size[0], im.Size[1], im.Channels), tensor.WithBacking(im.Pix))
}

// probability returns the probability of a class.
func probability(logits []float32, class int) float64 {
	most, sum := slices.Max(logits), 0.
	for _, v := range logits {
		sum += math.Exp(float64(v - most))
	}
	return math.Exp(float64(logits[class]-most)) / sum
}

// matrix is a confusion matrix for a heat map: the share of the images of a true class, a row, that are predicted to be of a class, a column. The first
// row is on top.
type matrix [][]int

func (m matrix) Dims() (columns, rows int) { return len(m), len(m) }
func (m matrix) X(c int) float64           { return float64(c) }
func (m matrix) Y(r int) float64           { return float64(r) }
func (m matrix) Z(c, r int) float64 {
	row, sum := m[len(m)-1-r], 0
	for _, n := range row {
		sum += n
	}
	return float64(row[c]) / float64(max(sum, 1))
}

// shades are the colours from white to blue.
type shades int

func (n shades) Colors() []color.Color {
	all := make([]color.Color, n)
	for i := range all {
		x := float64(i) / float64(n-1)
		all[i] = color.RGBA{uint8(255 - 225*x), uint8(255 - 165*x), uint8(255 - 85*x), 255}
	}
	return all
}

// topDown are the ticks of the rows of a matrix, whose first row is on top.
type topDown int

func (n topDown) Ticks(least, most float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(least, most)
	for i := range ticks {
		ticks[i].Value = float64(n-1) - ticks[i].Value
	}
	return ticks
}

// drawConfusion draws a confusion matrix, with the counts if there are few classes.
func drawConfusion(path string, classes []string, counts [][]int) error {
	const mostNames, mostCounts = 60, 20
	m, p := matrix(counts), plot.New()
	p.X.Label.Text, p.Y.Label.Text = "predicted", "true"
	heat := plotter.NewHeatMap(m, shades(64))
	heat.Min, heat.Max = 0, 1
	p.Add(heat)
	if n := len(classes); n <= mostNames {
		p.NominalX(classes...)
		reversed := slices.Clone(classes)
		slices.Reverse(reversed)
		p.NominalY(reversed...)
		if n > 6 {
			p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = math.Pi/3, text.XRight, text.YCenter
		}
	} else {
		p.Y.Tick.Marker = topDown(n)
	}
	if len(classes) <= mostCounts {
		at := plotter.XYLabels{}
		var dark []bool
		for r, row := range counts {
			for c, n := range row {
				at.XYs = append(at.XYs, plotter.XY{X: float64(c), Y: float64(len(counts) - 1 - r)})
				at.Labels = append(at.Labels, fmt.Sprint(n))
				dark = append(dark, m.Z(c, len(counts)-1-r) > 0.5)
			}
		}
		labels, err := plotter.NewLabels(at)
		if err != nil {
			return err
		}
		for i := range labels.TextStyle {
			labels.TextStyle[i].XAlign, labels.TextStyle[i].YAlign = text.XCenter, text.YCenter
			if dark[i] {
				labels.TextStyle[i].Color = color.White
			}
		}
		p.Add(labels)
	}
	side := vg.Length(min(14+len(classes), 40)) * vg.Centimeter
	c := vgimg.NewWith(vgimg.UseWH(side*5/4, side), vgimg.UseDPI(150))
	p.Draw(draw.New(c))
	return tensorfile.Replace(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: c}.WriteTo(w)
		return err
	})
}
