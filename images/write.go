package images

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"strings"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// WritePNG writes an image of one or three channels, whose values are colours from 0 to 1, as a PNG file of 16 bits for a channel if Bits is
// 16, else of 8. Values outside of 0 to 1 become 0 or 1; NaN is an error. A file of that name is replaced as a whole.
func WritePNG(path string, im *Image) error {
	if err := im.flat(); err != nil {
		return err
	}
	height, width := im.Size[0], im.Size[1]
	levels, bytes := float32(255), 1
	if im.Bits == 16 {
		levels, bytes = 65535, 2
	}
	channels := 1
	if im.Channels == 3 {
		channels = 4
	}
	pix := make([]uint8, height*width*channels*bytes)
	for i, v := range im.Pix {
		if v != v {
			return fmt.Errorf("images: %s: the value at row %d, column %d is NaN, want a number from 0 to 1", path, i/im.Channels/width, i/im.Channels%width)
		}
		n := uint16(min(max(v, 0), 1)*levels + 0.5)
		at := i
		if channels == 4 {
			at = i/3*4 + i%3
		}
		if bytes == 2 {
			pix[2*at], pix[2*at+1] = uint8(n>>8), uint8(n)
		} else {
			pix[at] = uint8(n)
		}
	}
	for at := 3 * bytes; channels == 4 && at < len(pix); at += 4 * bytes {
		pix[at] = 255
		if bytes == 2 {
			pix[at+1] = 255
		}
	}
	stride, bounds := width*channels*bytes, image.Rect(0, 0, width, height)
	var m image.Image
	switch {
	case channels == 1 && bytes == 1:
		m = &image.Gray{Pix: pix, Stride: stride, Rect: bounds}
	case channels == 1:
		m = &image.Gray16{Pix: pix, Stride: stride, Rect: bounds}
	case bytes == 1:
		m = &image.RGBA{Pix: pix, Stride: stride, Rect: bounds}
	default:
		m = &image.RGBA64{Pix: pix, Stride: stride, Rect: bounds}
	}
	return encode(path, m)
}

// flat returns an error if an image is not one that a picture can show.
func (im *Image) flat() error {
	if err := im.check(); err != nil {
		return err
	}
	if len(im.Size) != 2 || im.Channels != 1 && im.Channels != 3 {
		return fmt.Errorf("images: an image of %s with %s, want 2 axes with 1 or 3 channels; Slice cuts an image out of a volume", sizeString(im.Size), plural(im.Channels, "channel"))
	}
	return size.Of(8, append([]int{4}, im.Size...)...).Fits("the pixels")
}

func encode(path string, m image.Image) error {
	err := tensorfile.Replace(path, func(w io.Writer) error { return png.Encode(w, m) })
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

// WriteLabels writes a map of labels with its own values, as ReadLabels reads them: as NIfTI-1 if path ends in .nii or .nii.gz, else as PNG, of two
// axes, grey with 8 bits if all values are below 256, with 16 bits if all are below 65536, and coloured if there is a value of a colour. A file
// of that name is replaced as a whole. Values that a file cannot hold are an error.
func WriteLabels(path string, l *Labels) error {
	if volumeName(path) {
		return WriteNIfTILabels(path, l)
	}
	if err := l.check(); err != nil {
		return err
	}
	if len(l.Size) != 2 {
		return fmt.Errorf("images: %s: labels of %s cannot be written as PNG, want 2 axes, or a name that ends in .nii.gz", path, sizeString(l.Size))
	}
	height, width := l.Size[0], l.Size[1]
	bounds, most := image.Rect(0, 0, width, height), int32(0)
	for i, v := range l.Values {
		if v < 0 || v >= 2*colored {
			return fmt.Errorf("images: %s: the label at row %d, column %d is %d, want at least 0 and below 65536 in a PNG file", path, i/width, i%width, v)
		}
		most = max(most, v)
	}
	at := func(x, y int) int32 { return l.Values[y*width+x] }
	switch {
	case most < 256:
		m := image.NewGray(bounds)
		for i, v := range l.Values {
			m.Pix[i] = uint8(v)
		}
		return encode(path, m)
	case most < 65536:
		m := image.NewGray16(bounds)
		for i, v := range l.Values {
			m.Pix[2*i], m.Pix[2*i+1] = uint8(v>>8), uint8(v)
		}
		return encode(path, m)
	}
	m := image.NewRGBA(bounds)
	for y := range height {
		for x := range width {
			v := at(x, y)
			switch {
			case v >= colored:
				m.SetRGBA(x, y, color.RGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 255})
			case v < 256:
				m.SetRGBA(x, y, color.RGBA{uint8(v), uint8(v), uint8(v), 255})
			default:
				return fmt.Errorf("images: %s: labels have colours and the value %d, want values below 256 beside colours", path, v)
			}
		}
	}
	return encode(path, m)
}

func volumeName(path string) bool {
	path = strings.ToLower(path)
	return strings.HasSuffix(path, ".nii") || strings.HasSuffix(path, ".nii.gz")
}

// Color returns the colour of a class in pictures, red, green and blue from 0 to 1. Class 0 is black, the next eight are easy to tell apart also
// for the colour-blind, and others follow by the golden angle.
func Color(class int) [3]float32 {
	if class >= 0 && class < len(palette) {
		c := palette[class]
		return [3]float32{float32(c>>16) / 255, float32(c>>8&255) / 255, float32(c&255) / 255}
	}
	hue := math.Mod(math.Abs(float64(class))*0.61803398875, 1)
	var c [3]float32
	for i := range c {
		c[i] = float32(0.55 + 0.4*math.Cos(2*math.Pi*(hue-float64(i)/3)))
	}
	return c
}

// palette is black and the colours of Okabe and Ito.
var palette = []uint32{0x000000, 0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7, 0x999999}

// Picture returns a map of classes as a coloured image: class c has Color(c), but class 1 of two classes is white. The values must be from 0 to
// classes-1 (Classes.Index), and the size must have two axes.
func (l *Labels) Picture(classes int) (*Image, error) {
	if err := l.flat(classes); err != nil {
		return nil, err
	}
	colors := colors(classes)
	if classes == 2 {
		colors[1] = [3]float32{1, 1, 1}
	}
	im := &Image{Size: l.Size, Channels: 3, Bits: 8, Pix: make([]float32, 3*len(l.Values))}
	for i, v := range l.Values {
		copy(im.Pix[3*i:], colors[v][:])
	}
	return im, nil
}

// Overlay returns an image, made grey, with the colour of each cell's class over it. opacity is the share of the colour, from 0 to 1. Cells of
// the class background stay as they are; -1 colours all. If the background is not class 0, class 0 has the background's colour, since black
// could not be seen.
func Overlay(im *Image, l *Labels, background int, opacity float64) (*Image, error) {
	if err := im.flat(); err != nil {
		return nil, err
	}
	if err := l.flat(MaxClasses); err != nil {
		return nil, err
	}
	if err := sameSize(im.Size, l.Size); err != nil {
		return nil, fmt.Errorf("images: overlay: %w", err)
	}
	if background < -1 || background >= MaxClasses {
		return nil, fmt.Errorf("images: overlay: the background is class %d, want -1 to %d", background, MaxClasses-1)
	}
	if !(opacity >= 0 && opacity <= 1) {
		return nil, fmt.Errorf("images: overlay: the opacity is %v, want 0 to 1", opacity)
	}
	gray, err := im.Gray()
	if err != nil {
		return nil, err
	}
	colors := colors(MaxClasses)
	if background > 0 {
		colors[0] = colors[background]
	}
	out, share := &Image{Size: im.Size, Channels: 3, Bits: 8, Pix: make([]float32, 3*len(l.Values))}, float32(opacity)
	for i, v := range l.Values {
		for c := range 3 {
			out.Pix[3*i+c] = gray.Pix[i]
			if int(v) != background {
				out.Pix[3*i+c] += share * (colors[v][c] - gray.Pix[i])
			}
		}
	}
	return out, nil
}

func colors(classes int) [][3]float32 {
	colors := make([][3]float32, classes)
	for i := range colors {
		colors[i] = Color(i)
	}
	return colors
}

// flat returns an error if a map is not one of so many classes that a picture can show.
func (l *Labels) flat(classes int) error {
	if err := l.check(); err != nil {
		return err
	}
	if classes < 1 || classes > MaxClasses {
		return fmt.Errorf("images: %d classes, want 1 to %d", classes, MaxClasses)
	}
	if len(l.Size) != 2 {
		return fmt.Errorf("images: labels of %s, want 2 axes; Slice cuts an image out of a volume", sizeString(l.Size))
	}
	for i, v := range l.Values {
		if v < 0 || int(v) >= classes {
			return fmt.Errorf("images: the cell at row %d, column %d has class %d, want 0 to %d; Classes.Index makes classes of a label's values", i/l.Size[1], i%l.Size[1], v, classes-1)
		}
	}
	return size.Of(12, l.Size...).Fits("the pixels")
}

func sameSize(image, labels []int) error {
	if sizeString(image) != sizeString(labels) {
		return fmt.Errorf("the image has %s cells, but its labels %s: both must be equal", sizeString(image), sizeString(labels))
	}
	return nil
}

// Beside returns images of one height side by side, with gap white columns between them. It is coloured if one of them is.
func Beside(gap int, all ...*Image) (*Image, error) {
	if len(all) == 0 {
		return nil, errors.New("images: there are no images to put side by side")
	}
	if gap < 0 || gap > 1<<16 {
		return nil, fmt.Errorf("images: the gap is %d columns, want 0 to 65536", gap)
	}
	channels, width, widths := 1, gap*(len(all)-1), size.Bytes(0)
	for i, im := range all {
		if err := im.flat(); err != nil {
			return nil, err
		}
		if im.Size[0] != all[0].Size[0] {
			return nil, fmt.Errorf("images: image %d has %d rows, but the first one %d: images side by side have one height", i, im.Size[0], all[0].Size[0])
		}
		channels, width = max(channels, im.Channels), width+im.Size[1]
		widths = widths.Plus(size.Bytes(im.Size[1]))
	}
	if err := widths.Times(all[0].Size[0]).Times(24).Fits("the images side by side"); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	out, err := New([]int{all[0].Size[0], width}, channels)
	if err != nil {
		return nil, err
	}
	out.Bits = 8
	for i := range out.Pix {
		out.Pix[i] = 1
	}
	left := 0
	for _, im := range all {
		if channels == 3 {
			if im, err = im.Color(); err != nil {
				return nil, err
			}
		}
		n := im.Size[1] * channels
		for y := range im.Size[0] {
			copy(out.Pix[(y*width+left)*channels:], im.Pix[y*n:(y+1)*n])
		}
		left += im.Size[1] + gap
	}
	return out, nil
}
