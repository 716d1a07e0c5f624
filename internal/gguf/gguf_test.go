package gguf

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// file builds a GGUF file.
type file []byte

func (f file) u32(v uint32) file { return binary.LittleEndian.AppendUint32(f, v) }
func (f file) u64(v uint64) file { return binary.LittleEndian.AppendUint64(f, v) }
func (f file) text(s string) file {
	return append(f.u64(uint64(len(s))), s...)
}

func begin(version uint32, tensors, keys uint64) file {
	return file("GGUF").u32(version).u64(tensors).u64(keys)
}

// key is a key with a number of 32 bits.
func (f file) key(name string, v uint32) file { return f.text(name).u32(4).u32(v) }

func (f file) tensor(name string, kind uint32, offset uint64, sizes ...uint64) file {
	f = f.text(name).u32(uint32(len(sizes)))
	for _, n := range sizes {
		f = f.u64(n)
	}
	return f.u32(kind).u64(offset)
}

// data pads the header and appends n bytes.
func (f file) data(n int) file {
	return append(f, make([]byte, (32-len(f)%32)%32+n)...)
}

func read(b []byte) (*File, error) { return Read(tensorfile.Memory(b), int64(len(b))) }

func TestRead(t *testing.T) {
	f := begin(3, 2, 6).key("a", 7).text("b").u32(kindString).text("text").text("c").u32(kindArray).u32(kindString).u64(2).text("x").text("")
	f = f.text("d").u32(kindArray).u32(5).u64(2).u32(math.MaxUint32).u32(3).text("e").u32(7)
	f = append(f, 1).text("f").u32(6).u32(math.Float32bits(0.5))
	f = f.tensor("w", 8, 32, 64, 2).tensor("v", 0, 0, 5).data(32 + 4*34)
	got, err := read(f)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok, err := Value[uint64](got, "a"); v != 7 || !ok || err != nil {
		t.Error(v, ok, err)
	}
	if v, _, err := Value[[]string](got, "c"); !slices.Equal(v, []string{"x", ""}) || err != nil {
		t.Error(v, err)
	}
	if v, _, err := Value[[]int64](got, "d"); !slices.Equal(v, []int64{-1, 3}) || err != nil {
		t.Error(v, err)
	}
	if v, _, err := Value[bool](got, "e"); !v || err != nil {
		t.Error(v, err)
	}
	if v, _, err := Value[float64](got, "f"); v != 0.5 || err != nil {
		t.Error(v, err)
	}
	if _, _, err := Value[string](got, "a"); err == nil || !strings.Contains(err.Error(), "a is of type uint64, want string") {
		t.Error(err)
	}
	if _, err := Required[string](got, "none"); err == nil || err.Error() != "none is missing" {
		t.Error(err)
	}
	if w := got.Tensors[1]; w.Name != "w" || !slices.Equal(w.Shape, []int{2, 64}) || w.Size != 4*34 || w.Offset != int64(len(f))-4*34 {
		t.Errorf("%+v", w)
	}
}

// hostile are files with an error, and what the error says.
func hostile() map[string][]byte {
	huge := uint64(1) << 62
	return map[string][]byte{
		"begins with":              []byte("GGML\x03\x00\x00\x00"),
		"the file ends":            begin(3, 0, 0)[:10],
		"the other byte order":     file("GGUF").u32(3 << 24),
		"the version is 1":         begin(1, 0, 0),
		"number of tensors is":     begin(3, huge, 0),
		"number of keys is":        begin(3, 0, huge),
		"a key is said to have":    begin(3, 0, 1).u64(huge).data(64),
		"the key \"a\" is there":   begin(3, 0, 2).key("a", 1).key("a", 1).data(64),
		"the type is 13":           begin(3, 0, 1).text("a").u32(13).data(64),
		"an array of type 9":       begin(3, 0, 1).text("a").u32(9).u32(9).u64(1).data(64),
		"number of elements is":    begin(3, 0, 1).text("a").u32(9).u32(4).u64(huge).data(64),
		"a text is said to have":   begin(3, 0, 1).text("a").u32(9).u32(8).u64(1).u64(huge).data(64),
		"a truth is 2":             append(begin(3, 0, 1).text("a").u32(7), 2).data(64),
		"general.alignment is 7":   begin(3, 0, 1).key("general.alignment", 7).data(64),
		"has 0 axes":               begin(3, 1, 0).tensor("t", 0, 0).data(64),
		"has 5 axes":               begin(3, 1, 0).tensor("t", 0, 0, 1, 1, 1, 1, 1).data(64),
		"has an axis of 0":         begin(3, 1, 0).tensor("t", 0, 0, 4, 0).data(64),
		"too many elements":        begin(3, 1, 0).tensor("t", 0, 0, 1<<31-1, 1<<31-1, 1<<31-1).data(64),
		"is of type Q2_K":          begin(3, 1, 0).tensor("t", 10, 0, 256).data(64),
		"is of type 77":            begin(3, 1, 0).tensor("t", 77, 0, 256).data(64),
		"has rows of 33":           begin(3, 1, 0).tensor("t", 8, 0, 33).data(64),
		"has 128 bytes at 0":       begin(3, 1, 0).tensor("t", 0, 0, 32).data(64),
		"bytes at 96":              begin(3, 1, 0).tensor("t", 0, 96, 8).data(64),
		"more than any file":       begin(3, 1, 0).tensor("t", 0, 1<<63, 8).data(64),
		"multiple of the":          begin(3, 1, 0).tensor("t", 0, 8, 8).data(64),
		"t is there twice":         begin(3, 2, 0).tensor("t", 0, 0, 8).tensor("t", 0, 32, 8).data(64),
		"a and b overlap":          begin(3, 2, 0).tensor("a", 0, 0, 16).tensor("b", 0, 32, 8).data(64),
		"a name is said to have 9": begin(3, 1, 0).tensor(strings.Repeat("n", 90), 0, 0, 8).data(64),
	}
}

func TestHostile(t *testing.T) {
	for want, b := range hostile() {
		if _, err := read(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// No file makes the reader panic, or claim what the file does not have.
func FuzzGGUF(f *testing.F) {
	for _, b := range hostile() {
		f.Add(b)
	}
	f.Add([]byte(begin(3, 2, 1).key("a", 7).tensor("w", 8, 32, 64, 2).tensor("v", 0, 0, 5).data(32 + 4*34)))
	if b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "gguf-mamba-tiny", "narrow-Q8_0.gguf")); err != nil {
		f.Fatal(err)
	} else {
		f.Add(b[:6000])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := read(b)
		if err != nil {
			return
		}
		end := int64(0)
		for _, x := range file.Tensors {
			rows, length := x.Rows()
			if x.Offset < end || x.Size < 1 || x.Offset+x.Size > int64(len(b)) || int64(rows)*int64(length)/int64(x.Type.Block())*int64(x.Type.BlockBytes()) != x.Size {
				t.Fatalf("%+v in %d bytes", x, len(b))
			}
			end = x.Offset + x.Size
		}
	})
}

// Arrays take a small multiple of their size while they are read.
func TestArrayMemory(t *testing.T) {
	const n = 1 << 20
	f := append(begin(3, 0, 1).text("a").u32(kindArray).u32(0).u64(n), make([]byte, n)...)
	if mallocs := testing.AllocsPerRun(1, func() {
		if _, err := read(f); err != nil {
			t.Error(err)
		}
	}); mallocs > 1000 {
		t.Errorf("reading %d numbers makes %v allocations", n, mallocs)
	}
}
