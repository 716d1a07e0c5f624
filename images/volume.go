package images

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/size"
)

// Resample returns an image with another number of cells that shows the same part of space. Values are interpolated linearly; along an axis that gets
// fewer cells, a value is the mean of the old cells near it, with weights that fall linearly to 0 at a distance of one new cell, so that nothing
// is missed. Spacing and Affine are those of the new cells.
func (im *Image) Resample(sizes []int) (*Image, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	if len(sizes) != len(im.Size) {
		return nil, fmt.Errorf("images: resample: the size is %v, want %d axes, as the image has", sizes, len(im.Size))
	}
	if _, err := cells(sizes, im.Channels); err != nil {
		return nil, fmt.Errorf("images: resample: %w", err)
	}
	out := &Image{Size: im.Size, Channels: im.Channels, Bits: im.Bits, Pix: im.Pix}
	for a, n := range sizes {
		if n != out.Size[a] {
			largest := size.Of(4, append(slices.Concat(out.Size[:a], out.Size[a+1:]), n, im.Channels)...)
			if err := largest.Fits("the cells on the way"); err != nil {
				return nil, fmt.Errorf("images: resample: %w", err)
			}
			out = out.along(a, n)
		}
	}
	if slices.Equal(sizes, im.Size) {
		out.Pix = slices.Clone(im.Pix)
	}
	out.Size, out.Grid = slices.Clone(sizes), im.Grid.resampled(im.Size, sizes)
	return out, nil
}

// along resamples one axis.
func (im *Image) along(axis, n int) *Image {
	from := im.Size[axis]
	inner, outer := im.Channels, 1
	for a, s := range im.Size {
		if a > axis {
			inner *= s
		} else if a < axis {
			outer *= s
		}
	}
	out := &Image{Size: slices.Clone(im.Size), Channels: im.Channels, Bits: im.Bits, Pix: make([]float32, outer*n*inner)}
	out.Size[axis] = n
	step := float64(from) / float64(n)
	reach := max(step, 1) // where the weight is 0
	first, weights := make([]int, n), make([][]float32, n)
	for i := range n {
		center := (float64(i)+0.5)*step - 0.5
		low, high := max(0, int(math.Ceil(center-reach))), min(from-1, int(math.Floor(center+reach)))
		first[i] = low
		var all []float64
		sum := 0.
		for k := low; k <= high; k++ {
			w := max(0, 1-math.Abs(float64(k)-center)/reach)
			all, sum = append(all, w), sum+w
		}
		for _, w := range all { // at a border, the cells that are there count for those that are not
			weights[i] = append(weights[i], float32(w/sum))
		}
	}
	_ = parallel(outer*n, 0, func(row int) error { // its function returns no error
		o, i := row/n, row%n
		to := out.Pix[row*inner:][:inner]
		for k, w := range weights[i] {
			if w != 0 {
				for j, v := range im.Pix[(o*from+first[i]+k)*inner:][:inner] {
					to[j] += w * v
				}
			}
		}
		return nil
	})
	return out
}

// Resample returns a map of labels with another number of cells that shows the same part of space: each cell has the label of the nearest old
// one. Spacing and Affine are those of the new cells.
func (l *Labels) Resample(sizes []int) (*Labels, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if len(sizes) != len(l.Size) {
		return nil, fmt.Errorf("images: resample: the size is %v, want %d axes, as the labels have", sizes, len(l.Size))
	}
	n, err := cells(sizes, 1)
	if err != nil {
		return nil, fmt.Errorf("images: resample: %w", err)
	}
	var nearest [3][]int
	for a := range 3 {
		from, to := axis(l.Size, a), axis(sizes, a)
		nearest[a] = make([]int, to)
		for i := range to {
			nearest[a][i] = min(from-1, int((float64(i)+0.5)*float64(from)/float64(to)))
		}
	}
	out := &Labels{Size: slices.Clone(sizes), Values: make([]int32, 0, n), Grid: l.Grid.resampled(l.Size, sizes)}
	for _, z := range nearest[0] {
		for _, y := range nearest[1] {
			row := l.Values[(z*axis(l.Size, 1)+y)*axis(l.Size, 2):]
			for _, x := range nearest[2] {
				out.Values = append(out.Values, row[x])
			}
		}
	}
	return out, nil
}

// resampled returns the grid of the same part of space cut into other cells.
func (g Grid) resampled(from, to []int) Grid {
	if slices.Equal(from, to) {
		return g
	}
	out := Grid{nifti: g.nifti, Spacing: make([]float64, len(to))}
	for a := range to {
		out.Spacing[a] = float64(from[a]) / float64(to[a])
		if g.Spacing != nil {
			out.Spacing[a] *= g.Spacing[a]
		}
	}
	if g.Affine != nil {
		m := *g.Affine
		for r := range 3 {
			for c := range len(to) { // column c is axis len-1-c
				a := len(to) - 1 - c
				step := float64(from[a]) / float64(to[a])
				m[r][3] += g.Affine[r][c] * (step - 1) / 2 // from the middle of the first old cell to that of the first new one
				m[r][c] *= step
			}
		}
		out.Affine = &m
	}
	return out
}

// SizeAt returns the size that an image of some size on this grid has with another spacing: the number of cells along each axis that is nearest, at
// least 1. Resample to that size brings images to a common spacing.
func (g Grid) SizeAt(sizes []int, spacing []float64) ([]int, error) {
	if _, err := cells(sizes, 1); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	if err := g.check(sizes); err != nil {
		return nil, err
	}
	if spacing == nil {
		return nil, fmt.Errorf("images: the spacing is nil, want %d numbers", len(sizes))
	}
	if err := (Grid{Spacing: spacing}).check(sizes); err != nil {
		return nil, err
	}
	out := make([]int, len(sizes))
	for a, n := range sizes {
		length := float64(n)
		if g.Spacing != nil {
			length *= g.Spacing[a]
		}
		out[a] = int(min(max(1, math.Round(length/spacing[a])), 1<<40))
	}
	if _, err := cells(out, 1); err != nil {
		return nil, fmt.Errorf("images: with a spacing of %v: %w", spacing, err)
	}
	return out, nil
}

// Like returns the image resampled to the size of another image, and on its grid: scores of a resampled volume go back to the original with it.
func (im *Image) Like(other *Image) (*Image, error) {
	if err := other.check(); err != nil {
		return nil, err
	}
	out, err := im.Resample(other.Size)
	if err != nil {
		return nil, err
	}
	out.Grid = other.Grid
	return out, nil
}

// Like returns the labels resampled to the size of an image, and on its grid.
func (l *Labels) Like(other *Image) (*Labels, error) {
	if err := other.check(); err != nil {
		return nil, err
	}
	out, err := l.Resample(other.Size)
	if err != nil {
		return nil, err
	}
	out.Grid = other.Grid
	return out, nil
}

// Argmax returns the channel with the largest value of each cell; the lowest of equal ones.
func (im *Image) Argmax() (*Labels, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	l := &Labels{Size: im.Size, Grid: im.Grid, Values: make([]int32, len(im.Pix)/im.Channels)}
	argmax(l.Values, im.Pix, im.Channels)
	return l, nil
}

func argmax(to []int32, scores []float32, classes int) {
	for i := range to {
		best := 0
		for c, v := range scores[i*classes : (i+1)*classes] {
			if v > scores[i*classes+best] {
				best = c
			}
		}
		to[i] = int32(best)
	}
}

// Slice returns the image at a depth of a volume.
func (im *Image) Slice(depth int) (*Image, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	if err := checkDepth(im.Size, depth); err != nil {
		return nil, err
	}
	n := im.Size[1] * im.Size[2] * im.Channels
	return &Image{Size: im.Size[1:], Channels: im.Channels, Bits: im.Bits, Pix: im.Pix[depth*n : (depth+1)*n], Grid: im.Grid.slice()}, nil
}

// Slice returns the labels at a depth of a volume.
func (l *Labels) Slice(depth int) (*Labels, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if err := checkDepth(l.Size, depth); err != nil {
		return nil, err
	}
	n := l.Size[1] * l.Size[2]
	return &Labels{Size: l.Size[1:], Values: l.Values[depth*n : (depth+1)*n], Grid: l.Grid.slice()}, nil
}

func checkDepth(sizes []int, depth int) error {
	if len(sizes) != 3 || depth < 0 || depth >= sizes[0] {
		return fmt.Errorf("images: slice %d of %s cells, want a volume of three axes, and a depth from 0 below the first of them", depth, sizeString(sizes))
	}
	return nil
}

// slice returns the grid of one depth; it keeps no place in space.
func (g Grid) slice() Grid {
	if g.Spacing == nil {
		return Grid{}
	}
	return Grid{Spacing: g.Spacing[1:]}
}

// Intensity says how the values of a channel become numbers around 0 for a model: clipped to [Low, High], less Mean, divided by Deviation.
type Intensity struct{ Low, High, Mean, Deviation float64 }

// Normalization has an Intensity for each channel. It can be saved as JSON beside a model, which needs the same numbers for new images.
type Normalization []Intensity

// MeasureImage returns the normalization of one image: mean and standard deviation of all its values, and no clipping. It is usual for MR, microscopes and
// photographs, whose values have no units: each image is normalized by its own.
func MeasureImage(im *Image) (Normalization, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	if err := im.finite(); err != nil {
		return nil, err
	}
	n := make(Normalization, im.Channels)
	for c := range n {
		mean, deviation, least, most := im.statistics(c)
		n[c] = Intensity{Low: least, High: most, Mean: mean, Deviation: deviation}.sensible()
	}
	return n, n.check(im.Channels)
}

// sensible replaces a standard deviation of 0, of a channel that is the same everywhere, by 1.
func (i Intensity) sensible() Intensity {
	if i.Deviation == 0 {
		i.Deviation = 1
	}
	return i
}

// MeasureForeground returns the normalization of a data set, of the cells whose class is not background: clipping to the percentiles 0.5 and 99.5, and mean
// and standard deviation. It is usual for CT, whose values have units, and is what nnU-Net does (Isensee et al. 2021). Of each sample up to 10,000 cells count, at
// equal distances. It is an error if no sample has a cell of the foreground.
func MeasureForeground(source Source, background int) (Normalization, error) {
	if source == nil {
		return nil, errors.New("images: measure: the source is nil")
	}
	if background < 0 || background >= MaxClasses {
		return nil, fmt.Errorf("images: measure: the background is class %d, want 0 to %d", background, MaxClasses-1)
	}
	var values [][]float32
	for i := range source.Len() {
		s, err := source.Load(i)
		if err != nil {
			return nil, err
		}
		if err := s.check(); err != nil {
			return nil, err
		}
		if s.Labels == nil {
			return nil, fmt.Errorf("images: measure: sample %q has no labels", s.Name)
		}
		if err := s.Image.finite(); err != nil {
			return nil, fmt.Errorf("images: measure: sample %q: %s", s.Name, strings.TrimPrefix(err.Error(), "images: "))
		}
		if values == nil {
			values = make([][]float32, s.Image.Channels)
		}
		if len(values) != s.Image.Channels {
			return nil, fmt.Errorf("images: measure: sample %q has %s, but the first one %d", s.Name, plural(s.Image.Channels, "channel"), len(values))
		}
		count := 0
		for _, v := range s.Labels.Values {
			if int(v) != background {
				count++
			}
		}
		every, seen := (count+mostCells-1)/mostCells, 0
		for k, v := range s.Labels.Values {
			if int(v) == background {
				continue
			}
			if seen%every == 0 {
				for c := range values {
					values[c] = append(values[c], s.Image.Pix[k*len(values)+c])
				}
			}
			seen++
		}
	}
	if len(values) == 0 || len(values[0]) == 0 {
		return nil, fmt.Errorf("images: measure: none of %s has a cell whose class is not %d", plural(source.Len(), "sample"), background)
	}
	n := make(Normalization, len(values))
	for c, all := range values {
		mean, deviation, _, _ := (&Image{Channels: 1, Pix: all}).statistics(0)
		slices.Sort(all)
		at := func(share float64) float64 {
			x := share * float64(len(all)-1)
			k := int(x)
			return float64(all[k]) + (x-float64(k))*float64(all[min(k+1, len(all)-1)]-all[k])
		}
		n[c] = Intensity{Low: at(0.005), High: at(0.995), Mean: mean, Deviation: deviation}.sensible()
	}
	return n, n.check(len(n))
}

func (n Normalization) check(channels int) error {
	if len(n) != channels {
		return fmt.Errorf("images: the normalization has %s, but the image %d", plural(len(n), "channel"), channels)
	}
	for c, i := range n {
		for _, x := range []float64{i.Low, i.High, i.Mean, i.Deviation} {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("images: the normalization of channel %d is %+v, want finite numbers: the image has NaN or infinite values", c, i)
			}
		}
		if i.Low > i.High || i.Deviation <= 0 {
			return fmt.Errorf("images: the normalization of channel %d is %+v, want Low ≤ High and Deviation > 0", c, i)
		}
	}
	return nil
}

// finite returns an error that names the first cell that is no finite number.
func (im *Image) finite() error {
	for i, v := range im.Pix {
		if v-v != 0 {
			at := make([]int, len(im.Size))
			for a, k := len(im.Size)-1, i/im.Channels; a >= 0; a-- {
				at[a], k = k%im.Size[a], k/im.Size[a]
			}
			return fmt.Errorf("images: the image has the value %v in cell %v, channel %d, want finite numbers", v, at, i%im.Channels)
		}
	}
	return nil
}

// Apply returns the image with each channel normalized. The error names a cell that is NaN or infinite.
func (n Normalization) Apply(im *Image) (*Image, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	if err := n.check(im.Channels); err != nil {
		return nil, err
	}
	if err := im.finite(); err != nil {
		return nil, err
	}
	out := *im
	out.Bits, out.Pix = 0, make([]float32, len(im.Pix))
	for c, i := range n {
		low, high, mean, scale := float32(i.Low), float32(i.High), float32(i.Mean), float32(1/i.Deviation)
		for k := c; k < len(im.Pix); k += im.Channels {
			out.Pix[k] = (min(max(im.Pix[k], low), high) - mean) * scale
		}
	}
	return &out, nil
}
