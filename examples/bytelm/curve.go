package main

import (
	"errors"
	"fmt"
	"image/color"
	"io/fs"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// point is a loss in bits per byte after a step.
type point struct {
	step int
	bits float64
}

// curve is what a training run leaves behind.
type curve struct {
	training, heldOut []point
	bigram            float64
}

// mean returns the mean training loss of the last steps.
func (c *curve) mean(steps int) float64 {
	last := c.training[max(len(c.training)-steps, 0):]
	sum := 0.0
	for _, p := range last {
		sum += p.bits
	}
	return sum / float64(len(last))
}

// checkCurve finds out before the training whether the curve can be written after it.
func checkCurve(path string) error {
	if path == "" {
		return nil
	}
	_, missing := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return outError(path, err)
	}
	if err := f.Close(); err != nil {
		return outError(path, err)
	}
	if missing != nil {
		return os.Remove(path)
	}
	return nil
}

func outError(path string, err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("-out is %q, should be a file that can be written: %w", path, err)
}

// write draws the curve as PNG.
func (c *curve) write(path string) error {
	p := plot.New()
	p.X.Label.Text = "step"
	p.Y.Label.Text = "bits per byte"
	p.Legend.Top = true
	p.Legend.XOffs = -vg.Points(8)
	p.Legend.YOffs = -vg.Points(4)
	p.Add(plotter.NewGrid())

	var all plotter.XYs
	for _, point := range c.training {
		all = append(all, plotter.XY{X: float64(point.step), Y: point.bits})
	}
	training, err := plotter.NewLine(all)
	if err != nil {
		return outError(path, err)
	}
	training.Color = color.Gray{Y: 170}

	var scored plotter.XYs
	for _, point := range c.heldOut {
		scored = append(scored, plotter.XY{X: float64(point.step), Y: point.bits})
	}
	heldOut, dots, err := plotter.NewLinePoints(scored)
	if err != nil {
		return outError(path, err)
	}
	heldOut.Color = color.RGBA{R: 200, G: 60, B: 20, A: 255}
	heldOut.Width = vg.Points(2)
	dots.Color = heldOut.Color

	first, last := all[0].X, all[len(all)-1].X
	bigram, err := plotter.NewLine(plotter.XYs{{X: first, Y: c.bigram}, {X: last, Y: c.bigram}})
	if err != nil {
		return outError(path, err)
	}
	bigram.Dashes = []vg.Length{vg.Points(4), vg.Points(4)}

	p.Add(training, bigram, heldOut, dots)
	p.Legend.Add("training", training)
	p.Legend.Add("held out", heldOut, dots)
	p.Legend.Add("bigram, held out", bigram)
	p.Y.Min = 0
	if err := p.Save(18*vg.Centimeter, 11*vg.Centimeter, path); err != nil {
		return outError(path, err)
	}
	return nil
}
