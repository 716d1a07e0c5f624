package images

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/gomamba/mamba/internal/size"
)

// Patches says how patches are drawn from samples, and how they are changed. What is drawn for a patch depends on Seed and on the patch's index
// alone, so patches have the same bits for any number of workers, in any order, and after a run was resumed.
type Patches struct {
	Size    []int // of a patch, with as many axes as the image. Where an image is smaller, its mirror image goes on
	Augment Augment
	Seed    uint64

	// Foreground is the share of patches, from 0 to 1, that are drawn around a cell of a class other than Background: one of the classes that
	// the sample has, each as likely, and one of its cells, which comes to lie in the middle half of the patch where the border of the image
	// allows it. Other patches are drawn from anywhere.
	Foreground float64
	Background int
}

// Augment says how samples are changed at random. The zero value changes nothing. Image and labels are changed together; images are
// interpolated linearly, labels take the nearest cell. Beyond a border the mirror image goes on.
type Augment struct {
	Flips bool // mirror along each axis, or not
	Turns bool // 0 to 3 quarter turns in the plane of the last two axes

	Share      float64 // share of patches that each of the following changes, drawn for each of them; 0 means 1
	Rotate     float64 // angle in the plane of the last two axes, up to this many degrees in either direction
	Tilt       float64 // for volumes, angles around the other two axes, as Rotate
	Scale      float64 // 0.25 makes things up to 1.25 times as large, or as small
	Elastic    float64 // elastic deformation: root mean square of the way of a cell along each axis, in cells of the last axis
	Control    int     // distance of the deformation's control points, in cells; 0 means 32
	Brightness float64 // added, up to this many standard deviations of the patch's values
	Contrast   float64 // 0.25 multiplies the distance from the mean by up to 1.25, or divides by as much
	Gamma      float64 // 0.5 raises the values, between the patch's least and largest, to powers from 1/1.5 to 1.5
	Noise      float64 // Gaussian noise, up to this many standard deviations of the patch's values
}

// check returns an error for numbers that no patches can be drawn with.
func (p Patches) check() error {
	if len(p.Size) != 2 && len(p.Size) != 3 {
		return fmt.Errorf("images: patches: Size is %v, want 2 or 3 axes", p.Size)
	}
	for _, n := range p.Size {
		if n < 1 || n > 1<<24 {
			return fmt.Errorf("images: patches: Size is %v, want numbers from 1 to %d", p.Size, 1<<24)
		}
	}
	a := p.Augment
	for _, f := range []struct {
		name  string
		value float64
		most  float64
	}{
		{"Foreground", p.Foreground, 1}, {"Augment.Share", a.Share, 1}, {"Augment.Rotate", a.Rotate, 180}, {"Augment.Tilt", a.Tilt, 180}, {"Augment.Scale", a.Scale, 10},
		{"Augment.Elastic", a.Elastic, 1000}, {"Augment.Brightness", a.Brightness, 100}, {"Augment.Contrast", a.Contrast, 100}, {"Augment.Gamma", a.Gamma, 100}, {"Augment.Noise", a.Noise, 100},
	} {
		if !(f.value >= 0 && f.value <= f.most) {
			return fmt.Errorf("images: patches: %s is %v, want 0 to %v", f.name, f.value, f.most)
		}
	}
	if a.Control != 0 && (a.Control < 2 || a.Control > 1<<16) {
		return fmt.Errorf("images: patches: Augment.Control is %d cells, want 2 to 65536, or 0 for 32", a.Control)
	}
	if p.Background < 0 || p.Background >= MaxClasses {
		return fmt.Errorf("images: patches: Background is class %d, want 0 to %d", p.Background, MaxClasses-1)
	}
	return nil
}

// Draw returns a patch of a sample: the patch that index names, of all that can be drawn with this Seed.
func (p Patches) Draw(s *Sample, index uint64) (*Sample, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if len(s.Image.Size) != len(p.Size) {
		return nil, fmt.Errorf("images: patches: Size is %v, but the image %s has %s cells: want as many axes", p.Size, s.Name, sizeString(s.Image.Size))
	}
	if err := size.Of(4, append([]int{s.Image.Channels + 2}, p.Size...)...).Fits("the cells of a patch"); err != nil {
		return nil, fmt.Errorf("images: patches: %w", err)
	}
	out := &Sample{Name: s.Name, Class: s.Class, Image: &Image{Size: p.Size, Channels: s.Image.Channels, Bits: s.Image.Bits, Pix: make([]float32, size.Product(p.Size...)*s.Image.Channels)}}
	if s.Labels != nil {
		out.Labels = &Labels{Size: p.Size, Values: make([]int32, size.Product(p.Size...))}
	}
	r := rand.New(rand.NewPCG(mix(p.Seed), mix(^index)))
	g := p.place(s, r)
	g.sample(s, out)
	p.Augment.values(out.Image, r)
	return out, nil
}

// mix turns numbers that are close into numbers that are not (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// foreground are cells of a sample by class, at most mostCells of each.
type foreground struct {
	once    sync.Once
	classes []int32
	cells   map[int32][]int
}

const mostCells = 10000

func (f *foreground) find(l *Labels) {
	f.once.Do(func() {
		counts, seen := map[int32]int{}, map[int32]int{}
		for start, end := range runs(l.Values) {
			counts[l.Values[start]] += end - start
		}
		f.cells = map[int32][]int{}
		for start, end := range runs(l.Values) {
			v := l.Values[start]
			if f.cells[v] == nil {
				f.classes = append(f.classes, v)
			}
			every, cells := (counts[v]+mostCells-1)/mostCells, f.cells[v]
			for i := start + (every-seen[v]%every)%every; i < end; i += every {
				cells = append(cells, i)
			}
			f.cells[v] = cells
			seen[v] += end - start
		}
	})
}

// geometry says which place of a sample each cell of a patch shows: center + matrix · (cell − middle of the patch) + deformation.
type geometry struct {
	image, patch [3]int
	center       [3]float64
	matrix       [3][3]float64
	exact        bool // each cell shows a cell
	bend         *deformation
}

// place draws where a patch lies, and how it is turned and bent.
func (p Patches) place(s *Sample, r *rand.Rand) *geometry {
	a, axes := p.Augment, len(p.Size)
	g := &geometry{exact: true, matrix: [3][3]float64{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}
	for i := range 3 {
		g.image[i], g.patch[i] = axis(s.Image.Size, i), axis(p.Size, i)
	}
	extent := g.patch // of the part of the image
	if a.Turns {
		for range r.IntN(4) {
			g.matrix[1], g.matrix[2] = [3]float64{0, g.matrix[2][1], g.matrix[2][2]}, [3]float64{0, -g.matrix[1][1], -g.matrix[1][2]}
			extent[1], extent[2] = extent[2], extent[1]
		}
	}
	if a.Flips {
		for i := 3 - axes; i < 3; i++ {
			if r.IntN(2) == 1 {
				for j := range 3 {
					g.matrix[i][j] = -g.matrix[i][j]
				}
			}
		}
	}
	cell := p.cell(s, r)
	for i := range 3 {
		free, n := g.image[i]-extent[i], extent[i]
		var start int
		switch {
		case free <= 0:
			start = -((-free) / 2)
		case cell < 0:
			start = r.IntN(free + 1)
		default:
			at := [3]int{cell / g.image[2] / g.image[1], cell / g.image[2] % g.image[1], cell % g.image[2]}[i]
			start = min(max(at-n/4-r.IntN(n-n/4*2), 0), free)
		}
		g.center[i] = float64(start) + float64(n-1)/2
	}
	spacing := [3]float64{1, 1, 1}
	if s.Image.Spacing != nil {
		copy(spacing[3-axes:], s.Image.Spacing)
	}
	const degree = math.Pi / 180
	angles := [3]float64{a.draw(a.Rotate, r) * degree, 0, 0}
	if axes == 3 {
		angles[1], angles[2] = a.draw(a.Tilt, r)*degree, a.draw(a.Tilt, r)*degree
	}
	scale := math.Pow(1+a.Scale, a.draw(1, r))
	if a.Scale == 0 {
		scale = 1
	}
	if angles != [3]float64{} || scale != 1 {
		g.exact = false
		g.turn(angles, scale, spacing)
	}
	if a.Elastic > 0 && a.chosen(r) {
		g.exact = false
		g.bend = bend(a, g.patch, spacing, axes, r)
	}
	return g
}

// cell draws a cell of the foreground, or returns -1.
func (p Patches) cell(s *Sample, r *rand.Rand) int {
	if p.Foreground == 0 || s.Labels == nil || r.Float64() >= p.Foreground {
		return -1
	}
	f := &s.cells
	f.find(s.Labels)
	n, skip := len(f.classes), len(f.classes)
	for i, c := range f.classes {
		if int(c) == p.Background {
			n, skip = n-1, i
		}
	}
	if n == 0 {
		return -1
	}
	i := r.IntN(n)
	if i >= skip {
		i++
	}
	cells := f.cells[f.classes[i]]
	return cells[r.IntN(len(cells))]
}

// chosen draws whether a patch is among those that are changed.
func (a Augment) chosen(r *rand.Rand) bool { return a.Share == 0 || r.Float64() < a.Share }

// draw returns a number from -most to most, or 0 for a patch that is not changed.
func (a Augment) draw(most float64, r *rand.Rand) float64 {
	if most == 0 || !a.chosen(r) {
		return 0
	}
	return most * (2*r.Float64() - 1)
}

// turn turns the matrix by angles in the planes of axes 1 and 2, 0 and 2, 0 and 1, and makes things scale times as large. Angles are those in
// millimetres.
func (g *geometry) turn(angles [3]float64, scale float64, spacing [3]float64) {
	for i, plane := range [][2]int{{1, 2}, {0, 2}, {0, 1}} {
		s, c := math.Sincos(angles[i])
		u, v := plane[0], plane[1]
		a, b := g.matrix[u], g.matrix[v]
		for j := range 3 {
			g.matrix[u][j] = c*a[j] - s*b[j]*spacing[v]/spacing[u]
			g.matrix[v][j] = c*b[j] + s*a[j]*spacing[u]/spacing[v]
		}
	}
	for i := range 3 {
		for j := range 3 {
			g.matrix[i][j] /= scale
		}
	}
}

// deformation is a field of displacements: cubic B-splines through random control points.
type deformation struct {
	axes, step int
	n          [3]int // control points along each axis
	points     []float64
	scale      [3]float64   // cells along each axis for a displacement of one
	row        []float64    // control points of one row of the patch, three displacements each
	weights    [][4]float64 // of four control points, for each cell between two
}

func bend(a Augment, patch [3]int, spacing [3]float64, axes int, r *rand.Rand) *deformation {
	d := &deformation{axes: axes, step: a.Control}
	if d.step == 0 {
		d.step = 32
	}
	total := 3
	for i := range 3 {
		d.n[i] = 1
		if i >= 3-axes {
			d.n[i] = (patch[i]-1)/d.step + 4
		}
		total *= d.n[i]
		// The mean square of the four weights of a cubic B-spline is 151/315.
		d.scale[i] = a.Elastic * math.Pow(315./151, float64(axes)/2) * spacing[2] / spacing[i]
	}
	d.points = make([]float64, total)
	for i := range d.points {
		d.points[i] = r.NormFloat64()
	}
	d.row = make([]float64, 3*d.n[2])
	for i := range d.step {
		t := float64(i) / float64(d.step)
		u := 1 - t
		d.weights = append(d.weights, [4]float64{u * u * u / 6, (3*t*t*t - 6*t*t + 4) / 6, (3*u*u*u - 6*u*u + 4) / 6, t * t * t / 6})
	}
	return d
}

// addRow adds the displacements of the cells of a row.
func (d *deformation) addRow(z, y int, at [][3]float64) {
	clear(d.row)
	firstZ, wz, planes := z/d.step, d.weights[z%d.step], 4
	if d.axes == 2 {
		firstZ, wz, planes = 0, [4]float64{1}, 1
	}
	firstY, wy := y/d.step, d.weights[y%d.step]
	for i := range planes {
		for j := range 4 {
			w := wz[i] * wy[j]
			for k, p := range d.points[((firstZ+i)*d.n[1]+firstY+j)*len(d.row):][:len(d.row)] {
				d.row[k] += w * p
			}
		}
	}
	for x := range at {
		p, w, a := d.row[3*(x/d.step):][:12], &d.weights[x%d.step], &at[x]
		if d.axes == 3 {
			a[0] += d.scale[0] * (w[0]*p[0] + w[1]*p[3] + w[2]*p[6] + w[3]*p[9])
		}
		a[1] += d.scale[1] * (w[0]*p[1] + w[1]*p[4] + w[2]*p[7] + w[3]*p[10])
		a[2] += d.scale[2] * (w[0]*p[2] + w[1]*p[5] + w[2]*p[8] + w[3]*p[11])
	}
}

// sample fills a patch row by row. at are the places that the cells of a row show.
func (g *geometry) sample(from, to *Sample) {
	at := make([][3]float64, g.patch[2])
	for z := range g.patch[0] {
		for y := range g.patch[1] {
			u := [3]float64{float64(z) - float64(g.patch[0]-1)/2, float64(y) - float64(g.patch[1]-1)/2, -float64(g.patch[2]-1) / 2}
			var first, step [3]float64
			for i, m := range g.matrix {
				first[i], step[i] = g.center[i]+m[0]*u[0]+m[1]*u[1]+m[2]*u[2], m[2]
			}
			row, c := (z*g.patch[1]+y)*g.patch[2], from.Image.Channels
			pix, labels := to.Image.Pix[row*c:][:len(at)*c], []int32(nil)
			if to.Labels != nil {
				labels = to.Labels.Values[row:][:len(at)]
			}
			if g.exact && g.copyRow(from, first, step, pix, labels) {
				continue
			}
			for x := range at {
				f := float64(x)
				at[x] = [3]float64{first[0] + f*step[0], first[1] + f*step[1], first[2] + f*step[2]}
			}
			if g.bend != nil {
				g.bend.addRow(z, y, at)
			}
			flat := g.patch[0] == 1 && g.image[0] == 1
			for x, p := range at {
				if to := pix[x*c : (x+1)*c]; g.exact {
					copy(to, from.Image.Pix[g.nearest(p)*c:])
				} else if !flat || !g.bilinear(from, p, to, labels, x) {
					g.linear(from.Image, p, to)
				} else {
					continue // it has written the label
				}
				if labels != nil {
					labels[x] = from.Labels.Values[g.nearest(p)]
				}
			}
		}
	}
}

// copyRow copies a row whose cells are cells of the image, and reports whether they are.
func (g *geometry) copyRow(from *Sample, first, step [3]float64, pix []float32, labels []int32) bool {
	c := from.Image.Channels
	n := len(pix) / c
	for i, f := range first {
		for _, at := range [2]float64{f, f + float64(n-1)*step[i]} {
			if at < 0 || at >= float64(g.image[i]) {
				return false
			}
		}
	}
	i, d := g.nearest(first), (floor(step[0]+0.5)*g.image[1]+floor(step[1]+0.5))*g.image[2]+floor(step[2]+0.5)
	if d == 1 {
		copy(pix, from.Image.Pix[i*c:])
		if labels != nil {
			copy(labels, from.Labels.Values[i:])
		}
		return true
	}
	for x := range n {
		if c == 1 {
			pix[x] = from.Image.Pix[i+x*d]
		} else {
			copy(pix[x*c:(x+1)*c], from.Image.Pix[(i+x*d)*c:])
		}
	}
	for x := range labels {
		labels[x] = from.Labels.Values[i+x*d]
	}
	return true
}

// linear interpolates between the eight cells around a place.
func (g *geometry) linear(im *Image, p [3]float64, to []float32) {
	z, y, x := floor(p[0]), floor(p[1]), floor(p[2])
	fz, fy, fx := float32(p[0]-float64(z)), float32(p[1]-float64(y)), float32(p[2]-float64(x))
	if uint(z) < uint(g.image[0]-1) && uint(y) < uint(g.image[1]-1) && uint(x) < uint(g.image[2]-1) {
		c := len(to)
		i, line, plane := ((z*g.image[1]+y)*g.image[2]+x)*c, g.image[2]*c, g.image[1]*g.image[2]*c
		p00, p01 := im.Pix[i:][:2*c], im.Pix[i+line:][:2*c]
		p10, p11 := im.Pix[i+plane:][:2*c], im.Pix[i+plane+line:][:2*c]
		w00, w01, w10, w11 := (1-fz)*(1-fy), (1-fz)*fy, fz*(1-fy), fz*fy
		for k := range to {
			to[k] = (1-fx)*(w00*p00[k]+w01*p01[k]+w10*p10[k]+w11*p11[k]) + fx*(w00*p00[c+k]+w01*p01[c+k]+w10*p10[c+k]+w11*p11[c+k])
		}
		return
	}
	for k := range 8 { // at a border
		w := [2]float32{1 - fz, fz}[k>>2] * [2]float32{1 - fy, fy}[k>>1&1] * [2]float32{1 - fx, fx}[k&1]
		if w == 0 {
			continue
		}
		i := g.index(z+k>>2, y+k>>1&1, x+k&1) * len(to)
		for c, v := range im.Pix[i : i+len(to)] {
			to[c] += w * v
		}
	}
}

// bilinear is linear, and nearest for the label, at a place between four cells of an image. It reports whether the place is one.
func (g *geometry) bilinear(from *Sample, p [3]float64, to []float32, labels []int32, x int) bool {
	width, c := g.image[2], len(to)
	row, column := floor(p[1]), floor(p[2])
	if uint(row) >= uint(g.image[1]-1) || uint(column) >= uint(width-1) {
		return false
	}
	fy, fx := float32(p[1]-float64(row)), float32(p[2]-float64(column))
	i := row*width + column
	upper := from.Image.Pix[i*c:][:2*c]
	lower := from.Image.Pix[(i+width)*c:][:2*c]
	w0, w1, w2, w3 := (1-fy)*(1-fx), (1-fy)*fx, fy*(1-fx), fy*fx
	for k := range to {
		to[k] = w0*upper[k] + w1*upper[c+k] + w2*lower[k] + w3*lower[c+k]
	}
	if labels != nil {
		labels[x] = from.Labels.Values[floor(p[1]+0.5)*width+floor(p[2]+0.5)]
	}
	return true
}

// nearest returns the cell nearest to a place.
func (g *geometry) nearest(p [3]float64) int {
	return g.index(floor(p[0]+0.5), floor(p[1]+0.5), floor(p[2]+0.5))
}

// floor is the largest integer that is not above x, which is above -1<<30.
func floor(x float64) int { return int(x+1<<30) - 1<<30 }

// index returns the cell at a place, which may lie outside.
func (g *geometry) index(z, y, x int) int {
	if uint(z) < uint(g.image[0]) && uint(y) < uint(g.image[1]) && uint(x) < uint(g.image[2]) {
		return (z*g.image[1]+y)*g.image[2] + x
	}
	return (mirror(z, g.image[0])*g.image[1]+mirror(y, g.image[1]))*g.image[2] + mirror(x, g.image[2])
}

// values changes the values of a patch.
func (a Augment) values(im *Image, r *rand.Rand) {
	brightness, contrast, gamma := a.draw(a.Brightness, r), math.Pow(1+a.Contrast, a.draw(1, r)), math.Pow(1+a.Gamma, a.draw(1, r))
	noise := math.Abs(a.draw(a.Noise, r))
	if a.Brightness == 0 && a.Contrast == 0 && a.Gamma == 0 && a.Noise == 0 {
		return
	}
	for c := range im.Channels {
		mean, deviation, least, most := im.statistics(c)
		if deviation == 0 {
			continue
		}
		if a.Gamma > 0 && gamma != 1 {
			power(im, c, gamma, least, most)
		}
		factor := 1.
		if a.Contrast > 0 {
			factor = contrast
		}
		scale, shift := float32(factor), float32(mean*(1-factor)+brightness*deviation)
		if scale != 1 || shift != 0 {
			for i := c; i < len(im.Pix); i += im.Channels {
				im.Pix[i] = im.Pix[i]*scale + shift
			}
		}
		if noise > 0 {
			n := noise * deviation
			for i := c; i < len(im.Pix); i += im.Channels {
				im.Pix[i] += float32(n * r.NormFloat64())
			}
		}
	}
}

// statistics returns mean, standard deviation, least and largest value of a channel. Sums are those of the distances from the first value, so
// that little is lost when they are subtracted.
func (im *Image) statistics(channel int) (mean, deviation, least, most float64) {
	first := im.Pix[channel]
	low, high := first, first
	var sum, squares float64
	for i := channel; i < len(im.Pix); i += im.Channels {
		v := im.Pix[i]
		d := float64(v) - float64(first)
		sum, squares = sum+d, squares+d*d
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
	}
	n := float64(len(im.Pix) / im.Channels)
	sum /= n
	return float64(first) + sum, math.Sqrt(max(0, squares/n-sum*sum)), float64(low), float64(high)
}

// power raises a channel's values, as shares of the range from least to most, to a power. The power is interpolated in a table, which is
// ten times as fast; its square keeps the table dense near 0, where the power is steep.
func power(im *Image, channel int, gamma, least, most float64) {
	const n = 4096
	var table [n + 2]float32
	for i := range table {
		x := float64(i) / n
		table[i] = float32(least + (most-least)*math.Pow(x, gamma))
	}
	scale := float32(n / (most - least))
	for i := channel; i < len(im.Pix); i += im.Channels {
		x := (im.Pix[i] - float32(least)) * scale
		k := min(max(int(x), 0), n)
		f := x - float32(k)
		im.Pix[i] = table[k] + f*(table[k+1]-table[k])
	}
}
