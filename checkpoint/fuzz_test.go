package checkpoint

import (
	"archive/zip"
	"bytes"
	"os"
	"testing"

	"github.com/gomamba/mamba/internal/jsonoptions"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// checkEntries reads all tensors and checks that the file has their elements.
func checkEntries(t *testing.T, entries []*tensorfile.Tensor, size int64) {
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
		n, ok := tensorfile.Product(e.Shape, width)
		if !ok || n != e.Size {
			t.Fatalf("%s: shape %v of %s in %d bytes", e.Name, e.Shape, e.Dtype, e.Size)
		}
		if total += e.Size; total > 2*size { // a tied head may be there twice
			t.Fatalf("the tensors have %d bytes, the file %d", total, size)
		}
		_ = tensorfile.Fill([]tensorfile.Job{{From: e, To: make([]float32, e.Size/width)}}) // an error if a number is none
	}
}

// No pickle makes the unpickler panic, and no file makes the reader of the format of PyTorch panic.
func FuzzTorch(f *testing.F) {
	f.Add(torchFile(f, pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), stride31())), six))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readTorch(tensorfile.Memory(b), int64(len(b)))
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

// No configuration makes parseConfig panic or return a size that is not valid.
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
			if n < 1 || n > 2*jsonoptions.MaxSize {
				t.Fatalf("%+v", c.lm)
			}
		}
	})
}
