package tensorfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// safetensorsFile puts a header in front of data.
func safetensorsFile(header string, data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

// checkEntries reads everything that was found, and holds it against the file.
func checkEntries(t *testing.T, entries []*Tensor, size int64) {
	t.Helper()
	var total int64
	for _, e := range entries {
		if e.Offset < 0 || e.Size < 0 || e.Size > size-e.Offset {
			t.Fatalf("%s: %d bytes at %d of %d", e.Name, e.Size, e.Offset, size)
		}
		width := e.Dtype.Size()
		if width == 0 {
			continue
		}
		n, ok := Product(e.Shape, width)
		if !ok || n != e.Size {
			t.Fatalf("%s: shape %v of %s in %d bytes", e.Name, e.Shape, e.Dtype, e.Size)
		}
		if total += e.Size; total > 2*size { // a tied head may be there twice
			t.Fatalf("the tensors have %d bytes, the file %d", total, size)
		}
		if e.Dtype.Float() {
			_ = Fill([]Job{{e, make([]float32, e.Size/width)}}) // an error if a number is none
		}
	}
}

// No file makes the reader of safetensors panic, or claim what the file does not have.
func FuzzSafetensors(f *testing.F) {
	var small, sealed bytes.Buffer
	arrays := []Array{{"a.weight", []int{2, 3}, []float32{1, 2, 3, 4, 5, 6}}, {"b", []int{1}, []float64{7}}, {"c", nil, []int64{8}}}
	if err := errors.Join(Write(&small, nil, arrays), WriteSealed(&sealed, map[string]string{"note": "{}"}, arrays)); err != nil {
		f.Fatal(err)
	}
	f.Add(sealed.Bytes())
	f.Add(small.Bytes())
	f.Add(small.Bytes()[:small.Len()/2])
	f.Add(safetensorsFile(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a\"\\":"b"}}`, make([]byte, 4)))
	f.Add(safetensorsFile(`{"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"b":{"shape":[0],"dtype":"F64","data_offsets":[2,2]}}  `, make([]byte, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Read(Memory(b), int64(len(b)))
		if err == nil {
			checkEntries(t, file.Tensors, int64(len(b)))
			_ = file.Check()
		}
	})
}

// A file has at most maxTensors tensors, and as many entries of metadata.
func TestManyTensors(t *testing.T) {
	header := func(tensors, entries int) string {
		var all, notes []string
		for i := range tensors {
			all = append(all, fmt.Sprintf(`"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}`, i))
		}
		for i := range entries {
			notes = append(notes, fmt.Sprintf(`"%d":""`, i))
		}
		return "{" + strings.Join(append(all, `"__metadata__":{`+strings.Join(notes, ",")+"}"), ",") + "}"
	}
	for _, c := range []struct {
		tensors, entries int
		want             string
	}{{maxTensors, maxTensors, ""}, {maxTensors + 1, 0, "more than 16384 tensors"}, {0, maxTensors + 1, "more than 16384 entries"}} {
		b := safetensorsFile(header(c.tensors, c.entries), nil)
		f, err := Read(Memory(b), int64(len(b)))
		if err == nil && (len(f.Tensors) != c.tensors || len(f.Metadata) != c.entries) || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d tensors, %d entries: error %v, want %q", c.tensors, c.entries, err, c.want)
		}
	}
}

// No header makes the reader panic, or claim what the file does not have.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a\"\\":"b"}}`))
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"shape":[],"dtype":"F64","data_offsets":[24,32]}}`))
	f.Fuzz(func(t *testing.T, header []byte) {
		if len(header) > 1<<12 {
			return
		}
		b := safetensorsFile(string(header), make([]byte, 32))
		file, err := Read(Memory(b), int64(len(b)))
		if err == nil {
			checkEntries(t, file.Tensors, int64(len(b)))
			_ = file.Check()
		}
	})
}
