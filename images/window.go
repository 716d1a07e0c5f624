package images

import (
	"errors"
	"fmt"
	"math"

	"github.com/gomamba/mamba/internal/size"
)

// Windows says how a model sees an image of any size: in windows that overlap, or at once. The zero value is not complete: Size must be set,
// or Whole.
type Windows struct {
	Size    []int   // size of a window, with as many axes as the image. An image that is smaller is continued by its mirror image
	Overlap float64 // share of a window that the next one sees again, along each axis: 0 to 0.9. 0.5 is usual
	Batch   int     // windows in one call of the model, at most; 0 means 1
	Flips   bool    // also predict the mirror images of each window along each axis, and take the mean: 4 predictions, 8 for a volume

	// Whole predicts the whole image at once, in the place of windows. It is an error that says what is missing if BytesPerCell times the number of
	// cells is more than Memory.
	Whole        bool
	BytesPerCell float64 // memory that the model needs for each cell of the image; 0 means not known: no check
	Memory       uint64  // bytes that the model may take; 0 means the memory of the machine
}

// Model predicts n windows of one size. windows has the values of n windows one after another, each row-major with its channels last. The result has
// the scores of all classes for each cell in the same order: probabilities, if the blend of windows and the mean of flips is to be one of
// probabilities. Predict has read the result before it calls the model again.
type Model func(windows []float32, n int) (scores []float32, err error)

// Scores returns the scores of all classes for each cell of an image, as an image with a channel for each class on the same grid. Where windows
// overlap, the score is a mean with Gaussian weights, whose standard deviation is an eighth of the window: scores are most reliable in its
// middle. Where one window covers all, the result is the model's, bit for bit.
//
// The memory that it takes beside the result does not depend on the size of the image: it is that of one batch of windows, twice with Flips.
func (w Windows) Scores(im *Image, classes int, model Model) (*Image, error) {
	p, err := w.plan(im, classes, model)
	if err != nil {
		return nil, err
	}
	out, err := New(im.Size, classes)
	if err != nil {
		return nil, err
	}
	out.Grid = im.Grid
	return out, p.run(out.Pix, nil)
}

// Labels returns the class with the largest score for each cell; the lowest of equal ones. It is Scores and Image.Argmax without the memory for all
// scores: it holds those of the rows (planes, for a volume) that a row of windows covers.
func (w Windows) Labels(im *Image, classes int, model Model) (*Labels, error) {
	p, err := w.plan(im, classes, model)
	if err != nil {
		return nil, err
	}
	if err := size.Of(4, im.Size...).Fits("the labels"); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	l := &Labels{Size: im.Size, Grid: im.Grid, Values: make([]int32, len(im.Pix)/im.Channels)}
	done := 0
	return l, p.run(make([]float32, p.band()), func(scores []float32) {
		n := len(scores) / classes
		argmax(l.Values[done:done+n], scores, classes)
		done += n
	})
}

// plan is a prediction of one image. All sizes have three axes; that of depth is 1 for an image.
type plan struct {
	Windows
	im      *Image
	classes int
	model   Model
	image   [3]int
	window  [3]int
	starts  [3][]int       // where windows begin along each axis; below zero if the image is smaller
	weights [3][][]float32 // weight of each cell of each window along each axis: those of all windows at a cell add up to 1
}

func (w Windows) plan(im *Image, classes int, model Model) (*plan, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	if model == nil {
		return nil, errors.New("images: windows: the model is nil")
	}
	if classes < 1 || classes > 1<<16 {
		return nil, fmt.Errorf("images: windows: %d classes, want 1 to 65536", classes)
	}
	if !(w.BytesPerCell >= 0 && w.BytesPerCell <= 1e12) {
		return nil, fmt.Errorf("images: windows: BytesPerCell is %v, want 0 to 1e12", w.BytesPerCell)
	}
	if w.Whole {
		if err := w.fits(im.Size); err != nil {
			return nil, err
		}
		w.Size, w.Overlap, w.Batch = im.Size, 0, 1
	}
	if w.Batch == 0 {
		w.Batch = 1
	}
	if len(w.Size) != len(im.Size) {
		return nil, fmt.Errorf("images: windows: Size is %v, want %d axes, as the image of %s has", w.Size, len(im.Size), sizeString(im.Size))
	}
	for _, n := range w.Size {
		if n < 1 || n > 1<<24 {
			return nil, fmt.Errorf("images: windows: Size is %v, want numbers from 1 to %d", w.Size, 1<<24)
		}
	}
	if !(w.Overlap >= 0 && w.Overlap <= 0.9) {
		return nil, fmt.Errorf("images: windows: Overlap is %v, want 0 to 0.9", w.Overlap)
	}
	if w.Batch < 1 || w.Batch > 1<<16 {
		return nil, fmt.Errorf("images: windows: Batch is %d, want 1 to 65536, or 0 for 1", w.Batch)
	}
	p := &plan{Windows: w, im: im, classes: classes, model: model}
	for a := range 3 {
		p.image[a], p.window[a] = axis(im.Size, a), axis(w.Size, a)
		p.starts[a] = starts(p.image[a], p.window[a], w.Overlap)
		p.weights[a] = weights(p.image[a], p.window[a], p.starts[a])
	}
	batch := size.Of(4, w.Batch, p.window[0], p.window[1], p.window[2], im.Channels+2*classes)
	if err := batch.Plus(size.Of(4, p.band())).Fits("the windows and the rows that they cover"); err != nil {
		return nil, fmt.Errorf("images: windows: %w", err)
	}
	return p, nil
}

// fits returns an error if the model needs more memory for the whole image than there is.
func (w Windows) fits(sizes []int) error {
	memory := w.Memory
	if memory == 0 {
		memory = uint64(size.Machine())
	}
	if need := w.BytesPerCell * float64(size.Product(sizes...)); need > float64(memory) {
		return fmt.Errorf("images: the whole image of %s at once needs about %v, %.0f bytes for each cell, more than the memory of %v: use windows (Whole: false)",
			sizeString(sizes), size.Bytes(min(need, 1<<63)), w.BytesPerCell, size.Bytes(memory))
	}
	return nil
}

// axis returns the size of axis a of three: depth, height, width.
func axis(size []int, a int) int {
	if a += len(size) - 3; a >= 0 {
		return size[a]
	}
	return 1
}

// starts returns where windows begin along an axis: as few as overlap by at least the given share, at equal distances.
func starts(n, window int, overlap float64) []int {
	if n <= window {
		return []int{-(window - n) / 2}
	}
	step := max(1, int(float64(window)*(1-overlap)))
	count := (n-window+step-1)/step + 1
	all := make([]int, count)
	for i := range all {
		all[i] = int(int64(n-window) * int64(i) / int64(count-1))
	}
	return all
}

// weights returns the Gaussian weights of the windows along an axis. The weight of a cell in a window is a product over the axes, so dividing
// each axis by its own sum makes all weights at a cell add up to 1.
func weights(n, window int, starts []int) [][]float32 {
	gauss := make([]float64, window)
	for i := range gauss {
		d := (float64(i) - float64(window-1)/2) / (float64(window) / 8)
		gauss[i] = math.Exp(-d * d / 2)
	}
	sum := make([]float64, n)
	for _, s := range starts {
		for i, g := range gauss {
			if at := s + i; at >= 0 && at < n {
				sum[at] += g
			}
		}
	}
	all := make([][]float32, len(starts))
	for k, s := range starts {
		all[k] = make([]float32, window)
		for i, g := range gauss {
			if at := s + i; at >= 0 && at < n {
				all[k][i] = float32(g / sum[at])
			}
		}
	}
	return all
}

// lead is the axis along which results are finished: the first one of the image.
func (p *plan) lead() int { return 3 - len(p.im.Size) }

// row returns the number of scores in a row of the image (a plane of a volume).
func (p *plan) row() int {
	return size.Product(append([]int{p.classes}, p.im.Size[1:]...)...)
}

// band returns the number of scores in the rows that a row of windows covers.
func (p *plan) band() int { return size.Product(min(p.Size[0], p.im.Size[0]), p.row()) }

// run predicts all windows and adds their scores to a band of rows. Without emit, the band is the whole image. With it, emit is called with the scores of
// finished rows, from the first to the last, and the band moves on.
func (p *plan) run(band []float32, emit func(scores []float32)) error {
	lead, row := p.lead(), p.row()
	var (
		from   = 0 // the first row of the band
		inputs = make([]float32, p.Batch*p.window[0]*p.window[1]*p.window[2]*p.im.Channels)
		places [][3]int
	)
	flush := func() error {
		err := p.predict(inputs, places, band, from)
		places = places[:0]
		return err
	}
	finish := func(to int) {
		n := (to - from) * row
		emit(band[:n])
		empty(band[copy(band, band[n:]):])
		from = to
	}
	empty(band)
	for i := range p.starts[0] {
		for j := range p.starts[1] {
			if next := p.starts[lead][[2]int{i, j}[lead]]; emit != nil && next > from { // nothing is added to the rows before it any more
				if err := flush(); err != nil {
					return err
				}
				finish(next)
			}
			for k := range p.starts[2] {
				p.read(inputs[len(places)*(len(inputs)/p.Batch):], [3]int{i, j, k})
				if places = append(places, [3]int{i, j, k}); len(places) == p.Batch {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if emit != nil {
		finish(p.image[lead])
	}
	return nil
}

// empty makes each value -0, to which any number can be added without a change of its bits.
func empty(band []float32) {
	for i := range band {
		band[i] = float32(math.Copysign(0, -1))
	}
}

// mirror returns the cell that stands at i if an axis of n cells goes on by its mirror image, whose first cell is the axis' last but one.
func mirror(i, n int) int {
	if uint(i) < uint(n) {
		return i
	}
	if n == 1 {
		return 0
	}
	period := 2 * (n - 1)
	if i = i % period; i < 0 {
		i += period
	}
	if i >= n {
		i = period - i
	}
	return i
}

// read copies a window of the image.
func (p *plan) read(to []float32, at [3]int) {
	c, z0, y0, x0 := p.im.Channels, p.starts[0][at[0]], p.starts[1][at[1]], p.starts[2][at[2]]
	for z := range p.window[0] {
		for y := range p.window[1] {
			row := p.im.Pix[(mirror(z0+z, p.image[0])*p.image[1]+mirror(y0+y, p.image[1]))*p.image[2]*c:][:p.image[2]*c]
			if x0 >= 0 && x0+p.window[2] <= p.image[2] {
				copy(to, row[x0*c:][:p.window[2]*c])
			} else {
				for x := range p.window[2] {
					copy(to[x*c:(x+1)*c], row[mirror(x0+x, p.image[2])*c:])
				}
			}
			to = to[p.window[2]*c:]
		}
	}
}

// predict adds the scores of some windows to the band.
func (p *plan) predict(inputs []float32, places [][3]int, band []float32, from int) error {
	n := len(places)
	if n == 0 {
		return nil
	}
	cells := p.window[0] * p.window[1] * p.window[2]
	inputs = inputs[:n*cells*p.im.Channels]
	scores, err := p.call(inputs, n)
	if err != nil {
		return err
	}
	if p.Flips {
		scores = append([]float32(nil), scores...) // the model may use its memory again
		flips := 0
		for _, f := range p.flips() {
			flips++
			p.flip(inputs, p.im.Channels, n, f)
			flipped, err := p.call(inputs, n)
			if err != nil {
				return err
			}
			p.flip(inputs, p.im.Channels, n, f)
			p.addFlipped(scores, flipped, n, f)
		}
		share := 1 / float32(flips+1)
		for i := range scores {
			scores[i] *= share
		}
	}
	for i, at := range places {
		p.blend(band, from, scores[i*cells*p.classes:][:cells*p.classes], at)
	}
	return nil
}

func (p *plan) call(inputs []float32, n int) ([]float32, error) {
	scores, err := p.model(inputs, n)
	if err != nil {
		return nil, err
	}
	if want := n * p.window[0] * p.window[1] * p.window[2] * p.classes; len(scores) != want {
		return nil, fmt.Errorf("images: windows: the model returned %d scores for %s of %s, want %d, one for each cell and each of %d classes", len(scores), plural(n, "window"), sizeString(p.Size), want, p.classes)
	}
	return scores, nil
}

// flips returns all sets of axes to flip but the empty one.
func (p *plan) flips() (all [][3]bool) {
	for set := 1; set < 1<<len(p.im.Size); set++ {
		all = append(all, [3]bool{set&4 != 0, set&2 != 0, set&1 != 0})
	}
	return all
}

// flip mirrors n windows in place.
func (p *plan) flip(values []float32, channels, n int, f [3]bool) {
	cells := p.window[0] * p.window[1] * p.window[2]
	for w := range n {
		window := values[w*cells*channels:][:cells*channels]
		for i := range cells {
			if j := p.flipped(i, f); i < j {
				for c := range channels {
					window[i*channels+c], window[j*channels+c] = window[j*channels+c], window[i*channels+c]
				}
			}
		}
	}
}

// addFlipped adds the mirror images of scores.
func (p *plan) addFlipped(to, scores []float32, n int, f [3]bool) {
	cells, c := p.window[0]*p.window[1]*p.window[2], p.classes
	for w := range n {
		to, scores := to[w*cells*c:], scores[w*cells*c:]
		for i := range cells {
			j := p.flipped(i, f)
			for k := range c {
				to[i*c+k] += scores[j*c+k]
			}
		}
	}
}

// flipped returns the cell of a window that is the mirror image of cell i.
func (p *plan) flipped(i int, f [3]bool) int {
	x, y, z := i%p.window[2], i/p.window[2]%p.window[1], i/p.window[2]/p.window[1]
	if f[0] {
		z = p.window[0] - 1 - z
	}
	if f[1] {
		y = p.window[1] - 1 - y
	}
	if f[2] {
		x = p.window[2] - 1 - x
	}
	return (z*p.window[1]+y)*p.window[2] + x
}

// blend adds the weighted scores of a window to the band, whose first row (or plane) is from.
func (p *plan) blend(band []float32, from int, scores []float32, at [3]int) {
	var origin [3]int
	origin[p.lead()] = from
	z0, y0, x0 := p.starts[0][at[0]], p.starts[1][at[1]], p.starts[2][at[2]]
	wz, wy, wx := p.weights[0][at[0]], p.weights[1][at[1]], p.weights[2][at[2]]
	for z := range p.window[0] {
		for y := range p.window[1] {
			Z, Y := z0+z, y0+y
			row := scores[:p.window[2]*p.classes]
			scores = scores[len(row):]
			if Z < 0 || Z >= p.image[0] || Y < 0 || Y >= p.image[1] {
				continue
			}
			first, last := max(0, -x0), min(p.window[2], p.image[2]-x0)
			to := band[(((Z-origin[0])*p.image[1]+Y-origin[1])*p.image[2]+x0+first)*p.classes:]
			for x := first; x < last; x++ {
				w := wz[z] * wy[y] * wx[x]
				for c, v := range row[x*p.classes : (x+1)*p.classes] {
					to[c] += w * v
				}
				to = to[p.classes:]
			}
		}
	}
}
