package train

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"gorgonia.org/tensor"
)

// replace writes a file so that a program or machine that dies at any moment leaves the old one whole, or the new one: beside
// it, down to the disk, and then in its place. The file beside it has one name, so that dying again and again leaves one.
func replace(path string, write func(io.Writer) error) (err error) {
	beside := path + ".new"
	f, err := os.Create(beside)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush(), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(beside))
	}
	if err := os.Rename(beside, path); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // which cannot and need not
		return nil
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// described is a tensor in the header of a safetensors file.
type described struct {
	Dtype   string   `json:"dtype"`
	Shape   []int    `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// noteKey is where a file's header has what belongs to the tensors, as JSON.
const noteKey = "mamba"

func describe(tensors []Moment) (map[string]described, error) {
	all, end := make(map[string]described, len(tensors)), int64(0)
	for _, t := range tensors {
		d := described{Dtype: "F32", Shape: slices.Clone([]int(t.Value.Shape()))}
		size := int64(4)
		if t.Value.Dtype() == tensor.Float64 {
			d.Dtype, size = "F64", 8
		}
		d.Offsets = [2]int64{end, end + size*int64(t.Value.Shape().TotalSize())}
		end = d.Offsets[1]
		if _, twice := all[t.Name]; twice {
			return nil, fmt.Errorf("train: %s is there twice", t.Name)
		}
		all[t.Name] = d
	}
	return all, nil
}

// writeTensors replaces a safetensors file, with a note in its header.
func writeTensors(path string, note any, tensors []Moment) error {
	text, err := json.Marshal(note)
	if err != nil {
		return err
	}
	all, err := describe(tensors)
	if err != nil {
		return err
	}
	header := map[string]any{"__metadata__": map[string]string{"format": "pt", noteKey: string(text)}}
	for name, d := range all {
		header[name] = d
	}
	if text, err = json.Marshal(header); err != nil {
		return err
	}
	for len(text)%8 != 0 { // the data starts at a multiple of eight
		text = append(text, ' ')
	}
	return replace(path, func(w io.Writer) error {
		if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(text)))); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		buffer := make([]byte, 0, pieceBytes)
		for _, t := range tensors {
			if err := writeNumbers(w, t.Value, buffer); err != nil {
				return err
			}
		}
		return nil
	})
}

// pieceBytes is what is converted at a time: it stays in the processor's cache.
const pieceBytes = 1 << 18

func writeNumbers(w io.Writer, t *tensor.Dense, buffer []byte) error {
	switch data := t.Data().(type) {
	case []float32:
		for part := range slices.Chunk(data, pieceBytes/4) {
			b := buffer
			for _, x := range part {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	case []float64:
		for part := range slices.Chunk(data, pieceBytes/8) {
			b := buffer
			for _, x := range part {
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// saved is an open file of tensors.
type saved struct {
	file    *os.File
	tensors map[string]described
	start   int64 // of the data
}

// openTensors reads the header of a file that writeTensors wrote, and decodes its note unless note is nil.
func openTensors(path string, note any) (s *saved, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("train: %s: %w", path, errors.Join(err, f.Close()))
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var length uint64
	if err := binary.Read(f, binary.LittleEndian, &length); err != nil {
		return nil, fmt.Errorf("the file has %d bytes, too few for a header", info.Size())
	}
	if length > uint64(info.Size()-8) {
		return nil, fmt.Errorf("the header is said to have %d bytes, but the file has %d", length, info.Size())
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(f, text); err != nil {
		return nil, err
	}
	var header map[string]json.RawMessage
	if err := json.Unmarshal(text, &header); err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	if note != nil {
		var metadata map[string]string
		if err := json.Unmarshal(header["__metadata__"], &metadata); err != nil {
			return nil, fmt.Errorf("the header's metadata: %w", err)
		}
		if err := json.Unmarshal([]byte(metadata[noteKey]), note); err != nil {
			return nil, fmt.Errorf("the header's note %s: %w", noteKey, err)
		}
	}
	delete(header, "__metadata__")
	s = &saved{file: f, tensors: map[string]described{}, start: int64(8 + length)}
	end := s.start
	for name, text := range header {
		var d described
		if err := json.Unmarshal(text, &d); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.tensors[name] = d
		end = max(end, s.start+d.Offsets[1])
	}
	if end != info.Size() {
		return nil, fmt.Errorf("the tensors end at byte %d, but the file has %d", end, info.Size())
	}
	return s, nil
}

// read fills tensors, which have to be those of the file, all of them. Nothing is written before that is known.
func (s *saved) read(into []Moment) error {
	want, err := describe(into)
	if err != nil {
		return err
	}
	for _, t := range into {
		got, ok := s.tensors[t.Name]
		if !ok {
			return fmt.Errorf("train: %s: no tensor %s", s.file.Name(), t.Name)
		}
		w := want[t.Name]
		if got.Dtype != w.Dtype || !slices.Equal(got.Shape, w.Shape) || got.Offsets[0] < 0 || got.Offsets[1]-got.Offsets[0] != w.Offsets[1]-w.Offsets[0] {
			return fmt.Errorf("train: %s: %s is %s %v, want %s %v", s.file.Name(), t.Name, got.Dtype, got.Shape, w.Dtype, w.Shape)
		}
	}
	if len(s.tensors) != len(into) {
		return fmt.Errorf("train: %s: %d tensors, want %d", s.file.Name(), len(s.tensors), len(into))
	}
	buffer := make([]byte, pieceBytes)
	for _, t := range into {
		o := s.tensors[t.Name].Offsets
		if err := readNumbers(io.NewSectionReader(s.file, s.start+o[0], o[1]-o[0]), t.Value, buffer); err != nil {
			return fmt.Errorf("train: %s: %s: %w", s.file.Name(), t.Name, err)
		}
	}
	return nil
}

func readNumbers(r io.Reader, t *tensor.Dense, buffer []byte) error {
	switch data := t.Data().(type) {
	case []float32:
		for part := range slices.Chunk(data, pieceBytes/4) {
			if _, err := io.ReadFull(r, buffer[:4*len(part)]); err != nil {
				return err
			}
			for i := range part {
				part[i] = math.Float32frombits(binary.LittleEndian.Uint32(buffer[4*i:]))
			}
		}
	case []float64:
		for part := range slices.Chunk(data, pieceBytes/8) {
			if _, err := io.ReadFull(r, buffer[:8*len(part)]); err != nil {
				return err
			}
			for i := range part {
				part[i] = math.Float64frombits(binary.LittleEndian.Uint64(buffer[8*i:]))
			}
		}
	}
	return nil
}

func (s *saved) close() error { return s.file.Close() }
