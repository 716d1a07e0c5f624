package main

import (
	"image"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// picture is a white canvas that becomes a PNG file.
type picture struct {
	draw.Canvas
	img    *vgimg.Canvas
	height vg.Length
}

func newPicture(width, height vg.Length) *picture {
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(110))
	return &picture{draw.New(img), img, height}
}

// text writes a line whose lower left corner is given.
func (p *picture) text(x, y vg.Length, s string) {
	p.FillText(textStyle(black), vg.Point{X: x, Y: y}, s)
}

// label writes white text around a point.
func (p *picture) label(at vg.Point, s string) {
	style := textStyle(white)
	style.XAlign, style.YAlign = draw.XCenter, draw.YCenter
	p.FillText(style, at, s)
}

func textStyle(c color.Color) text.Style {
	return text.Style{Color: c, Font: font.Font{Typeface: "Liberation", Variant: "Sans", Size: 11}, Handler: plot.DefaultTextHandler}
}

// square fills a square of a cell, a little smaller than the cell.
func (p *picture) square(at vg.Point, cell vg.Length, c color.Color) {
	half := 0.47 * cell
	r := vg.Rectangle{Min: vg.Point{X: at.X - half, Y: at.Y - half}, Max: vg.Point{X: at.X + half, Y: at.Y + half}}
	p.SetColor(c)
	p.Fill(r.Path())
}

func (p *picture) line(a, b vg.Point, c color.Color) {
	p.StrokeLine2(draw.LineStyle{Color: c, Width: vg.Millimeter}, a.X, a.Y, b.X, b.Y)
}

func (p *picture) dot(at vg.Point, c color.Color) {
	p.DrawGlyph(draw.GlyphStyle{Color: c, Radius: 1.4 * vg.Millimeter, Shape: draw.CircleGlyph{}}, at)
}

// pixels draws an image in a square whose upper left corner is given.
func (p *picture) pixels(left, top, side vg.Length, img image.Image) {
	p.DrawImage(vg.Rectangle{Min: vg.Point{X: left, Y: top - side}, Max: vg.Point{X: left + side, Y: top}}, img)
}

func (p *picture) write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := (vgimg.PngCanvas{Canvas: p.img}).WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
