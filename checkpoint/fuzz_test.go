package checkpoint

import (
	"archive/zip"
	"bytes"
	"os"
	"testing"

	"github.com/gomamba/mamba/nn"
)

// checkEntries reads everything that was found, and holds it against the file.
func checkEntries(t *testing.T, entries []*entry, size int64) {
	t.Helper()
	var total int64
	for _, e := range entries {
		if e.offset < 0 || e.size < 0 || e.size > size-e.offset {
			t.Fatalf("%s: %d bytes at %d of %d", e.name, e.size, e.offset, size)
		}
		width := e.dtype.size()
		if width == 0 {
			continue
		}
		n, ok := product(e.shape, width)
		if !ok || n != e.size {
			t.Fatalf("%s: shape %v of %s in %d bytes", e.name, e.shape, e.dtype, e.size)
		}
		if total += e.size; total > 2*size { // a tied head may be there twice
			t.Fatalf("the tensors have %d bytes, the file %d", total, size)
		}
		_ = readElements(e, make([]float32, e.size/width), 0, e.size/width) // an error if a number is none
	}
}

// No file makes the reader of safetensors panic, or claim what the file does not have.
func FuzzSafetensors(f *testing.F) {
	var small bytes.Buffer // the fixtures are too large: mutating them is all that would be done
	if err := writeSafetensors(&small, newLM(f, nn.LMConfig{Config: nn.Config{DModel: 1, DState: 1, Expand: 1}, Vocab: 2})); err != nil {
		f.Fatal(err)
	}
	f.Add(small.Bytes())
	f.Add(small.Bytes()[:small.Len()/2])
	f.Add(safetensorsFile(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a\"\\":"b"}}`, make([]byte, 4)))
	f.Add(safetensorsFile(`{"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"b":{"shape":[0],"dtype":"F64","data_offsets":[2,2]}}  `, make([]byte, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readSafetensors(memory(b), int64(len(b)))
		if err == nil {
			checkEntries(t, entries, int64(len(b)))
		}
	})
}

// No header gets past scanHeader and then panics in the library or has another number of tensors there.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a\"\\":"b"}}`))
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"shape":[],"dtype":"F64","data_offsets":[24,32]}}`))
	f.Fuzz(func(t *testing.T, header []byte) {
		if len(header) > 1<<12 {
			return
		}
		b := safetensorsFile(string(header), make([]byte, 32))
		entries, err := readSafetensors(memory(b), int64(len(b)))
		if err == nil {
			checkEntries(t, entries, int64(len(b)))
		}
	})
}

// No pickle makes the unpickler panic, and no file the reader of PyTorch's format.
func FuzzTorch(f *testing.F) {
	f.Add(torchFile(f, pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), stride31())), six))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readTorch(memory(b), int64(len(b)))
		if err == nil {
			checkEntries(t, entries, int64(len(b)))
		}
	})
}

func FuzzPickle(f *testing.F) {
	b, err := os.ReadFile(original + "/pytorch_model.bin")
	if err != nil {
		f.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range z.File {
		if r.Name == "pytorch_model/data.pkl" {
			at, err := r.DataOffset()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b[at : at+int64(r.UncompressedSize64)])
		}
	}
	tensor := pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), stride31())
	f.Add([]byte(pDict(pString("a"), tensor)))
	f.Add([]byte("\x80\x02" + pGlobal("collections", "OrderedDict") + ")R(" + pString("a") + tensor + "u}" + pString("b") + "}sb."))
	f.Add([]byte("\x80\x02](" + pInt(1) + pLong(-1) + "N\x88\x89K\x01M\x01\x00Gabcdefgheq\x00h\x00\x86."))
	f.Fuzz(func(t *testing.T, b []byte) {
		views, err := unpickle(b, 4096)
		if err != nil {
			return
		}
		for _, v := range views {
			if v.storage == nil || len(v.shape) != len(v.stride) {
				t.Fatalf("%s: %+v", v.name, v)
			}
		}
	})
}

// No configuration makes parseConfig panic, or is read as sizes that are none.
func FuzzConfig(f *testing.F) {
	for _, path := range []string{tiny, original} {
		b, err := os.ReadFile(path + "/config.json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		for _, n := range []int{c.lm.DModel, c.lm.NLayer, c.lm.DState, c.lm.DConv, c.lm.Expand, c.lm.DtRank, c.lm.Vocab, inner(c.lm.Config)} {
			if n < 1 || n > 2*maxSize {
				t.Fatalf("%+v", c.lm)
			}
		}
	})
}
