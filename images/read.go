package images

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/tiff"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// Read reads a PNG, JPEG or TIFF image of 8 or 16 bits, or a NIfTI-1 file (.nii, .nii.gz). The contents of the file say which it is, not its
// name.
//
// A grey image has one channel, a coloured one three: red, green, blue. Transparency is dropped, and an orientation in Exif data is not
// applied. A TIFF file must have one page of integers. The errors name the file, what it has and what is allowed; the size that a header
// claims is compared with the memory and with the length of the file before anything is allocated.
func Read(path string) (*Image, error) {
	im, err := read(path, decodeImage, readNIfTI)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	return im, nil
}

// ReadLabels reads a map of labels from a PNG or TIFF file of 8 or 16 bits, or from a NIfTI-1 file. JPEG is an error, since it changes the
// values.
func ReadLabels(path string) (*Labels, error) {
	l, err := read(path, decodeLabels, readNIfTILabels)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	return l, nil
}

// mostBytes is the largest file that is read.
const mostBytes = 1 << 38

func read[T any](path string, decode func([]byte) (T, error), volume func([]byte) (T, error)) (t T, err error) {
	data, err := tensorfile.ReadFile(path, mostBytes)
	if err != nil {
		return t, err
	}
	if isNIfTI(data) {
		t, err = volume(data)
	} else {
		t, err = decode(data)
	}
	if err != nil {
		return t, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// format returns what a file is by its first bytes.
func format(data []byte) string {
	for _, f := range []struct{ name, magic string }{
		{"PNG", "\x89PNG\r\n\x1a\n"}, {"JPEG", "\xff\xd8"}, {"TIFF", "II*\x00"}, {"TIFF", "MM\x00*"}, {"BigTIFF", "II+\x00"}, {"BigTIFF", "MM\x00+"},
		{"GIF", "GIF8"}, {"BMP", "BM"}, {"WebP", "RIFF"},
		{"NIfTI-2", "\x1c\x02\x00\x00"}, {"NIfTI-2", "\x00\x00\x02\x1c"}, // its size of a header, 540
	} {
		if bytes.HasPrefix(data, []byte(f.magic)) {
			return f.name
		}
	}
	if len(data) > 132 && string(data[128:132]) == "DICM" {
		return "DICOM"
	}
	return ""
}

// decode decodes a PNG, JPEG or TIFF image after it has checked the size that the header claims.
func decode(data []byte) (m image.Image, err error) {
	var config func() (image.Config, error)
	var pixels func() (image.Image, error)
	blank := false // a blank image can take any small number of bytes
	switch f := format(data); f {
	case "PNG":
		config, pixels = with(data, png.DecodeConfig), with(data, png.Decode)
	case "JPEG":
		config, pixels = with(data, jpeg.DecodeConfig), with(data, jpeg.Decode)
	case "TIFF":
		if blank, err = checkTIFF(data); err != nil {
			return nil, err
		}
		config, pixels = with(data, tiff.DecodeConfig), with(data, tiff.Decode)
	case "DICOM":
		return nil, errors.New("is a DICOM file, want PNG, JPEG, TIFF or NIfTI-1: dcm2niix converts DICOM to NIfTI")
	case "":
		if len(data) == 0 {
			return nil, errors.New("is empty, want a PNG, JPEG, TIFF or NIfTI-1 file")
		}
		return nil, fmt.Errorf("begins with % x, want a PNG, JPEG, TIFF or NIfTI-1 file", data[:min(8, len(data))])
	default:
		return nil, fmt.Errorf("is a %s file, want PNG, JPEG, TIFF or NIfTI-1", f)
	}
	// The decoders are not ours. They return errors for broken files; if one should panic on a hostile file, that is an error too.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the file is broken: %v", p)
		}
	}()
	c, err := config()
	if err != nil {
		return nil, err
	}
	if c.Width < 1 || c.Height < 1 {
		return nil, fmt.Errorf("the header claims %d × %d pixels, want at least 1 × 1", c.Height, c.Width)
	}
	each := uintptr(8 + 12) // bytes of a decoded pixel, and of three channels of float32
	switch c.ColorModel {
	case color.GrayModel:
		each = 1 + 4
	case color.Gray16Model:
		each = 2 + 4
	}
	if err := size.Of(each, c.Height, c.Width).Fits(fmt.Sprintf("the %d × %d pixels that the header claims", c.Height, c.Width)); err != nil {
		return nil, err
	}
	// Deflate and LZW turn a byte into at most 4096, of 8 pixels; JPEG has at least a bit for 64 pixels.
	if most := len(data) << 15; !blank && c.Height*c.Width > most {
		return nil, fmt.Errorf("the header claims %d × %d pixels, but the %d bytes of the file hold at most %d: it is truncated or not what it says", c.Height, c.Width, len(data), most)
	}
	m, err = pixels()
	if err != nil {
		return nil, fmt.Errorf("%d × %d pixels by its header: %w", c.Height, c.Width, err)
	}
	return m, nil
}

func with[T any](data []byte, f func(io.Reader) (T, error)) func() (T, error) {
	return func() (T, error) { return f(bytes.NewReader(data)) }
}

// decodeImage returns a file as values from 0 to 1.
func decodeImage(data []byte) (*Image, error) {
	m, err := decode(data)
	if err != nil {
		return nil, err
	}
	b := m.Bounds()
	height, width := b.Dy(), b.Dx()
	im := &Image{Size: []int{height, width}, Channels: 3, Bits: 8}
	if gray(m, data) {
		im.Channels = 1
	}
	if deep(m) {
		im.Bits = 16
	}
	im.Pix = make([]float32, height*width*im.Channels)
	return im, parallel(height, 0, func(y int) error {
		row := im.Pix[y*width*im.Channels:][:width*im.Channels]
		switch m := m.(type) {
		case *image.Gray:
			for x, v := range m.Pix[y*m.Stride:][:width] {
				row[x] = float32(v) / 255
			}
		case *image.Gray16:
			for x := range row {
				p := m.Pix[y*m.Stride+2*x:]
				row[x] = float32(uint16(p[0])<<8|uint16(p[1])) / 65535
			}
		default:
			for x := range width {
				r, g, b := rgb(m, b.Min.X+x, b.Min.Y+y)
				if im.Channels == 1 {
					row[x] = float32(r) / 65535
				} else {
					row[3*x], row[3*x+1], row[3*x+2] = float32(r)/65535, float32(g)/65535, float32(b)/65535
				}
			}
		}
		return nil
	})
}

// gray reports whether an image has grey pixels only, by its header.
func gray(m image.Image, data []byte) bool {
	switch m := m.(type) {
	case *image.Gray, *image.Gray16:
		return true
	case *image.Paletted:
		for _, c := range m.Palette {
			if r, g, b, _ := c.RGBA(); r != g || g != b {
				return false
			}
		}
		return true
	}
	return format(data) == "PNG" && len(data) > 25 && data[25]&2 == 0 // grey with transparency: bit 1 of the colour type means colour
}

// deep reports whether an image has 16 bits for a channel.
func deep(m image.Image) bool {
	switch m.(type) {
	case *image.Gray16, *image.RGBA64, *image.NRGBA64:
		return true
	}
	return false
}

// rgb returns the colour of a pixel in 16 bits. What transparency has hidden is shown.
func rgb(m image.Image, x, y int) (r, g, b uint32) {
	var c color.Color
	switch m := m.(type) { // without an allocation for each pixel
	case *image.RGBA:
		if c := m.RGBAAt(x, y); c.A == 255 {
			return 257 * uint32(c.R), 257 * uint32(c.G), 257 * uint32(c.B)
		}
		c = m.At(x, y)
	case *image.NRGBA:
		c := m.NRGBAAt(x, y)
		return 257 * uint32(c.R), 257 * uint32(c.G), 257 * uint32(c.B)
	case *image.RGBA64:
		if c := m.RGBA64At(x, y); c.A == 65535 {
			return uint32(c.R), uint32(c.G), uint32(c.B)
		}
		c = m.At(x, y)
	case *image.NRGBA64:
		c := m.NRGBA64At(x, y)
		return uint32(c.R), uint32(c.G), uint32(c.B)
	case *image.YCbCr:
		r, g, b, _ := m.YCbCrAt(x, y).RGBA()
		return r, g, b
	case *image.Paletted:
		c = m.Palette[m.ColorIndexAt(x, y)]
		if c, ok := c.(color.NRGBA); ok {
			return 257 * uint32(c.R), 257 * uint32(c.G), 257 * uint32(c.B)
		}
	default:
		c = m.At(x, y)
	}
	n := color.NRGBA64Model.Convert(c).(color.NRGBA64)
	return uint32(n.R), uint32(n.G), uint32(n.B)
}

// decodeLabels returns a file as its own values.
func decodeLabels(data []byte) (*Labels, error) {
	if format(data) == "JPEG" {
		return nil, errors.New("is a JPEG file, which changes the values of labels: want PNG, TIFF or NIfTI-1")
	}
	m, err := decode(data)
	if err != nil {
		return nil, err
	}
	b := m.Bounds()
	height, width := b.Dy(), b.Dx()
	l := &Labels{Size: []int{height, width}, Values: make([]int32, height*width)}
	one := gray(m, data)
	return l, parallel(height, 0, func(y int) error {
		row := l.Values[y*width:][:width]
		switch m := m.(type) {
		case *image.Gray:
			for x, v := range m.Pix[y*m.Stride:][:width] {
				row[x] = int32(v)
			}
		case *image.Gray16:
			for x := range row {
				p := m.Pix[y*m.Stride+2*x:]
				row[x] = int32(p[0])<<8 | int32(p[1])
			}
		case *image.Paletted:
			for x, v := range m.Pix[y*m.Stride:][:width] {
				row[x] = int32(v)
			}
		default:
			for x := range row {
				r, g, b := rgb(m, b.Min.X+x, b.Min.Y+y)
				switch {
				case (one || r == g && g == b) && deep(m):
					row[x] = int32(r)
				case one || r == g && g == b:
					row[x] = int32(r >> 8)
				case deep(m):
					return fmt.Errorf("the label at row %d, column %d is a colour of 16 bits for a channel (%d, %d, %d), want grey, a palette, or 8 bits", y, x, r, g, b)
				default:
					row[x] = int32(colored | r>>8<<16 | g>>8<<8 | b>>8)
				}
			}
		}
		return nil
	})
}

// colored marks the values of coloured labels.
const colored = 1 << 24
