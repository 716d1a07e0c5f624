// Package gguf reads the files of llama.cpp: metadata, and tensors in the types of package blas.
//
// A file is not trusted. Every number in it is compared with the size of the file before it is used. The format:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
package gguf

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// How large the parts of a file may be. The largest vocabularies in use need about a tenth of the metadata.
const (
	maxMetadata = 256 << 20
	maxKeys     = 1 << 16
	maxTensors  = 1 << 16
	maxName     = 64 // as llama.cpp has it
	maxKey      = 1 << 16
	maxAxes     = 4
)

// Tensor is a matrix or a vector in the file.
type Tensor struct {
	Name         string
	Type         blas.Type
	Shape        []int // the fastest axis last, as everywhere in this library; the file has it first
	Offset, Size int64 // in bytes, from the beginning of the file
}

// Rows returns the number of rows and their length.
func (t *Tensor) Rows() (rows, length int) {
	rows, length = 1, 1
	for i, n := range t.Shape {
		if i == len(t.Shape)-1 {
			length = n
		} else {
			rows *= n
		}
	}
	return rows, length
}

// File is an open file. Close it when its tensors are no longer read.
type File struct {
	Tensors  []*Tensor // in the order of their data
	metadata map[string]any
	contents tensorfile.Contents
	size     int64
}

// kinds are the types of tensors by the numbers that the files have.
var kinds = map[uint32]blas.Type{
	0: blas.Float32, 1: blas.Float16, 2: blas.Q4_0, 6: blas.Q5_0, 7: blas.Q5_1, 8: blas.Q8_0, 12: blas.Q4_K, 14: blas.Q6_K, 30: blas.BFloat16,
}

// others are the names of the types that are not read, for errors.
var others = map[uint32]string{
	3: "Q4_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
	21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// Open opens a file, maps it into memory, and reads its metadata and the list of its tensors. Close it.
func Open(path string) (*File, error) {
	file, err := tensorfile.OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	contents := tensorfile.Map(file, info.Size())
	f, err := Read(contents, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), contents.Close())
	}
	return f, nil
}

// Close unmaps and closes the file.
func (f *File) Close() error { return f.contents.Close() }

// Whole returns an error if the file has become shorter since it was opened.
func (f *File) Whole() error {
	if _, err := f.contents.ReadAt(make([]byte, 1), f.size-1); err != nil {
		return fmt.Errorf("the file has become shorter than %d bytes: %w", f.size, err)
	}
	return nil
}

// Contents returns the contents of the file.
func (f *File) Contents() tensorfile.Contents { return f.contents }

// Read reads the metadata and the list of tensors of a file of the given size.
func Read(c tensorfile.Contents, size int64) (*File, error) {
	r := &reader{from: bufio.NewReader(io.NewSectionReader(c, 0, size)), size: size}
	f := &File{metadata: map[string]any{}, contents: c, size: size}
	if err := f.read(r); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) read(r *reader) error {
	if magic := string(r.bytes(4)); r.err == nil && magic != "GGUF" {
		return fmt.Errorf("the file begins with %q, want GGUF", magic)
	}
	switch version := r.uint32(); {
	case r.err != nil:
		return r.err
	case version == 3<<24 || version == 2<<24:
		return errors.New("the file is of a machine of the other byte order, want little-endian")
	case version != 2 && version != 3:
		return fmt.Errorf("the version is %d, want 2 or 3", version)
	}
	tensors := r.count("tensors", maxTensors, 8+4+8+4+8)
	keys := r.count("keys", maxKeys, 8+4+1)
	for range keys {
		key := r.string(maxKey, "a key")
		kind := r.uint32()
		if _, twice := f.metadata[key]; twice && r.err == nil {
			return fmt.Errorf("the key %.60q is there twice", key)
		}
		v := r.value(kind)
		if r.err != nil {
			return fmt.Errorf("key %.60q: %w", key, r.err)
		}
		f.metadata[key] = v
	}
	for i := range tensors {
		t, err := r.tensor()
		if err != nil {
			return fmt.Errorf("tensor %d: %w", i, err)
		}
		f.Tensors = append(f.Tensors, t)
	}
	if r.err != nil {
		return r.err
	}
	return f.place(r)
}

// place adds the beginning of the data to the offsets, and checks that the tensors lie in the file and apart.
func (f *File) place(r *reader) error {
	alignment := uint64(32)
	if v, ok := f.metadata["general.alignment"]; ok {
		n, ok := v.(uint64)
		if !ok || n < 8 || n > 1<<20 || n%8 != 0 {
			return fmt.Errorf("general.alignment is %v, want a multiple of 8, at most %d", v, 1<<20)
		}
		alignment = n
	}
	begin := (r.at + int64(alignment) - 1) / int64(alignment) * int64(alignment)
	names := map[string]bool{}
	for _, t := range f.Tensors {
		switch {
		case names[t.Name]:
			return fmt.Errorf("%s is there twice", t.Name)
		case t.Offset%int64(alignment) != 0:
			return fmt.Errorf("%s begins at %d, want a multiple of the alignment %d", t.Name, t.Offset, alignment)
		case begin > r.size || t.Offset > r.size-begin || t.Size > r.size-begin-t.Offset:
			return fmt.Errorf("%s has %d bytes at %d of the data, but the file has %d bytes", t.Name, t.Size, t.Offset, r.size)
		}
		names[t.Name] = true
		t.Offset += begin
	}
	slices.SortStableFunc(f.Tensors, func(a, b *Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
	for i, t := range f.Tensors[min(1, len(f.Tensors)):] {
		if before := f.Tensors[i]; before.Offset+before.Size > t.Offset {
			return fmt.Errorf("%s and %s overlap", before.Name, t.Name)
		}
	}
	return nil
}

// reader reads numbers and keeps its first error.
type reader struct {
	from     *bufio.Reader
	at, size int64
	memory   int64 // of the metadata
	bits     [8]byte
	err      error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// bytes returns the next n bytes, which are zero after an error.
func (r *reader) bytes(n int) []byte {
	b := make([]byte, n)
	r.fill(b)
	return b
}

func (r *reader) fill(b []byte) {
	if r.err == nil {
		if _, err := io.ReadFull(r.from, b); err != nil {
			r.fail("the file ends at byte %d of its header: %w", r.size, err)
		}
	}
	r.at += int64(len(b))
}

func (r *reader) uint32() uint32 { return binary.LittleEndian.Uint32(r.bytes(4)) }
func (r *reader) uint64() uint64 { return binary.LittleEndian.Uint64(r.bytes(8)) }

// count reads a number of things that take at least width bytes each.
func (r *reader) count(what string, most uint64, width int64) int {
	n := r.uint64()
	if left := uint64(max(r.size-r.at, 0) / width); r.err == nil && (n > left || n > most) {
		r.fail("the number of %s is %d, want at most %d in a file of %d bytes", what, n, min(left, most), r.size)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// grow counts memory that the metadata takes.
func (r *reader) grow(n int64) {
	if r.memory += n; r.memory > maxMetadata {
		r.fail("the metadata takes more than %d MiB", maxMetadata>>20)
	}
}

func (r *reader) string(most uint64, what string) string {
	n := r.uint64()
	if r.err == nil && (n > most || n > uint64(max(r.size-r.at, 0))) {
		r.fail("%s is said to have %d bytes, want at most %d", what, n, min(most, uint64(max(r.size-r.at, 0))))
	}
	if r.err != nil {
		return ""
	}
	if r.grow(int64(n)); r.err != nil {
		return ""
	}
	return string(r.bytes(int(n)))
}

// widths are the bytes of the types of values.
var widths = [13]int{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

const (
	kindString = 8
	kindArray  = 9
)

// value reads a value: uint64, int64, float64, bool or string, or a slice of one of them.
func (r *reader) value(kind uint32) any {
	switch kind {
	case kindString:
		return r.string(maxMetadata, "the text")
	case kindArray:
		of := r.uint32()
		if r.err == nil && (of == kindArray || of > 12) {
			r.fail("an array of type %d, want one of numbers, truths or texts", of)
		}
		if r.err != nil {
			return nil
		}
		switch of {
		case kindString:
			return array(r, 8, 16, func() string { return r.string(maxMetadata, "a text") })
		case 6, 12:
			return array(r, widths[of], 8, func() float64 { return float(of, r.number(of)) })
		case 7:
			return array(r, 1, 1, func() bool { return r.truth(r.number(of)) })
		case 1, 3, 5, 11:
			return array(r, widths[of], 8, func() int64 { return signed(of, r.number(of)) })
		}
		return array(r, widths[of], 8, func() uint64 { return r.number(of) })
	}
	if kind > 12 {
		r.fail("the type is %d, want 0 to 12", kind)
	}
	if r.err != nil {
		return nil
	}
	u := r.number(kind)
	switch kind {
	case 1, 3, 5, 11:
		return signed(kind, u)
	case 6, 12:
		return float(kind, u)
	case 7:
		return r.truth(u)
	}
	return u
}

// number returns the bits of a number or truth.
func (r *reader) number(kind uint32) uint64 {
	clear(r.bits[:])
	r.fill(r.bits[:widths[kind]])
	return binary.LittleEndian.Uint64(r.bits[:])
}

func (r *reader) truth(u uint64) bool {
	if u > 1 {
		r.fail("a truth is %d, want 0 or 1", u)
	}
	return u == 1
}

func signed(kind uint32, u uint64) int64 {
	shift := 64 - 8*widths[kind]
	return int64(u<<shift) >> shift
}

func float(kind uint32, u uint64) float64 {
	if kind == 6 {
		return float64(math.Float32frombits(uint32(u)))
	}
	return math.Float64frombits(u)
}

// array reads elements that take at least width bytes in the file and memory bytes here.
func array[T any](r *reader, width, memory int, element func() T) []T {
	n := r.count("elements", math.MaxInt64, int64(width))
	if r.grow(int64(n) * int64(memory)); r.err != nil {
		return nil
	}
	all := make([]T, 0, n)
	for i := 0; i < n && r.err == nil; i++ {
		all = append(all, element())
	}
	return all
}

func (r *reader) tensor() (*Tensor, error) {
	t := &Tensor{Name: r.string(maxName, "a name")}
	axes := r.uint32()
	if r.err != nil {
		return nil, r.err
	}
	if axes < 1 || axes > maxAxes {
		return nil, fmt.Errorf("%q has %d axes, want 1 to %d", t.Name, axes, maxAxes)
	}
	elements := uint64(1)
	for range axes {
		n := r.uint64()
		if r.err != nil {
			return nil, r.err
		}
		if n < 1 || n > math.MaxInt32 || n > math.MaxInt64/elements {
			return nil, fmt.Errorf("%q has an axis of %d, or too many elements", t.Name, n)
		}
		elements *= n
		t.Shape = append(t.Shape, int(n))
	}
	row := t.Shape[0]
	slices.Reverse(t.Shape)
	number, offset := r.uint32(), r.uint64()
	if r.err != nil {
		return nil, r.err
	}
	var ok bool
	if t.Type, ok = kinds[number]; !ok {
		name := others[number]
		if name == "" {
			name = fmt.Sprint(number)
		}
		return nil, fmt.Errorf("%q is of type %s, want F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q5_1, Q4_K or Q6_K", t.Name, name)
	}
	block, bytes := t.Type.Block(), t.Type.BlockBytes()
	if row%block != 0 {
		return nil, fmt.Errorf("%q has rows of %d, want a multiple of %d for %v", t.Name, row, block, t.Type)
	}
	if elements/uint64(block) > math.MaxInt64/uint64(bytes) || offset > math.MaxInt64 {
		return nil, fmt.Errorf("%q has %d elements at %d, more than any file", t.Name, elements, offset)
	}
	t.Size, t.Offset = int64(elements/uint64(block)*uint64(bytes)), int64(offset)
	return t, nil
}
