package checkpoint

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nlpodyssey/safetensors"
)

// entry is a tensor on file.
type entry struct {
	name         string
	dtype        dtype
	shape        []int
	file         contents
	offset, size int64 // in bytes
}

// How large the description of the tensors may be. The largest Mamba published, of 64 layers, needs a hundredth of it, and
// what decoding a description costs in memory stays small beside any model.
const (
	maxHeader  = 8 << 20
	maxTensors = 1 << 14
	maxName    = 512
	maxRank    = 8
)

// readSafetensors returns the tensors of a safetensors file: 8 bytes with the length of a header, the header in JSON, and
// the data that it describes.
//
// The library that decodes the header builds maps of whatever it finds there. So the header's length is held against the
// file, and its grammar against scanHeader, before the library sees it; what it says about the data is checked after.
func readSafetensors(c contents, size int64) ([]*entry, error) {
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
	header := make([]byte, n)
	if _, err := c.ReadAt(header, 8); err != nil && n > 0 {
		return nil, err
	}
	count, err := scanHeader(header)
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	var described safetensors.Metadata
	if err := json.Unmarshal(header, &described); err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	infos := described.Tensors()
	if len(infos) != count {
		return nil, fmt.Errorf("the header has %d tensors, but %d names: a name is there twice", count, len(infos))
	}
	entries := make([]*entry, 0, count)
	start := 8 + int64(n)
	for name, info := range infos {
		e := &entry{name: name, dtype: dtype(info.DType.String()), file: c}
		from, to := info.DataOffsets[0], info.DataOffsets[1]
		if to < from || to > uint64(size-start) {
			return nil, fmt.Errorf("%s: the data is said to be bytes %d to %d, want a part of the %d that there are", name, from, to, size-start)
		}
		e.offset, e.size = start+int64(from), int64(to-from)
		for _, d := range info.Shape {
			if d > math.MaxInt {
				return nil, fmt.Errorf("%s: a dimension is %d", name, d)
			}
			e.shape = append(e.shape, int(d))
		}
		bytes, ok := product(e.shape, int64(info.DType.Size()))
		if !ok || bytes != e.size {
			return nil, fmt.Errorf("%s: shape %v of %s does not make the %d bytes of its data", name, e.shape, e.dtype, e.size)
		}
		entries = append(entries, e)
	}
	// The format demands data without overlap and without holes.
	slices.SortFunc(entries, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.size, b.size), strings.Compare(a.name, b.name))
	})
	end := start
	for _, e := range entries {
		if e.offset != end {
			return nil, fmt.Errorf("%s: the data starts at byte %d, want %d, where the tensor before it ends", e.name, e.offset-start, end-start)
		}
		end += e.size
	}
	if end != size {
		return nil, fmt.Errorf("the tensors end at byte %d, but the file has %d", end, size)
	}
	return entries, nil
}

// product returns size times the dimensions, and whether it is a number that can be.
func product(shape []int, size int64) (int64, bool) {
	for _, d := range shape {
		if d > 0 && size > math.MaxInt64/int64(d) {
			return 0, false
		}
		size *= int64(d)
	}
	return size, true
}
