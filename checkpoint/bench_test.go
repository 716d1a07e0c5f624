package checkpoint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// config130M is the shape of state-spaces/mamba-130m.
var config130M = nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50280}

// random fills a model with random weights. It is faster than the initial weights of the paper.
func random(lm *nn.LM) {
	r := rand.NewPCG(1, 2)
	for _, p := range lm.Params() {
		v := p.Value.Data().([]float32)
		for i := range v {
			v[i] = float32(int64(r.Uint64())) / (1 << 63)
		}
	}
}

// make130M writes a checkpoint of 130 million float32 and returns the size of its weights.
func make130M(tb testing.TB, dir string) int64 {
	tb.Helper()
	lm := newLM(tb, config130M, layer.WithZeros())
	random(lm)
	if err := Save(dir, lm); err != nil {
		tb.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, weightsFile))
	if err != nil {
		tb.Fatal(err)
	}
	return info.Size()
}

// BenchmarkLoad130M loads a model of 130 million float32, each time in a new process. It reports two figures as multiples of the size
// of the file: allocated/file is the memory that Go allocates, and on Linux peak/file is the increase of the resident memory, which
// includes the mapped file.
func BenchmarkLoad130M(b *testing.B) {
	if dir := os.Getenv("CHECKPOINT_TO_LOAD"); dir != "" { // the process of its own
		before, known := resetPeak()
		start := time.Now()
		var err error
		n := allocated(func() { _, err = Load(dir) })
		took := time.Since(start)
		if err != nil {
			b.Fatal(err)
		}
		rise := int64(0)
		if known {
			rise = status("VmHWM") - before
		}
		fmt.Println("loaded", took.Nanoseconds(), n, rise)
		os.Exit(0)
	}
	dir := b.TempDir()
	size := make130M(b, dir)
	b.SetBytes(size)
	var total, bytes, rise, runs float64
	benchtest.Processors(b)
	for b.Loop() {
		child := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkLoad130M$", "-test.benchtime=1x")
		child.Env = append(os.Environ(), "CHECKPOINT_TO_LOAD="+dir)
		out, err := child.CombinedOutput()
		if err != nil {
			b.Fatal(err, string(out))
		}
		var took, n, r float64
		if _, err := fmt.Sscanf(string(out[strings.Index(string(out), "loaded"):]), "loaded %g %g %g", &took, &n, &r); err != nil {
			b.Fatal(err, string(out))
		}
		total, bytes, rise, runs = total+took, bytes+n, max(rise, r), runs+1
	}
	b.ReportMetric(total/runs, "ns/op")
	b.ReportMetric(bytes/float64(size)/runs, "allocated/file")
	if rise > 0 {
		b.ReportMetric(rise/float64(size), "peak/file")
	}
}

// BenchmarkSave130M writes the same model and syncs it to the disk.
func BenchmarkSave130M(b *testing.B) {
	lm := newLM(b, config130M, layer.WithZeros())
	random(lm)
	dir := b.TempDir()
	b.SetBytes(4 * int64(lm.Params().Count()))
	b.ReportAllocs()
	benchtest.Processors(b)
	for b.Loop() {
		if err := Save(dir, lm); err != nil {
			b.Fatal(err)
		}
	}
}

// resetPeak resets the peak of the resident memory, and returns the resident memory. It returns false where the system cannot.
func resetPeak() (int64, bool) {
	debug.FreeOSMemory()
	err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	return status("VmRSS"), runtime.GOOS == "linux" && err == nil
}

// status returns a field of /proc/self/status in bytes, 0 where there is none.
func status(field string) (kib int64) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			_, _ = fmt.Sscan(rest, &kib)
		}
	}
	return kib << 10
}

// Loading holds one copy of the model. Go allocates little more than the weights, and the pages of the mapped file are released piece
// by piece.
func TestOneCopyInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes 110 MB")
	}
	dir := t.TempDir()
	cfg := nn.LMConfig{Config: nn.Config{DModel: 512, NLayer: 4}, Vocab: 40000} // 110 MB
	lm := newLM(t, cfg, layer.WithZeros())
	random(lm)
	if err := Save(dir, lm); err != nil {
		t.Fatal(err)
	}
	size := 4 * int64(lm.Params().Count())
	lm = nil
	before, known := resetPeak()
	n := allocated(func() {
		var err error
		if lm, err = Load(dir); err != nil {
			t.Fatal(err)
		}
	})
	if limit := uint64(size) + 1<<20; n > limit {
		t.Errorf("%d bytes allocated for a model of %d", n, size)
	}
	if known {
		rise := status("VmHWM") - before
		t.Logf("resident memory rose by %d bytes for a model of %d", rise, size)
		if rise > size+size/4 {
			t.Errorf("resident memory rose by %d bytes for a model of %d", rise, size)
		}
	}
	runtime.KeepAlive(lm)
}
