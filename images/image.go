package images

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gomamba/mamba/internal/size"
)

// Image is an image or a volume. Read makes one of a file; a program may also fill in Size, Channels and Pix itself.
type Image struct {
	Size     []int     // height, width; or depth, height, width
	Channels int       // 1 for grey, 3 for colour; a NIfTI file of four axes has one for each point in time
	Pix      []float32 // row-major, the channels of a cell side by side: len is the product of Size, times Channels

	// Bits is 8 or 16 if the values of Pix are colours from 0 (none) to 1 (all), read from a file with that many bits for a channel. It is 0 if
	// the values are in units of their own, as those of a NIfTI file.
	Bits int

	Grid
}

// Grid places the cells of an image in space. PNG, JPEG and TIFF files have none: the zero Grid, with cells of 1 × 1.
type Grid struct {
	Spacing []float64      // the size of a cell along each axis, in the order of Size; millimetres in most NIfTI files. nil means 1 along each
	Affine  *[3][4]float64 // turns the indices (x, y, z, 1), x along the last axis, into a place: to the right, to the front, upwards; nil if there is none

	nifti *header // what the file said, so that a result can be written on the same grid
}

// Labels is a map of labels: a number for each cell. In a map that was read from a file they are the file's own values; Classes.Index turns
// them into classes from 0, which losses and metrics want, and Classes.Values turns classes back.
//
// The value of a grey pixel, of 8 or 16 bits, is its grey level; fewer bits are scaled to 8, so the values of one bit are 0 and 255. That of a pixel
// with a palette is its index in the palette. A coloured pixel of 8 bits has the value 0x1000000 | red<<16 | green<<8 | blue.
type Labels struct {
	Size   []int   // height, width; or depth, height, width
	Values []int32 // row-major: len is the product of Size
	Grid
}

// New returns an image of zeros. The error says if size or channels are below 1, or if the image does not fit into memory.
func New(size []int, channels int) (*Image, error) {
	n, err := cells(size, channels)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	return &Image{Size: append([]int(nil), size...), Channels: channels, Pix: make([]float32, n*channels)}, nil
}

// cells returns the number of cells of an image, or an error if there is no such image, or if it does not fit into memory.
func cells(sizes []int, channels int) (int, error) {
	if len(sizes) != 2 && len(sizes) != 3 {
		return 0, fmt.Errorf("the size has %d axes, want 2 (height, width) or 3 (depth, height, width)", len(sizes))
	}
	for _, n := range append([]int{channels}, sizes...) {
		if n < 1 {
			return 0, fmt.Errorf("an image of %s with %s, want at least 1 of each", sizeString(sizes), plural(channels, "channel"))
		}
	}
	if err := size.Of(4, append([]int{channels}, sizes...)...).Fits("the " + sizeString(sizes) + " cells of " + plural(channels, "channel")); err != nil {
		return 0, err
	}
	return size.Product(sizes...), nil
}

// check returns an error if the fields of an image do not fit each other.
func (im *Image) check() error {
	if im == nil {
		return errors.New("images: the image is nil")
	}
	n, err := cells(im.Size, im.Channels)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if len(im.Pix) != n*im.Channels {
		return fmt.Errorf("images: an image of %s with %s has %d values in Pix, want %d", sizeString(im.Size), plural(im.Channels, "channel"), len(im.Pix), n*im.Channels)
	}
	if im.Bits != 0 && im.Bits != 8 && im.Bits != 16 {
		return fmt.Errorf("images: Bits is %d, want 8 or 16 for colours from 0 to 1, or 0 for other values", im.Bits)
	}
	return im.Grid.check(im.Size)
}

// check returns an error if the fields of a map of labels do not fit each other.
func (l *Labels) check() error {
	if l == nil {
		return errors.New("images: the map of labels is nil")
	}
	n, err := cells(l.Size, 1)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if len(l.Values) != n {
		return fmt.Errorf("images: labels of %s have %d values, want %d", sizeString(l.Size), len(l.Values), n)
	}
	return l.Grid.check(l.Size)
}

// The smallest and the largest size of a cell. Their ratio keeps places within the range of float64.
const leastSpacing, mostSpacing = 1e-9, 1e6

func (g Grid) check(sizes []int) error {
	if g.Spacing != nil && len(g.Spacing) != len(sizes) {
		return fmt.Errorf("images: Spacing has %d axes, want %d, as Size", len(g.Spacing), len(sizes))
	}
	for _, s := range g.Spacing {
		if !(s >= leastSpacing && s <= mostSpacing) {
			return fmt.Errorf("images: Spacing is %v, want numbers from %g to %g", g.Spacing, leastSpacing, mostSpacing)
		}
	}
	return nil
}

// Gray returns the image with one channel: the luminance of red, green and blue, by the weights of ITU-R BT.601. An image of one channel is
// returned itself.
func (im *Image) Gray() (*Image, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	switch im.Channels {
	case 1:
		return im, nil
	case 3:
		gray := *im
		gray.Channels, gray.Pix = 1, make([]float32, len(im.Pix)/3)
		for i := range gray.Pix {
			p := im.Pix[3*i : 3*i+3]
			gray.Pix[i] = 0.299*p[0] + 0.587*p[1] + 0.114*p[2]
		}
		return &gray, nil
	}
	return nil, fmt.Errorf("images: an image has %d channels, want 1 or 3 to make it grey", im.Channels)
}

// Color returns the image with three channels: those of a grey image are the same. An image of three channels is returned itself.
func (im *Image) Color() (*Image, error) {
	if err := im.check(); err != nil {
		return nil, err
	}
	switch im.Channels {
	case 3:
		return im, nil
	case 1:
		if err := size.Of(12, len(im.Pix)).Fits("the pixels of a colour image"); err != nil {
			return nil, fmt.Errorf("images: %w", err)
		}
		c := *im
		c.Channels, c.Pix = 3, make([]float32, 3*len(im.Pix))
		for i, v := range im.Pix {
			c.Pix[3*i], c.Pix[3*i+1], c.Pix[3*i+2] = v, v, v
		}
		return &c, nil
	}
	return nil, fmt.Errorf("images: an image has %d channels, want 1 or 3 to make it coloured", im.Channels)
}

// sizeString returns "512 × 512".
func sizeString(size []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(size), " ", " × "), "[]")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// parallel calls f(0) to f(n-1) in as many goroutines as there are processors, at most workers if that is not 0. It returns the error of the
// smallest i.
func parallel(n, workers int, f func(i int) error) error {
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	var (
		next  atomic.Int64
		group sync.WaitGroup
		mu    sync.Mutex
		first = n
		err   error
	)
	for range min(workers, n) {
		group.Go(func() {
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				if e := f(i); e != nil {
					mu.Lock()
					if i < first {
						first, err = i, e
					}
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	return err
}
