package report

import (
	"cmp"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// Panel is one pair of axes with lines in it. Each line has its name at its right end, so there is no legend.
type Panel struct {
	X, Y    string // labels of the axes, with their units: X below, Y above
	LogX    bool   // logarithmic, with ticks at powers of 2
	LogY    bool
	Percent bool // the vertical axis is 0 to 100
	Lines   []Line
	Levels  []Level
}

// Line is a line through points. X and Y have the same length.
type Line struct {
	Name   string // none is written if it is empty
	X, Y   []float64
	Color  color.Color // if nil, Color of the line's position
	Dashed bool
	Pale   bool // thin and without marks, to stand in the background
}

// Level is a horizontal line at a value of the vertical axis, for comparison.
type Level struct {
	Name  string
	Value float64
}

var palette = []color.RGBA{
	{11, 97, 164, 255}, {209, 73, 12, 255}, {0, 135, 95, 255}, {138, 62, 168, 255}, {168, 120, 0, 255}, {70, 70, 70, 255},
}

// Color returns the colour of the line at a position, counted from 0. After six they repeat.
func Color(position int) color.Color {
	return palette[(position%len(palette)+len(palette))%len(palette)]
}

const (
	fontSize   = vg.Length(11)
	rowHeight  = 1.2 * fontSize       // of two names, one above the other
	height     = 10.5 * vg.Centimeter // of a picture, unless a panel has more names
	marginRows = 6                    // rows of a picture above and below the names
	dpi        = 144

	// The numbers that axes have room for: their ratios and differences are float64 as well.
	most, least = 1e150, 1e-150
)

// WritePNG draws panels side by side into a PNG file. The file is replaced only when the picture is whole. Points below 1e-150
// are left out on a logarithmic axis, which has no place for them.
//
// Errors: no panel; a panel without a point; a line whose X and Y differ in length; a number that is not finite or is beyond
// 1e150; and those of the file. After an error an existing file is as it was.
func WritePNG(path string, panels ...Panel) error {
	if len(panels) == 0 {
		return fmt.Errorf("report: there is no panel, want at least one")
	}
	width := 18 * vg.Centimeter
	if len(panels) > 1 {
		width = vg.Length(len(panels)) * 13 * vg.Centimeter
	}
	height := height
	for _, p := range panels {
		height = max(height, vg.Length(p.names()+marginRows)*rowHeight)
	}
	pixels := func(l vg.Length) int { return int(l.Dots(dpi)) }
	if err := size.Of(4, pixels(width), pixels(height)).Fits("their pixels"); err != nil {
		return fmt.Errorf("report: there are %d panels: %w", len(panels), err)
	}
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))
	all := draw.New(img)
	for i, panel := range panels {
		each := width / vg.Length(len(panels))
		if err := panel.draw(draw.Crop(all, vg.Length(i)*each, -vg.Length(len(panels)-1-i)*each, 0, 0)); err != nil {
			return err
		}
	}
	return tensorfile.Replace(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: img}.WriteTo(w)
		return err
	})
}

// names returns how many lines and levels have a name.
func (p Panel) names() (n int) {
	for _, l := range p.Lines {
		if l.Name != "" {
			n++
		}
	}
	for _, l := range p.Levels {
		if l.Name != "" {
			n++
		}
	}
	return n
}

// points returns the points of a line that have a place on the axes.
func (p Panel) points(l Line) (plotter.XYs, error) {
	if len(l.X) != len(l.Y) {
		return nil, fmt.Errorf("report: line %q: X has %d numbers and Y has %d, want as many", l.Name, len(l.X), len(l.Y))
	}
	var xys plotter.XYs
	for i, x := range l.X {
		y := l.Y[i]
		if !(math.Abs(x) <= most && math.Abs(y) <= most) {
			return nil, fmt.Errorf("report: line %q: point %d is (%v, %v), want numbers from -%g to %[5]g", l.Name, i, x, y, most)
		}
		if (x >= least || !p.LogX) && (y >= least || !p.LogY) {
			xys = append(xys, plotter.XY{X: x, Y: y})
		}
	}
	return xys, nil
}

// label is a name at the end of a line.
type label struct {
	name  string
	color color.Color
	at    plotter.XY
}

func (p Panel) draw(c draw.Canvas) error {
	pl := plot.New()
	pl.X.Tick.Label.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: fontSize}
	pl.Y.Tick.Label.Font = pl.X.Tick.Label.Font
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{Y: 225}, color.Gray{Y: 225}
	pl.Add(grid)

	var labels []label
	for i, l := range p.Lines {
		xys, err := p.points(l)
		if err != nil {
			return err
		}
		if len(xys) == 0 {
			continue
		}
		if l.Color == nil {
			l.Color = Color(i)
		}
		line := &plotter.Line{XYs: xys, LineStyle: draw.LineStyle{Color: l.Color, Width: vg.Points(1.6)}}
		if l.Dashed {
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		if l.Pale {
			line.Color, line.Width = pale(l.Color), vg.Points(0.7)
		}
		pl.Add(line)
		if !l.Pale && len(xys) <= 40 {
			pl.Add(&plotter.Scatter{XYs: xys, GlyphStyle: draw.GlyphStyle{Color: l.Color, Radius: vg.Points(2.4), Shape: shapes[i%len(shapes)]}})
		}
		labels = append(labels, label{l.Name, l.Color, xys[len(xys)-1]})
	}
	if len(labels) == 0 {
		return fmt.Errorf("report: panel %q has no point to draw, want at least one", p.Y)
	}
	for _, l := range p.Levels {
		if !(math.Abs(l.Value) <= most) || p.LogY && l.Value < least {
			return fmt.Errorf("report: level %q is %v, want a number from -%g to %[3]g, and on a logarithmic axis from %[4]g", l.Name, l.Value, most, least)
		}
		pl.Y.Min, pl.Y.Max = min(pl.Y.Min, l.Value), max(pl.Y.Max, l.Value)
	}
	p.scale(pl)
	for _, l := range p.Levels {
		ends := plotter.XYs{{X: pl.X.Min, Y: l.Value}, {X: pl.X.Max, Y: l.Value}}
		gray := color.Gray{Y: 110}
		pl.Add(&plotter.Line{XYs: ends, LineStyle: draw.LineStyle{Color: gray, Width: vg.Points(1), Dashes: []vg.Length{vg.Points(2), vg.Points(2)}}})
		labels = append(labels, label{l.Name, gray, ends[1]})
	}

	style := pl.X.Tick.Label
	style.XAlign, style.YAlign = text.XLeft, text.YCenter
	room := vg.Length(0)
	for _, l := range labels {
		room = max(room, style.Width(l.name))
	}
	c = draw.Crop(c, rowHeight/2, -room-2*rowHeight, 1.8*rowHeight, -2.3*rowHeight)
	pl.Draw(c)
	data := pl.DataCanvas(c)
	write(pl, data, style, labels)
	// The labels of the axes are written here, since on a logarithmic axis gonum takes room for its label at the wrong place.
	data.FillText(style, vg.Point{X: c.Min.X, Y: c.Max.Y + 1.4*rowHeight}, p.Y)
	style.XAlign = text.XCenter
	data.FillText(style, vg.Point{X: data.Center().X, Y: c.Min.Y - 0.9*rowHeight}, p.X)
	return nil
}

// write writes the names to the right of the data, each as near to the height of its line's end as the others let it be. A thin
// line leads to a name from an end that is not beside it.
func write(pl *plot.Plot, data draw.Canvas, style text.Style, labels []label) {
	x, y := pl.Transforms(&data)
	labels = slices.DeleteFunc(labels, func(l label) bool { return l.name == "" })
	slices.Reverse(labels) // of two ends at one height, the first line's name is above
	slices.SortStableFunc(labels, func(a, b label) int { return cmp.Compare(y(a.at.Y), y(b.at.Y)) })
	ends := make([]float64, len(labels))
	for i, l := range labels {
		ends[i] = float64(y(l.at.Y))
	}
	for i, to := range spread(ends, float64(rowHeight), float64(data.Min.Y-rowHeight/2), float64(data.Max.Y+rowHeight/2)) {
		l, from := labels[i], vg.Point{X: x(labels[i].at.X), Y: vg.Length(ends[i])}
		at := vg.Point{X: data.Max.X + rowHeight, Y: vg.Length(to)}
		data.StrokeLine2(draw.LineStyle{Color: pale(l.color), Width: vg.Points(0.7)}, from.X+vg.Points(4), from.Y, at.X-vg.Points(2), at.Y)
		style.Color = l.color
		data.FillText(style, at, l.name)
	}
}

// spread moves heights, the lowest first, apart to at least gap, and into the range from low to high, which has room for them. The sum
// of the squares of how far they move is the least possible.
func spread(heights []float64, gap, low, high float64) []float64 {
	high -= float64(len(heights)-1) * gap
	// With i·gap taken from the i-th, what remains must not fall. Runs that would fall become their mean.
	type run struct {
		sum float64
		n   int
	}
	var runs []run
	for i, h := range heights {
		r := run{h - float64(i)*gap, 1}
		for n := len(runs); n > 0 && runs[n-1].sum*float64(r.n) >= r.sum*float64(runs[n-1].n); n = len(runs) {
			r, runs = run{r.sum + runs[n-1].sum, r.n + runs[n-1].n}, runs[:n-1]
		}
		runs = append(runs, r)
	}
	var apart []float64
	for _, r := range runs {
		for range r.n {
			apart = append(apart, max(min(r.sum/float64(r.n), high), low)+float64(len(apart))*gap)
		}
	}
	return apart
}

// shapes are the marks at the points of lines: hollow, so that one line on another stays visible.
var shapes = []draw.GlyphDrawer{draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}, draw.CircleGlyph{}}

// pale mixes a colour with white.
func pale(c color.Color) color.Color {
	r, g, b, _ := c.RGBA()
	mix := func(v uint32) uint8 { return uint8((v*4 + 0xffff*6) / 10 >> 8) }
	return color.RGBA{mix(r), mix(g), mix(b), 255}
}
