package tensorfile

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/size"
)

// Tensor is a tensor on file. Its elements lie one after another.
type Tensor struct {
	Name         string
	Dtype        Dtype
	Shape        []int
	File         Contents
	Offset, Size int64 // in bytes, from the beginning of the file
}

// How large the description of the tensors may be. The largest published Mamba, of 64 layers, needs a hundredth of it. Decoding a
// description of this size takes little memory beside any model.
const (
	maxHeader  = 8 << 20
	maxTensors = 1 << 14
	MaxName    = 512 // bytes of a tensor's name
	MaxRank    = 8   // axes of a tensor
)

// checksum is the name in the metadata of the checksum that WriteSealed computes.
const checksum = "sha256"

// File is an open file in the safetensors format: 8 bytes with the length of a header, the header in JSON, and the data that the
// header describes.
type File struct {
	Tensors  []*Tensor // in the order of their data
	Metadata map[string]string
	contents Contents
	header   []byte // with its length
	size     int64
}

// Open opens a file and reads its header. Close it. Anything but a regular file is an error at once. No number in the header is
// believed before it is checked against the size of the file.
func Open(path string) (*File, error) {
	f, err := OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	contents := Map(f, info.Size())
	file, err := Read(contents, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), contents.Close())
	}
	return file, nil
}

// ReadFile returns the contents of a regular file of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) { return readFile(system{}, path, limit) }

func readFile(o opener, path string, limit int64) ([]byte, error) {
	f, err := openRegular(o, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	text, err := ReadAll(f, path, limit)
	return text, errors.Join(err, f.Close())
}

// ReadAll returns the contents of an open regular file of at most limit bytes. Its errors name the file.
func ReadAll(f *os.File, name string, limit int64) ([]byte, error) {
	if err := operation("read", name); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", name, info.Size(), limit)
	}
	if err := size.Bytes(info.Size()).Fits("the contents of " + name); err != nil { // a file with holes can be larger than the disk
		return nil, err
	}
	text := make([]byte, info.Size())
	if _, err := io.ReadFull(f, text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// Read reads the header of a file of the given size.
func Read(c Contents, size int64) (*File, error) {
	if size < 8 {
		return nil, fmt.Errorf("the file has %d bytes, too few for a header", size)
	}
	var length [8]byte
	if _, err := c.ReadAt(length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > uint64(size-8) {
		return nil, fmt.Errorf("the header is said to have %d bytes, but the file has %d", n, size)
	}
	if n > maxHeader {
		return nil, fmt.Errorf("the header has %d bytes, want at most %d", n, maxHeader)
	}
	header := make([]byte, 8+n)
	if _, err := c.ReadAt(header, 0); err != nil {
		return nil, err
	}
	all, metadata, err := parseHeader(header[8:])
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	tensors := make([]*Tensor, 0, len(all))
	start := 8 + int64(n)
	for _, d := range all {
		from, to := d.DataOffsets[0], d.DataOffsets[1]
		if to < from || to > size-start {
			return nil, fmt.Errorf("%s: the data is said to be bytes %d to %d, want a part of the %d that there are", d.Name, from, to, size-start)
		}
		t := &Tensor{Name: d.Name, Dtype: d.Dtype, File: c, Offset: start + from, Size: to - from}
		for _, n := range d.Shape {
			if n > math.MaxInt {
				return nil, fmt.Errorf("%s: a dimension is %d", d.Name, n)
			}
			t.Shape = append(t.Shape, int(n))
		}
		width := d.Dtype.Size()
		if width == 0 {
			return nil, fmt.Errorf("%s: its type is %.40q, which the format does not have", d.Name, d.Dtype)
		}
		if bytes, ok := Product(t.Shape, width); !ok || bytes != t.Size {
			return nil, fmt.Errorf("%s: shape %v of %s does not make the %d bytes of its data", d.Name, t.Shape, t.Dtype, t.Size)
		}
		tensors = append(tensors, t)
	}
	// The format demands data without overlap and without holes.
	slices.SortFunc(tensors, func(a, b *Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size), strings.Compare(a.Name, b.Name))
	})
	end := start
	for _, t := range tensors {
		if t.Offset != end {
			return nil, fmt.Errorf("%s: the data starts at byte %d, want %d, where the tensor before it ends", t.Name, t.Offset-start, end-start)
		}
		end += t.Size
	}
	if end != size {
		return nil, fmt.Errorf("the tensors end at byte %d, but the file has %d", end, size)
	}
	return &File{tensors, metadata, c, header, size}, nil
}

// Product returns size times the dimensions, and whether the result fits into an int64.
func Product(shape []int, size int64) (int64, bool) {
	for _, d := range shape {
		if d > 0 && size > math.MaxInt64/int64(d) {
			return 0, false
		}
		size *= int64(d)
	}
	return size, true
}

// Close closes the file.
func (f *File) Close() error { return f.contents.Close() }

// ByName returns the tensors by their names.
func (f *File) ByName() map[string]*Tensor {
	all := make(map[string]*Tensor, len(f.Tensors))
	for _, t := range f.Tensors {
		all[t.Name] = t
	}
	return all
}

// Check returns an error unless the file is bit for bit what WriteSealed wrote. It reads the whole file, which must fit into the
// machine's memory, as it did when it was written: a file with holes can be of any size.
func (f *File) Check() error {
	if err := size.Bytes(f.size).Fits("its tensors"); err != nil {
		return err
	}
	sum, ok := f.Metadata[checksum]
	if !ok {
		return fmt.Errorf("it has no checksum: it was written before checksums existed, or by another program")
	}
	h := sha256.New()
	h.Write(blank(f.header, sum))
	start := int64(len(f.header))
	err := f.contents.Pieces(start, f.size-start, func(piece []byte) error {
		h.Write(piece)
		return nil
	})
	if err == nil && hex.EncodeToString(h.Sum(nil)) != sum {
		err = fmt.Errorf("its checksum is wrong: the file was changed or damaged after it was written")
	}
	return err
}

// blank returns a header with zeros in place of the checksum.
func blank(header []byte, sum string) []byte {
	quoted := func(s string) string { return `"` + checksum + `":"` + s + `"` }
	return []byte(strings.Replace(string(header), quoted(sum), quoted(strings.Repeat("0", 2*sha256.Size)), 1))
}
