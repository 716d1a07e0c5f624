package tensorfile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Array is a tensor to write. Data is a []float32, []float64 or []int64, in row-major order.
type Array struct {
	Name  string
	Shape []int
	Data  any
}

// Write writes tensors in the safetensors format, in their order. An element that is not a number is an error. The metadata gets
// the entry "format" with the value "pt", without which the transformers library reads no file.
func Write(w io.Writer, metadata map[string]string, arrays []Array) error {
	for _, a := range arrays {
		if i := nanIn(a.Data); i >= 0 {
			return fmt.Errorf("%s: element %d %w", a.Name, i, errNaN)
		}
	}
	all := map[string]string{"format": "pt"}
	maps.Copy(all, metadata)
	header, err := headerOf(all, arrays)
	if err != nil {
		return err
	}
	return write(w, header, arrays)
}

// WriteSealed is like Write, but writes any bits, and adds a checksum of the whole file to the metadata, for File.Check.
func WriteSealed(w io.Writer, metadata map[string]string, arrays []Array) error {
	none := strings.Repeat("0", 2*sha256.Size)
	all := map[string]string{checksum: none}
	maps.Copy(all, metadata)
	header, err := headerOf(all, arrays)
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := write(h, header, arrays); err != nil {
		return err
	}
	all[checksum] = hex.EncodeToString(h.Sum(nil))
	if header, err = headerOf(all, arrays); err != nil {
		return err
	}
	return write(w, header, arrays)
}

// Hash returns a hash of the names, types, shapes and bits of tensors, in their order.
func Hash(arrays []Array) (string, error) {
	header, err := headerOf(nil, arrays)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if err := write(h, header, arrays); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// headerOf returns the header with its length. What it writes, Read accepts.
func headerOf(metadata map[string]string, arrays []Array) ([]byte, error) {
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		if !utf8.ValidString(key) || !utf8.ValidString(metadata[key]) {
			return nil, fmt.Errorf("the metadata %q is %q, want UTF-8", key, metadata[key])
		}
	}
	if len(arrays) > maxTensors || len(metadata) > maxTensors {
		return nil, fmt.Errorf("%d tensors and %d entries of metadata, want at most %d", len(arrays), len(metadata), maxTensors)
	}
	header := map[string]any{"__metadata__": metadata}
	var end int64
	for _, a := range arrays {
		if header[a.Name] != nil {
			return nil, fmt.Errorf("two tensors have the name %s", a.Name)
		}
		if !utf8.ValidString(a.Name) || len(a.Name) > MaxName {
			return nil, fmt.Errorf("the name of a tensor is %q, want UTF-8 of at most %d bytes", a.Name, MaxName)
		}
		d, n, ok := dtypeOf(a.Data)
		if !ok {
			return nil, fmt.Errorf("%s is a %T, want float32, float64 or int64", a.Name, a.Data)
		}
		size, ok := Product(a.Shape, d.Size())
		if !ok || size != int64(n)*d.Size() || len(a.Shape) > MaxRank {
			return nil, fmt.Errorf("%s has shape %v, want at most %d axes and %d elements", a.Name, a.Shape, MaxRank, n)
		}
		shape := make([]int64, len(a.Shape))
		for i, n := range a.Shape {
			shape[i] = int64(n)
		}
		header[a.Name] = described{a.Name, d, shape, [2]int64{end, end + size}}
		end += size
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	for len(text)%8 != 0 { // the data starts at a multiple of eight
		text = append(text, ' ')
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("the header has %d bytes, want at most %d", len(text), maxHeader)
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), nil
}

func write(w io.Writer, header []byte, arrays []Array) (err error) {
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, a := range arrays {
		switch data := a.Data.(type) {
		case []float32:
			err = writeElements(w, data, 4)
		case []float64:
			err = writeElements(w, data, 8)
		case []int64:
			err = writeElements(w, data, 8)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	return nil
}

func writeElements[T float32 | float64 | int64](w io.Writer, data []T, width int) error {
	buffer := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buffer)
	for part := range slices.Chunk(data, pieceSize/width) {
		steps.Add(1)
		n, err := binary.Encode(buffer[:], binary.LittleEndian, part)
		if err != nil {
			return err
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
	}
	return nil
}
