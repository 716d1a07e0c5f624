package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot/vg"

	"github.com/gomamba/mamba/op"
)

// direction is an order in which a scan visits the cells of an image, or of the slices of a volume, which are drawn side by side.
type direction struct {
	name                  string
	order                 op.Order
	slices, height, width int
	token                 int // the step before which a class token is read; 0 for none
}

// directions are the orders that published models use, in rows of the picture.
func directions() [][]direction {
	const height, width, depth = 6, 8, 3
	vmamba, local := op.VMambaOrders(height, width), op.LocalMambaOrders(height, width)
	vim, volume := op.VimOrders(height*width), op.SegMambaOrders(depth, depth, 3, 3)
	image := func(name string, o op.Order) direction {
		return direction{name: name, order: o, slices: 1, height: height, width: width}
	}
	withToken := func(name string, o op.Order) direction {
		d := image(name, o)
		d.token = height * width / 2
		return d
	}
	slices := func(name string, o op.Order) direction {
		return direction{name: name, order: o, slices: depth, height: 3, width: 3}
	}
	return [][]direction{
		{image("VMamba: rows", vmamba[0]), image("columns", vmamba[1]), image("rows, reversed", vmamba[2]), image("columns, reversed", vmamba[3])},
		{withToken("Vim: forward, class token in the middle", vim[0]), withToken("backward", vim[1]),
			image("LocalMamba: windows of 2", local[4]), image("windows of 7 (cut at the edge)", local[6])},
		{slices("SegMamba: forward (3 slices of a volume)", volume[0]), slices("backward", volume[1]), slices("interleaved: a cell of each slice, then the next", volume[2])},
	}
}

// drawDirections draws the orders, from blue where they begin to red where they end: the path over an image, the numbers of the steps in a volume.
func drawDirections(path string) error {
	const panel, margin = 9 * vg.Centimeter, 0.4 * vg.Centimeter
	rows, heights := directions(), []vg.Length{7.6 * vg.Centimeter, 7.6 * vg.Centimeter, 4 * vg.Centimeter}
	p := newPicture(4*panel, heights[0]+heights[1]+heights[2])
	bottom := p.height
	for i, row := range rows {
		bottom -= heights[i]
		for j, d := range row {
			left, top := vg.Length(j)*panel+margin, bottom+heights[i]-margin
			p.text(left, top-0.5*vg.Centimeter, d.name)
			top -= 0.9 * vg.Centimeter
			columns := d.slices*(d.width+1) - 1 // slices are a cell apart
			cell := min((panel-2*margin)/vg.Length(columns), (top-bottom-margin)/vg.Length(d.height))
			at := func(c int) vg.Point {
				slice, y, x := c/(d.height*d.width), c/d.width%d.height, c%d.width
				return vg.Point{X: left + (vg.Length(slice*(d.width+1)+x)+0.5)*cell, Y: top - (vg.Length(y)+0.5)*cell}
			}
			cells := d.order.Cells()
			color := func(step int) color.Color { return heat(float64(step) / float64(len(cells)-1)) }
			for step, c := range cells {
				if d.slices == 1 {
					p.square(at(c), cell, gray)
				} else {
					p.square(at(c), cell, color(step))
					p.label(at(c), fmt.Sprint(step))
				}
			}
			if d.slices > 1 {
				continue
			}
			for step, c := range cells[1:] {
				p.line(at(cells[step]), at(c), color(step+1))
			}
			p.dot(at(cells[0]), heat(0))
			p.dot(at(cells[len(cells)-1]), heat(1))
			if d.token > 0 { // between two steps
				a, b := at(cells[d.token-1]), at(cells[d.token])
				p.dot(vg.Point{X: (a.X + b.X) / 2, Y: (a.Y + b.Y) / 2}, black)
			}
		}
	}
	return p.write(path)
}

// heat returns a colour from blue, at 0, to red, at 1.
func heat(v float64) color.Color {
	mix := func(a, b float64) uint8 { return uint8(a + v*(b-a)) }
	return color.RGBA{mix(30, 215), mix(90, 40), mix(200, 35), 255}
}

var black, gray, white = color.Gray{0}, color.Gray{235}, color.Gray{255}
