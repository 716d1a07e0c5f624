package main

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/gomamba/mamba/images"
)

// The classes of the images that the program makes.
const (
	inside = iota
	membrane
	organelle
)

// side is the number of pixels of a side of these images.
const side = 128

// microscope draws an image like those of an electron microscope, and the classes of its pixels. Cells of different grey have a texture, dark membranes
// between them, and organelles: dark ellipses with a bright middle. Lines in the cells are as dark as membranes, but enclose nothing. The light is
// uneven, and there is noise.
func microscope(seed uint64) *images.Sample {
	r := rand.New(rand.NewPCG(seed, 2))
	im := &images.Image{Size: []int{side, side}, Channels: 1, Pix: make([]float32, side*side)}
	labels := &images.Labels{Size: im.Size, Values: make([]int32, side*side)}

	// Each pixel belongs to the nearest of some centres. Slow noise bends the borders.
	type cell struct{ y, x, grey float64 }
	var cells []cell
	const pitch = 28
	for y := -pitch; y <= side+pitch; y += pitch {
		for x := -pitch; x <= side+pitch; x += pitch {
			cells = append(cells, cell{float64(y) + pitch*0.8*(r.Float64()-0.5), float64(x) + pitch*0.8*(r.Float64()-0.5), 0.62 + 0.12*r.Float64()})
		}
	}
	bendY, bendX, texture, light := newNoise(r, 18), newNoise(r, 18), newNoise(r, 5), newNoise(r, 90)
	thickness := newNoise(r, 30)
	edge := make([]float64, side*side) // the distance from the border of the cell
	for i := range im.Pix {
		y, x := float64(i/side), float64(i%side)
		wy, wx := y+8*bendY.at(y, x), x+8*bendX.at(y, x)
		first, second, grey := math.Inf(1), math.Inf(1), 0.
		for _, c := range cells {
			if d := math.Hypot(wy-c.y, wx-c.x); d < first {
				first, second, grey = d, first, c.grey
			} else if d < second {
				second = d
			}
		}
		edge[i] = (second - first) / 2
		v := grey + 0.1*texture.at(y, x)
		if wide := 1.4 + 0.5*thickness.at(y, x); edge[i] < wide {
			labels.Values[i] = membrane
			v = 0.3 + 0.08*texture.at(x, y) + 0.25*edge[i]/wide
		}
		im.Pix[i] = float32(v)
	}
	// draw darkens pixels around a place, f by their distance along and across a direction, where they are well inside of a cell.
	draw := func(y, x, angle, reach, margin float64, f func(along, across float64, i int)) {
		sin, cos := math.Sincos(angle)
		for dy := -reach; dy <= reach; dy++ {
			for dx := -reach; dx <= reach; dx++ {
				py, px := int(y+dy), int(x+dx)
				if py >= 0 && py < side && px >= 0 && px < side && edge[py*side+px] > margin {
					f(dx*cos+dy*sin, dy*cos-dx*sin, py*side+px)
				}
			}
		}
	}
	for range 14 {
		long, wide := 4+3*r.Float64(), 2.5+1.5*r.Float64()
		draw(side*r.Float64(), side*r.Float64(), math.Pi*r.Float64(), 8, 3, func(along, across float64, i int) {
			if d := math.Hypot(along/long, across/wide); d < 1 {
				labels.Values[i] = organelle
				im.Pix[i] = float32(0.52 - 0.22*d*d + 0.05*math.Sin(2*along))
			}
		})
	}
	for range 10 { // lines that are no membranes
		bend := 0.05 * r.NormFloat64()
		draw(side*r.Float64(), side*r.Float64(), math.Pi*r.Float64(), 9, 3, func(along, across float64, i int) {
			if math.Abs(across-bend*along*along) < 0.8 && labels.Values[i] == inside {
				im.Pix[i] -= 0.25
			}
		})
	}
	slope := math.Pi * 2 * r.Float64()
	for i, v := range im.Pix {
		y, x := float64(i/side), float64(i%side)
		lit := 1 + 0.25*light.at(y, x) + 0.2*(math.Cos(slope)*(y/side-0.5)+math.Sin(slope)*(x/side-0.5))
		im.Pix[i] = float32(min(max(float64(v)*lit+0.07*r.NormFloat64(), 0), 1))
	}
	return &images.Sample{Name: fmt.Sprintf("made-%d", seed), Image: im, Labels: labels}
}

// noise is a smooth random function with values around -1 to 1.
type noise struct {
	lattice []float64
	scale   float64 // pixels between its independent values
}

// latticeSide is the number of values of a lattice along an axis, which then repeats.
const latticeSide = 64

func newNoise(r *rand.Rand, scale float64) *noise {
	n := &noise{make([]float64, latticeSide*latticeSide), scale}
	for i := range n.lattice {
		n.lattice[i] = 2*r.Float64() - 1
	}
	return n
}

func (n *noise) at(y, x float64) float64 {
	smooth := func(v float64) (int, float64) {
		whole := math.Floor(v)
		v -= whole
		return int(whole) & (latticeSide - 1), v * v * (3 - 2*v)
	}
	iy, fy := smooth(y / n.scale)
	ix, fx := smooth(x / n.scale)
	v := func(dy, dx int) float64 {
		return n.lattice[(iy+dy)&(latticeSide-1)*latticeSide+(ix+dx)&(latticeSide-1)]
	}
	return (v(0, 0)*(1-fx)+v(0, 1)*fx)*(1-fy) + (v(1, 0)*(1-fx)+v(1, 1)*fx)*fy
}
