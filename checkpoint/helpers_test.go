package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// copyOf returns a directory with copies of the files of a fixture, except for the expected results.
func copyOf(t testing.TB, fixture string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := os.ReadDir(fixture)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "expected.safetensors" {
			put(t, filepath.Join(dir, f.Name()), get(t, filepath.Join(fixture, f.Name())))
		}
	}
	return dir
}

func get(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

// setOptions changes fields of the config.json in a directory. The value nil removes a field.
func setOptions(t testing.TB, dir string, fields map[string]any) {
	t.Helper()
	path := filepath.Join(dir, configFile)
	var all map[string]any
	if err := json.Unmarshal(get(t, path), &all); err != nil {
		t.Fatal(err)
	}
	for k, v := range fields {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, b)
}

// safetensorsFile puts a header in front of data.
func safetensorsFile(header string, data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

// editHeader replaces a string in the header of a safetensors file.
func editHeader(t testing.TB, file []byte, old, replacement string) []byte {
	t.Helper()
	n := binary.LittleEndian.Uint64(file)
	header := string(file[8 : 8+n])
	if !strings.Contains(header, old) {
		t.Fatalf("the header has no %s", old)
	}
	return safetensorsFile(strings.Replace(header, old, replacement, 1), file[8+n:])
}

// zipFile returns a zip file without compression. Its arguments are alternately the name and the contents of a record.
func zipFile(t testing.TB, method uint16, records ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(records); i += 2 {
		w, err := z.CreateHeader(&zip.FileHeader{Name: records[i], Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, records[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// allocated returns the total bytes that f allocates, including those that are freed again.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func dirSize(t testing.TB, dir string) (n uint64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(filepath.Join(dir, f.Name())); err == nil && info.Mode().IsRegular() {
			n += uint64(info.Size())
		}
	}
	return n
}

// someConfigs are configurations that differ in every field.
func someConfigs() []nn.LMConfig {
	return []nn.LMConfig{
		{Config: nn.Config{DModel: 8, NLayer: 2}, Vocab: 11},
		{Config: nn.Config{DModel: 6, NLayer: 3, Bias: true, NormEps: 1e-6}, Vocab: 13, UntiedHead: true},
		{Config: nn.Config{DModel: 5, NLayer: 1, DState: 3, DConv: 2, DInner: 7, DtRank: 4, NoConvBias: true}, Vocab: 9},
		{Config: nn.Config{DModel: 33, NLayer: 2, DState: 7, DConv: 1, Expand: 3, DtMin: 0.01, DtMax: 0.2, DtScale: 2, DtInitFloor: 0.02}, Vocab: 3, UntiedHead: true},
	}
}

// sameWeights reports the first difference between the weights of two parts, bit for bit.
func sameWeights(t testing.TB, got, want layer.Params) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d weights, want %d", len(got), len(want))
	}
	for i, p := range want {
		g := got[i]
		if !g.Value.Shape().Eq(p.Value.Shape()) || g.Value.Dtype() != p.Value.Dtype() {
			t.Fatalf("%s: %v of %v, want %v of %v", p.Name, g.Value.Shape(), g.Value.Dtype(), p.Value.Shape(), p.Value.Dtype())
		}
		if !bytes.Equal(bits(g), bits(p)) {
			t.Fatalf("%s and %s differ", g.Name, p.Name)
		}
	}
}

func bits(p *layer.Param) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, p.Value.Data())
	if err != nil {
		panic(err)
	}
	return b
}

func newLM(t testing.TB, cfg nn.LMConfig, opts ...nn.Option) *nn.LM {
	t.Helper()
	lm := nn.NewLM(cfg, opts...)
	if lm.Err() != nil {
		t.Fatal(lm.Err())
	}
	return lm
}
