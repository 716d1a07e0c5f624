package checkpoint

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

const ggufTiny = "../testdata/gguf-mamba-tiny"

// TestGoldenGGUF loads each *.gguf and compares it with the results of llama.cpp and of a float64 computation in X.expected.safetensors. In float32 the logits
// are within 1e-5 of the exact ones, of the largest magnitude of a sequence, and the tokens are the exact ones. In the file's types, activations are rounded:
// then the tolerances are those of tolerances, and a token must be the same while its lead exceeds them. If MAMBA_GOLDEN is set, the test also runs on
// every folder of that directory that has *.gguf files.
func TestGoldenGGUF(t *testing.T) {
	given, err := golden.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if given.Dir != "" && len(given.GGUF) == 0 {
		fmt.Printf("no GGUF file: %v\n", given)
	}
	for _, dir := range append([]string{ggufTiny}, given.GGUF...) {
		files, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			t.Run(strings.TrimSuffix(filepath.Base(path), ".gguf"), func(t *testing.T) { checkGGUF(t, path) })
		}
	}
}

// tolerances are those of a type of matrices against the exact logits and llama.cpp's.
func tolerances(typ blas.Type) (exact, llama float64) {
	switch typ {
	case blas.Float32:
		return 1e-5, 1e-5
	case blas.Float16: // activations are not rounded here
		return 1e-5, 2e-3
	case blas.BFloat16:
		return 2e-2, 6e-3
	}
	return 6e-2, 6e-2
}

func checkGGUF(t *testing.T, path string) {
	name := strings.TrimSuffix(path, ".gguf") + ".expected.safetensors"
	if _, err := os.Stat(name); err != nil {
		t.Skipf("%s is missing", name)
	}
	expected, err := golden.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, types := range []string{"float32", "file"} {
		lm, err := Load(path, Weights(types))
		if err != nil {
			t.Fatal(err)
		}
		checkLoaded(t, lm, expected, path, types)
	}
}

// TestGoldenGGUFOnDevice is TestGoldenGGUF with the files' types on a device.
func TestGoldenGGUFOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, name := range []string{"narrow-F16", "narrow-BF16", "narrow-Q8_0", "narrow-Q4_0", "narrow-Q4_K_M", "wide-Q4_K_M", "wide-Q6_K"} {
		if testing.Short() && name != "narrow-Q4_K_M" { // the stand-in is slow
			continue
		}
		path := filepath.Join(ggufTiny, name+".gguf")
		expected, err := golden.Read(filepath.Join(ggufTiny, name+".expected.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		lm, err := Load(path, nn.OnDevice(d))
		if err != nil {
			t.Fatal(err)
		}
		if lm.Params().Place().OnHost() || lm.Params()[0].Narrow() == nil {
			t.Errorf("%s: on the host: %t, want narrow weights on a device", name, lm.Params().Place().OnHost())
		}
		checkLoaded(t, lm, expected, path, "file")
	}
}

// checkLoaded compares the results of a model whose matrices have some types.
func checkLoaded(t *testing.T, lm *nn.LM, expected *golden.File, path, types string) {
	widest := blas.Float32 // in the order of their tolerances
	for _, p := range lm.Params() {
		if w := p.Narrow(); w != nil && isProduct(p.Name) {
			for _, typ := range []blas.Type{blas.Float16, blas.BFloat16} {
				if w.Type() == typ && widest < blas.Q8_0 {
					widest = typ
				}
			}
			if w.Type() >= blas.Q8_0 {
				widest = blas.Q8_0
			}
		}
	}
	exactTolerance, llamaTolerance := tolerances(widest)
	against := "logits"
	if types == "float32" {
		against = ""
	}
	var worst, worstLlama float64
	k := 0
	for ; ; k++ {
		ids, ok := expected.Tensors[fmt.Sprint("ids", k)]
		if !ok {
			break
		}
		got, exact := ggufLogits(t, lm, golden.Ints(ids)), expected.Tensors[fmt.Sprint("exact", k)].Data
		d, err := golden.Distance(got, exact)
		if err != nil || !(d <= exactTolerance) {
			t.Errorf("%q: logits%d are off by %.2g of the largest exact one, want at most %g (%v)", types, k, d, exactTolerance, err)
		}
		worst = max(worst, d)
		if against != "" {
			// The measure is the largest exact logit here too.
			largest := 0.0
			for _, x := range exact {
				largest = max(largest, math.Abs(x))
			}
			for i, x := range expected.Tensors[fmt.Sprint("logits", k)].Data {
				worstLlama = max(worstLlama, math.Abs(x-got[i])/largest)
			}
		}
		if lm.Params().Place().OnHost() || !testing.Short() {
			checkGreedy(t, lm, expected, k, exactTolerance)
		}
	}
	if k == 0 {
		t.Error("no ids0 in the file")
	}
	if !lm.Params().Place().OnHost() { // activations are rounded in other places
		llamaTolerance = max(llamaTolerance, exactTolerance)
	}
	if against != "" && !(worstLlama <= llamaTolerance) {
		t.Errorf("%q: logits are off by %.2g from llama.cpp's, want at most %g", types, worstLlama, llamaTolerance)
	}
	fmt.Printf("%s %q: %d sequences, within %.1e of exact (of %g), %.1e of llama.cpp\n", path, types, k, worst, exactTolerance, worstLlama)
}

// checkGreedy compares generated tokens while the exact lead of the best is larger than the tolerance.
func checkGreedy(t *testing.T, lm *nn.LM, expected *golden.File, k int, tolerance float64) {
	t.Helper()
	ids := golden.Ints(expected.Tensors[fmt.Sprint("ids", k)])
	want, gaps := golden.Ints(expected.Tensors[fmt.Sprint("exactgreedy", k)]), expected.Tensors[fmt.Sprint("exactgap", k)].Data
	var largest float64
	for _, x := range expected.Tensors[fmt.Sprint("exact", k)].Data {
		largest = max(largest, math.Abs(x))
	}
	n := len(want)
	for i, gap := range gaps {
		if gap <= 2*tolerance*largest && tolerance > 1e-5 {
			n = i
			break
		}
	}
	g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: len(want)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	got, err := g.Generate(context.Background(), [][]int{ids}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got[0][:n], want[:n]) {
		t.Errorf("tokens after ids%d are %v, want %v (the first %d)", k, got[0], want, n)
	}
}

func ggufLogits(t *testing.T, lm *nn.LM, ids []int) []float64 {
	t.Helper()
	g := G.NewGraph()
	n, err := lm.Apply(intLeaf(g, "ids", ids, 1, len(ids)))
	if err != nil {
		t.Fatal(err)
	}
	var v G.Value
	G.Read(n, &v)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	return golden.Elements(v.Data())
}
