package images

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/jpeg"
	"image/png"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/image/tiff"
)

// claim returns a PNG whose header claims another size.
func claim(data []byte, width, height uint32) []byte {
	data = slices.Clone(data)
	binary.BigEndian.PutUint32(data[16:], width)
	binary.BigEndian.PutUint32(data[20:], height)
	binary.BigEndian.PutUint32(data[29:], crc32.ChecksumIEEE(data[12:29]))
	return data
}

// tag sets the value of a short or long tag of the only page of a little-endian TIFF file.
func tag(data []byte, id uint16, value uint32) []byte {
	data = slices.Clone(data)
	at := binary.LittleEndian.Uint32(data[4:])
	for i := range uint32(binary.LittleEndian.Uint16(data[at:])) {
		if entry := data[at+2+12*i:]; binary.LittleEndian.Uint16(entry) == id {
			if value > 1<<16 {
				binary.LittleEndian.PutUint16(entry[2:], 4) // a long
			}
			binary.LittleEndian.PutUint32(entry[8:], value)
			return data
		}
	}
	panic("no such tag")
}

// Files nobody should trust: each is an error that names the file, what it has and what is allowed, before the claimed size is allocated.
func TestHostileImages(t *testing.T) {
	dir := t.TempDir()
	m := image.NewGray(image.Rect(0, 0, 20, 10))
	asPNG, asJPG, asTIF := encoded(t, m, png.Encode), encoded(t, m, asJPEG), encoded(t, m, asTIFF)
	colour := encoded(t, image.NewNRGBA(m.Rect), asTIFF)
	planes, bits := slices.Clone(colour), slices.Clone(colour)
	for at, n := binary.LittleEndian.Uint32(colour[4:])+2, 0; n < int(binary.LittleEndian.Uint16(colour[binary.LittleEndian.Uint32(colour[4:]):])); at, n = at+12, n+1 {
		switch binary.LittleEndian.Uint16(colour[at:]) {
		case 258:
			copy(bits[at+4:], []byte{1, 0, 0, 0, 8, 0, 0, 0})
		case 282: // becomes 284
			copy(planes[at:], []byte{0x1c, 1, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0})
		}
	}
	large := slices.Clone(asJPG) // the frame has 16 bits for each size
	frame := bytes.Index(large, []byte{0xff, 0xc0})
	copy(large[frame+5:], []byte{0xff, 0xff, 0xff, 0xff})
	second := slices.Clone(asTIF) // a second page at the end, after the first one's tags
	first := binary.LittleEndian.Uint32(second[4:])
	next := first + 2 + 12*uint32(binary.LittleEndian.Uint16(second[first:]))
	loop := slices.Clone(asTIF)
	binary.LittleEndian.PutUint32(loop[next:], first)
	binary.LittleEndian.PutUint32(second[next:], uint32(len(second)))
	second = append(second, make([]byte, 6)...)
	floats := slices.Clone(asTIF) // the tag of the resolution's unit becomes that of the sample format
	for i := range uint32(binary.LittleEndian.Uint16(floats[first:])) {
		if entry := floats[first+2+12*i:]; binary.LittleEndian.Uint16(entry) == 296 {
			copy(entry, []byte{0x53, 0x01, 3, 0, 1, 0, 0, 0, 3, 0})
		}
	}
	for name, c := range map[string]struct {
		data []byte
		want []string
	}{
		"huge.png":   {claim(asPNG, 1<<31-1, 1<<31-1), []string{""}},
		"memory.png": {claim(asPNG, 1<<20, 1<<20), []string{"1048576 × 1048576 pixels that the header claims", "memory"}},
		"claim.png":  {claim(asPNG, 1<<14, 1<<13), []string{"claims 8192 × 16384 pixels", "hold at most", "truncated"}},
		"zero.png":   {claim(asPNG, 0, 5), []string{"dimension"}},
		"cut.png":    {asPNG[:len(asPNG)-20], []string{"10 × 20 pixels by its header", "EOF"}},
		"header.png": {asPNG[:20], []string{"EOF"}},
		"large.jpg":  {large, []string{"65535 × 65535 pixels"}},
		"cut.jpg":    {asJPG[:len(asJPG)/2], []string{"EOF"}},
		"huge.tif":   {tag(tag(asTIF, 256, 1<<31), 257, 1<<31), []string{"2147483648 × 2147483648", "memory"}},
		"claim.tif":  {tag(tag(asTIF, 256, 1<<14), 257, 1<<13), []string{"claims 8192 × 16384 pixels"}},
		"zero.tif":   {tag(asTIF, 256, 0), []string{"10 × 0 pixels, want at least 1"}},
		"cut.tif":    {asTIF[:len(asTIF)-30], []string{"truncated"}},
		"header.tif": {asTIF[:6], []string{"6 bytes"}},
		"pages.tif":  {second, []string{"has 2 pages, want 1"}},
		"loop.tif":   {loop, []string{"no end"}},
		"float.tif":  {floats, []string{"floating-point", "8 or 16 bits"}},
		"deep.tif":   {tag(asTIF, 258, 32), []string{"samples of 32 bits"}},
		"planes.tif": {planes, []string{"has 4 planes"}},
		"bits.tif":   {bits, []string{"the bits of 1 sample", "4 samples"}},
		"2.nii":      {append([]byte{0x1c, 2, 0, 0}, make([]byte, 600)...), []string{"is a NIfTI-2 file"}},
		"big.tif":    {[]byte("II+\x00\x08\x00\x00\x00"), []string{"BigTIFF"}},
		"photo.gif":  {[]byte("GIF89a"), []string{"GIF", "want PNG"}},
		"scan.dcm":   {append(make([]byte, 128), "DICM\x02\x00"...), []string{"DICOM", "dcm2niix"}},
		"text.png":   {[]byte("hello, world"), []string{"begins with 68 65", "want a PNG"}},
		"empty.png":  {nil, []string{"is empty"}},
		"cut.nii.gz": {[]byte("\x1f\x8b"), []string{"compressed"}},
	} {
		path := save(t, dir, name, c.data)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Read(path)
		wantError(t, err, append(c.want, path)...)
		_, err = ReadLabels(path)
		wantError(t, err, path)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d MiB were allocated", name, n>>20)
		}
	}
	_, err := Read(filepath.Join(dir, "missing.png"))
	wantError(t, err, "missing.png")
	_, err = Read(dir)
	wantError(t, err, dir)

	// An image of one pixel can be read, predicted and written; it is an error to train on it.
	path := save(t, dir, "one.png", grayFile(t, 1, 1, 51))
	pair := Pair{Name: "one", Image: path, Label: path}
	s, err := pair.Read()
	if err != nil || !slices.Equal(s.Image.Pix, []float32{0.2}) || !slices.Equal(s.Labels.Values, []int32{51}) {
		t.Fatalf("%v, error %v", s, err)
	}
	if l, err := (Windows{Size: []int{4, 4}, Flips: true}).Labels(s.Image, 2, pointwise(1)); err != nil || len(l.Values) != 1 {
		t.Errorf("%v, error %v", l, err)
	}
	if err := WritePNG(path, s.Image); err != nil {
		t.Error(err)
	}
	_, _, err = ReadPairs([]Pair{pair}, nil)
	wantError(t, err, path, "1 × 1 cells, want more than one")
	_, err = Patches{Size: []int{4, 4}}.Draw(s, 1)
	wantError(t, err, `"one"`, "1 × 1 cells, want more than one")
}

// A broken PNG, JPEG or TIFF file is an error and no panic; labels and values have the image's size.
func FuzzImage(f *testing.F) {
	for _, m := range []image.Image{image.NewGray(image.Rect(0, 0, 5, 3)), image.NewNRGBA64(image.Rect(0, 0, 3, 5)), image.NewRGBA(image.Rect(0, 0, 17, 9))} {
		for _, e := range [][]byte{encoded(f, m, png.Encode), encoded(f, m, asJPEG), encoded(f, m, asTIFF)} {
			f.Add(e)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, config := range []func() (image.Config, error){with(data, png.DecodeConfig), with(data, jpeg.DecodeConfig), with(data, tiff.DecodeConfig)} {
			if c, err := config(); err == nil && (c.Width > 1<<10 || c.Height > 1<<10) {
				return // it may be right, and takes long
			}
		}
		im, err := decodeImage(data)
		if err == nil {
			err = im.check()
			if err != nil {
				t.Fatal(err)
			}
		}
		if l, err := decodeLabels(data); err == nil {
			if err := l.check(); err != nil || !slices.Equal(l.Size, im.Size) {
				t.Fatalf("labels of %v, error %v, want %v", l.Size, err, im.Size)
			}
		}
	})
}
