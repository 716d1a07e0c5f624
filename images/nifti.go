package images

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// header is the header of a NIfTI-1 file, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h, field by field.
type header struct {
	Size                      int32
	_                         [36]byte
	Dim                       [8]int16 // number of axes; sizes from the fastest
	Intent                    [3]float32
	IntentCode                int16
	Type, Bits                int16
	SliceStart                int16
	Pixdim                    [8]float32 // sign of the qform; spacing from the fastest axis
	Offset                    float32
	Slope, Inter              float32
	SliceEnd                  int16
	SliceCode                 int8
	Units                     uint8
	CalMax, CalMin            float32
	SliceDuration, TimeOffset float32
	_                         [8]byte
	Description               [80]byte
	Aux                       [24]byte
	QForm, SForm              int16
	Quaternion                [3]float32
	QOffset                   [3]float32
	Rows                      [3][4]float32
	IntentName                [16]byte
	Magic                     [4]byte
}

const (
	headerBytes = 348
	dataOffset  = 352 // of a single file without extensions
)

// ReadNIfTI reads a NIfTI-1 file, .nii or .nii.gz, of either byte order, with any type of integers or floating-point numbers. Read calls it for
// files of this format.
//
// Size is (depth, height, width), which are the axes k, j and i of the file, so a volume is not turned; a file of two axes is an image. The
// channels are the steps along the fourth axis. Values are slope · value + intercept (scl_slope, scl_inter). Affine is the sform if there is one,
// else the qform; Spacing is from pixdim.
//
// Complex numbers, colours, more than four axes, and headers that contradict the length of the file are errors that name the file.
func ReadNIfTI(path string) (*Image, error) { return readVolume(path, readNIfTI) }

// ReadNIfTILabels reads labels from a NIfTI-1 file of two or three axes. Values must be integers after slope and intercept.
func ReadNIfTILabels(path string) (*Labels, error) { return readVolume(path, readNIfTILabels) }

func readVolume[T any](path string, f func([]byte) (T, error)) (t T, err error) {
	t, err = read(path, func([]byte) (t T, err error) { return t, errors.New("is no NIfTI-1 file, .nii or .nii.gz") }, f)
	if err != nil {
		return t, fmt.Errorf("images: %w", err)
	}
	return t, nil
}

// isNIfTI reports whether a file begins like a NIfTI-1 file or a compressed file, which no other format that is read does.
func isNIfTI(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\x1f\x8b")) || len(data) >= 4 && (binary.LittleEndian.Uint32(data) == headerBytes || binary.BigEndian.Uint32(data) == headerBytes)
}

// volume is a NIfTI file whose header has been checked.
type volume struct {
	*header
	order    binary.ByteOrder
	sizes    []int // i, j, k
	channels int
	data     []byte // of the values
}

// open reads and checks a file. Of a compressed one it decompresses no more than the header says that there is.
func open(file []byte) (*volume, error) {
	var in io.Reader = bytes.NewReader(file)
	compressed := bytes.HasPrefix(file, []byte("\x1f\x8b"))
	if compressed {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("begins like a compressed file: %w", err)
		}
		in = z
	}
	head := make([]byte, headerBytes)
	if n, err := io.ReadFull(in, head); err != nil {
		return nil, fmt.Errorf("has %d bytes, want a header of %d: %w", n, headerBytes, err)
	}
	v := &volume{header: &header{}, order: binary.LittleEndian}
	if binary.BigEndian.Uint32(head) == headerBytes {
		v.order = binary.BigEndian
	}
	if _, err := binary.Decode(head, v.order, v.header); err != nil {
		return nil, err
	}
	bytesEach, err := v.check()
	if err != nil {
		return nil, err
	}
	need := size.Of(uintptr(bytesEach), append([]int{v.channels}, v.sizes...)...)
	what := fmt.Sprintf("the %s values that the header claims", sizeString(append(append([]int(nil), v.sizes...), v.channels)))
	if err := need.Plus(size.Of(4, append([]int{v.channels}, v.sizes...)...)).Fits(what); err != nil {
		return nil, err
	}
	skip := int64(v.Offset) - headerBytes
	if !compressed {
		if have := int64(len(file)) - int64(v.Offset); have < int64(need) {
			return nil, fmt.Errorf("%s need %d bytes from byte %d on, but the file has %d bytes: it is truncated", what, need, int64(v.Offset), len(file))
		}
		v.data = file[int64(v.Offset):][:need]
		return v, nil
	}
	// Deflate turns a byte into at most 1032.
	if most := size.Bytes(len(file)).Times(1032); need > most {
		return nil, fmt.Errorf("%s need %d bytes, but the %d bytes of the compressed file hold at most %d: it is truncated", what, need, len(file), most)
	}
	if n, err := io.CopyN(io.Discard, in, skip); err != nil {
		return nil, fmt.Errorf("the values begin at byte %d, but the file ends after %d: it is truncated", int64(v.Offset), headerBytes+n)
	}
	v.data = make([]byte, need)
	if n, err := io.ReadFull(in, v.data); err != nil {
		return nil, fmt.Errorf("%s need %d bytes, but the file has %d: %w", what, need, n, err)
	}
	// The checksum stands at the end, at most after some bytes that are none of ours.
	if _, err := io.CopyN(io.Discard, in, 1<<20); err != nil && err != io.EOF {
		return nil, fmt.Errorf("the compressed data are damaged: %w", err)
	}
	return v, nil
}

// check returns the bytes of a value, or an error for a header that is absurd or of something that is not read.
func (v *volume) check() (bytesEach int, err error) {
	if v.Size == 540 || v.Size == 0x1c020000 { // in either byte order
		return 0, errors.New("is a NIfTI-2 file, want NIfTI-1")
	}
	switch string(v.Magic[:]) {
	case "n+1\x00":
	case "ni1\x00":
		return 0, errors.New("is the header of a pair .hdr and .img, want one file, .nii or .nii.gz")
	default:
		return 0, fmt.Errorf("has the magic number %q, want %q: it is no NIfTI-1 file", v.Magic[:], "n+1\x00")
	}
	axes := int(v.Dim[0])
	if axes < 1 || axes > 7 {
		return 0, fmt.Errorf("dim[0] is %d, want 2 to 4 axes", axes)
	}
	v.channels = 1
	for a, n := range v.Dim[1 : axes+1] {
		switch {
		case n < 1:
			return 0, fmt.Errorf("dim[%d] is %d, want at least 1", a+1, n)
		case a < 3:
			v.sizes = append(v.sizes, int(n))
		case a == 3:
			v.channels = int(n)
		case n > 1:
			return 0, fmt.Errorf("has %d axes, dim[%d] of %d, want at most four", axes, a+1, n)
		}
	}
	if axes == 1 {
		return 0, errors.New("has one axis, want 2 to 4")
	}
	t, ok := types[v.Type]
	if !ok {
		return 0, fmt.Errorf("has values of type %d (%s), want integers or floating-point numbers of 8 to 64 bits", v.Type, typeName(v.Type))
	}
	if finite := func(x float32) bool { return !math.IsNaN(float64(x)) && !math.IsInf(float64(x), 0) }; v.Slope != 0 && finite(v.Slope) && !finite(v.Inter) {
		return 0, fmt.Errorf("scl_inter is %v beside scl_slope of %v, want a finite number", v.Inter, v.Slope)
	}
	for a := range v.sizes {
		if p := math.Abs(float64(v.Pixdim[a+1])); p != 0 && !(p >= leastSpacing && p <= mostSpacing) {
			return 0, fmt.Errorf("pixdim[%d] is %v, want a spacing from %g to %g, or 0 for none", a+1, v.Pixdim[a+1], leastSpacing, mostSpacing)
		}
	}
	if err := v.checkForms(); err != nil {
		return 0, err
	}
	if int(v.Bits) != 8*t.bytes {
		return 0, fmt.Errorf("bitpix is %d, but values of type %d (%s) have %d bits", v.Bits, v.Type, t.name, 8*t.bytes)
	}
	if !(v.Offset >= dataOffset && v.Offset <= 1<<30) || v.Offset != float32(int(v.Offset)) {
		return 0, fmt.Errorf("vox_offset is %v, want an integer from %d to %d", v.Offset, dataOffset, 1<<30)
	}
	return t.bytes, nil
}

// checkForms returns an error if the form that is used, sform or else qform, is none.
func (h *header) checkForms() error {
	used, numbers := "sform", append(append(append([]float32(nil), h.Rows[0][:]...), h.Rows[1][:]...), h.Rows[2][:]...)
	if h.SForm <= 0 {
		used, numbers = "qform", append(append([]float32(nil), h.Quaternion[:]...), h.QOffset[:]...)
	}
	if h.SForm <= 0 && h.QForm <= 0 {
		return nil
	}
	for _, x := range numbers {
		if !(math.Abs(float64(x)) <= 1e9) {
			return fmt.Errorf("the %s has the number %v, want finite ones", used, x)
		}
	}
	if b, c, d := float64(h.Quaternion[0]), float64(h.Quaternion[1]), float64(h.Quaternion[2]); used == "qform" && b*b+c*c+d*d > 1.001 {
		return fmt.Errorf("the quaternion of the qform is (%v, %v, %v), want a length of at most 1", b, c, d)
	}
	return nil
}

// types are the types of values that are read. value returns the value at the beginning of b.
var types = map[int16]struct {
	name  string
	bytes int
	value func(o binary.ByteOrder, b []byte) float64
}{
	2:    {"uint8", 1, func(_ binary.ByteOrder, b []byte) float64 { return float64(b[0]) }},
	4:    {"int16", 2, func(o binary.ByteOrder, b []byte) float64 { return float64(int16(o.Uint16(b))) }},
	8:    {"int32", 4, func(o binary.ByteOrder, b []byte) float64 { return float64(int32(o.Uint32(b))) }},
	16:   {"float32", 4, func(o binary.ByteOrder, b []byte) float64 { return float64(math.Float32frombits(o.Uint32(b))) }},
	64:   {"float64", 8, func(o binary.ByteOrder, b []byte) float64 { return math.Float64frombits(o.Uint64(b)) }},
	256:  {"int8", 1, func(_ binary.ByteOrder, b []byte) float64 { return float64(int8(b[0])) }},
	512:  {"uint16", 2, func(o binary.ByteOrder, b []byte) float64 { return float64(o.Uint16(b)) }},
	768:  {"uint32", 4, func(o binary.ByteOrder, b []byte) float64 { return float64(o.Uint32(b)) }},
	1024: {"int64", 8, func(o binary.ByteOrder, b []byte) float64 { return float64(int64(o.Uint64(b))) }},
	1280: {"uint64", 8, func(o binary.ByteOrder, b []byte) float64 { return float64(o.Uint64(b)) }},
}

func typeName(t int16) string {
	switch t {
	case 1:
		return "bits"
	case 32, 1792, 2048:
		return "complex numbers"
	case 128, 2304:
		return "colours"
	case 1536:
		return "float128"
	}
	return "not a type of NIfTI-1"
}

// each calls f with the index and the value, scaled, of each value from one index to another.
func (v *volume) each(from, to int, f func(i int, x float64)) {
	t := types[v.Type]
	// Values are not scaled if scl_slope is 0, or no finite number, as nibabel has it.
	slope, inter := float64(v.Slope), float64(v.Inter)
	if slope == 0 || math.IsNaN(slope) || math.IsInf(slope, 0) {
		slope, inter = 1, 0
	}
	for i := from; i < to; i++ {
		x := t.value(v.order, v.data[i*t.bytes:])
		if slope != 1 || inter != 0 {
			x = x*slope + inter
		}
		f(i, x)
	}
}

func readNIfTI(file []byte) (*Image, error) {
	v, err := open(file)
	if err != nil {
		return nil, err
	}
	im := &Image{Size: reversed(v.sizes), Channels: v.channels, Grid: v.grid()}
	n := size.Product(v.sizes...)
	im.Pix = make([]float32, n*v.channels)
	row := v.sizes[0]
	return im, parallel(n/row, 0, func(y int) error {
		for c := range v.channels {
			v.each(c*n+y*row, c*n+(y+1)*row, func(i int, x float64) { im.Pix[(i-c*n)*v.channels+c] = float32(x) })
		}
		return nil
	})
}

func readNIfTILabels(file []byte) (*Labels, error) {
	v, err := open(file)
	if err != nil {
		return nil, err
	}
	if v.channels != 1 {
		return nil, fmt.Errorf("has %d steps along the fourth axis, want labels with 1", v.channels)
	}
	l := &Labels{Size: reversed(v.sizes), Grid: v.grid()}
	n := size.Product(v.sizes...)
	l.Values = make([]int32, n)
	row := v.sizes[0]
	return l, parallel(n/row, 0, func(y int) (err error) {
		v.each(y*row, (y+1)*row, func(i int, x float64) {
			if r := math.Round(x); err == nil && !(math.Abs(x-r) <= 1e-3 && math.Abs(r) <= math.MaxInt32) {
				err = fmt.Errorf("the label at index %v is %v, want an integer of 32 bits", v.index(i), x)
			} else if err == nil {
				l.Values[i] = int32(r)
			}
		})
		return err
	})
}

// index returns the indices (i, j, k) of a value.
func (v *volume) index(n int) (at []int) {
	for _, s := range v.sizes {
		at, n = append(at, n%s), n/s
	}
	return at
}

func reversed(n []int) []int {
	r := make([]int, len(n))
	for i, v := range n {
		r[len(n)-1-i] = v
	}
	return r
}

// grid returns spacing and affine of a file.
func (v *volume) grid() Grid {
	g := Grid{nifti: v.header}
	var spacing [3]float64
	for a := range spacing {
		if spacing[a] = math.Abs(float64(v.Pixdim[a+1])); spacing[a] == 0 || a >= len(v.sizes) && !(spacing[a] <= mostSpacing) {
			spacing[a] = 1 // not said, which is usual for axes that are not there
		}
	}
	for a := len(v.sizes) - 1; a >= 0; a-- {
		g.Spacing = append(g.Spacing, spacing[a])
	}
	g.Affine = v.affine(spacing)
	return g
}

// affine returns the sform, else the qform, else nil.
func (h *header) affine(spacing [3]float64) *[3][4]float64 {
	var m [3][4]float64
	switch {
	case h.SForm > 0:
		for r := range 3 {
			for c := range 4 {
				m[r][c] = float64(h.Rows[r][c])
			}
		}
	case h.QForm > 0:
		h.rotation(&m)
		if h.Pixdim[0] < 0 {
			spacing[2] = -spacing[2]
		}
		for r := range 3 {
			for c, s := range spacing {
				m[r][c] *= s
			}
			m[r][3] = float64(h.QOffset[r])
		}
	default:
		return nil
	}
	return &m
}

// rotation writes the rotation of the quaternion, as nifti1.h describes it.
func (h *header) rotation(m *[3][4]float64) {
	b, c, d := float64(h.Quaternion[0]), float64(h.Quaternion[1]), float64(h.Quaternion[2])
	a := 1 - b*b - c*c - d*d
	if a < 1e-7 { // half a turn: make the vector of length one
		n := 1 / math.Sqrt(b*b+c*c+d*d)
		a, b, c, d = 0, b*n, c*n, d*n
	} else {
		a = math.Sqrt(a)
	}
	*m = [3][4]float64{
		{a*a + b*b - c*c - d*d, 2 * (b*c - a*d), 2 * (b*d + a*c)},
		{2 * (b*c + a*d), a*a + c*c - b*b - d*d, 2 * (c*d - a*b)},
		{2 * (b*d - a*c), 2 * (c*d + a*b), a*a + d*d - b*b - c*c},
	}
}

// WriteNIfTI writes an image of two or three axes as a NIfTI-1 file of float32, compressed if path ends in .gz. On the grid of an image that was
// read from a NIfTI file, spacing, sform, qform, units and description are those of that file; otherwise the sform is Affine. A file of that
// name is replaced as a whole.
func WriteNIfTI(path string, im *Image) error {
	if err := im.check(); err != nil {
		return err
	}
	n := len(im.Pix) / im.Channels
	return writeNIfTI(path, im.Size, im.Channels, im.Grid, 16, 4, func(b []byte, i int) {
		binary.LittleEndian.PutUint32(b, math.Float32bits(im.Pix[i%n*im.Channels+i/n]))
	})
}

// WriteNIfTILabels is WriteNIfTI for labels. Values are written in the smallest of uint8, int16 and int32 that holds them all.
func WriteNIfTILabels(path string, l *Labels) error {
	if err := l.check(); err != nil {
		return err
	}
	least, most := int32(0), int32(0)
	for _, v := range l.Values {
		least, most = min(least, v), max(most, v)
	}
	switch {
	case least >= 0 && most <= math.MaxUint8:
		return writeNIfTI(path, l.Size, 1, l.Grid, 2, 1, func(b []byte, i int) { b[0] = uint8(l.Values[i]) })
	case least >= math.MinInt16 && most <= math.MaxInt16:
		return writeNIfTI(path, l.Size, 1, l.Grid, 4, 2, func(b []byte, i int) { binary.LittleEndian.PutUint16(b, uint16(l.Values[i])) })
	}
	return writeNIfTI(path, l.Size, 1, l.Grid, 8, 4, func(b []byte, i int) { binary.LittleEndian.PutUint32(b, uint32(l.Values[i])) })
}

func writeNIfTI(path string, sizes []int, channels int, g Grid, dataType int16, bytesEach int, put func(b []byte, i int)) error {
	if !volumeName(path) {
		return fmt.Errorf("images: the name of the NIfTI file is %q, want one that ends in .nii or .nii.gz", path)
	}
	h, err := newHeader(sizes, channels, g, dataType, bytesEach)
	if err != nil {
		return fmt.Errorf("images: %s: %w", path, err)
	}
	err = tensorfile.Replace(path, func(w io.Writer) error {
		if !strings.HasSuffix(strings.ToLower(path), ".gz") {
			return h.write(w, size.Product(sizes...)*channels, bytesEach, put)
		}
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		return errors.Join(h.write(z, size.Product(sizes...)*channels, bytesEach, put), z.Close())
	})
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

// newHeader returns the header of a file on a grid.
func newHeader(sizes []int, channels int, g Grid, dataType int16, bytesEach int) (*header, error) {
	h := header{Units: 2, Pixdim: [8]float32{1, 1, 1, 1, 1, 1, 1, 1}} // millimetres
	if g.nifti != nil {
		h = *g.nifti
	}
	h.Size, h.Magic, h.Offset, h.Type, h.Bits = headerBytes, [4]byte{'n', '+', '1'}, dataOffset, dataType, int16(8*bytesEach)
	h.Slope, h.Inter, h.CalMin, h.CalMax = 1, 0, 0, 0
	h.Dim = [8]int16{int16(len(sizes)), 1, 1, 1, 1, 1, 1, 1}
	for a, n := range reversed(sizes) {
		if n > math.MaxInt16 {
			return nil, fmt.Errorf("the size is %s, want at most %d along an axis of a NIfTI-1 file", sizeString(sizes), math.MaxInt16)
		}
		h.Dim[a+1] = int16(n)
		if g.Spacing != nil {
			h.Pixdim[a+1] = float32(g.Spacing[len(sizes)-1-a])
		}
	}
	if channels > math.MaxInt16 {
		return nil, fmt.Errorf("%d channels, want at most %d in a NIfTI-1 file", channels, math.MaxInt16)
	}
	if channels > 1 { // the third axis of an image is one
		h.Dim[0], h.Dim[4] = 4, int16(channels)
	}
	var old *[3][4]float64 // the grid of the file that was read: its forms stay as they are
	if g.nifti != nil {
		old = (&volume{header: g.nifti, sizes: sizes}).grid().Affine
	}
	if g.Affine != nil && (old == nil || *g.Affine != *old) {
		h.SForm, h.QForm = max(h.SForm, 1), 0
		for r := range 3 {
			for c := range 4 {
				h.Rows[r][c] = float32(g.Affine[r][c])
			}
		}
	}
	return &h, nil
}

// write writes a file with n values.
func (h *header) write(w io.Writer, n, bytesEach int, put func(b []byte, i int)) error {
	b := bufio.NewWriterSize(w, 1<<16)
	if err := binary.Write(b, binary.LittleEndian, h); err != nil {
		return err
	}
	_, _ = b.Write(make([]byte, dataOffset-headerBytes)) // no extensions; Flush returns the error of any Write
	var value [8]byte
	for i := range n {
		put(value[:], i)
		_, _ = b.Write(value[:bytesEach])
	}
	return b.Flush()
}
