package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gguf"
	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// The logits of narrow weights are near those of float32, and the matrices have the types that Weights promises. All else stays float32.
func TestNarrowWeights(t *testing.T) {
	wide := newLM(t, nn.LMConfig{Config: nn.Config{DModel: 256, NLayer: 2}, Vocab: 40, UntiedHead: true})
	dir := t.TempDir()
	if err := Save(dir, wide); err != nil {
		t.Fatal(err)
	}
	ids := []int{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7}
	want := ggufLogits(t, wide, ids)
	for types, c := range map[string]struct {
		tolerance              float64
		embed, in, dt, out, at blas.Type
	}{
		"bf16":    {3e-2, blas.BFloat16, blas.BFloat16, blas.BFloat16, blas.BFloat16, blas.BFloat16},
		"float16": {3e-3, blas.Float16, blas.Float16, blas.Float16, blas.Float16, blas.Float16},
		"int8":    {5e-2, blas.Q8_0, blas.Q8_0, blas.Float16, blas.Q8_0, blas.Q8_0},
		"int4":    {0.3, blas.Q4_K, blas.Q4_K, blas.Float16, blas.Q4_K, blas.Q6_K},
	} {
		lm, err := Load(dir, Weights(types))
		if err != nil {
			t.Fatal(err)
		}
		d, err := golden.Distance(ggufLogits(t, lm, ids), want)
		if err != nil || !(d <= c.tolerance) || d == 0 {
			t.Errorf("%s: logits are off by %.2g of the largest, want more than 0 and at most %g (%v)", types, d, c.tolerance, err)
		}
		for _, p := range lm.Params() {
			got, name := p.Narrow(), strings.TrimSuffix(p.Name, ".weight")
			typ := map[string]blas.Type{"embeddings": c.embed, "in_proj": c.in, "x_proj": c.in, "dt_proj": c.dt, "out_proj": c.out, "lm_head": c.at}
			of, product := typ[name[strings.LastIndexByte(name, '.')+1:]]
			product = product && strings.HasSuffix(p.Name, ".weight")
			if product != (got != nil) || product && got.Type() != of || !product && p.Value.Dtype() != tensor.Float32 {
				t.Errorf("%s: %s is %v", types, p.Name, got)
			}
		}
	}
}

// A checkpoint in bfloat16 keeps its type, and so gives the same numbers as with bf16.
func TestWeightsOfTheFile(t *testing.T) {
	var logits [2][]float64
	for i, types := range []string{"file", "bfloat16"} {
		lm, err := Load(sharded, Weights(types))
		if err != nil {
			t.Fatal(err)
		}
		if w := lm.Params()[0].Narrow(); w == nil || w.Type() != blas.BFloat16 {
			t.Errorf("%s: the embedding is %v", types, w)
		}
		logits[i] = ggufLogits(t, lm, []int{1, 2, 3})
	}
	if d, err := golden.Distance(logits[0], logits[1]); d != 0 || err != nil {
		t.Error(d, err)
	}
	lm, err := Load(tiny, Weights("file")) // float32
	if err == nil && lm.Params().CheckWide() != nil || err != nil {
		t.Errorf("a float32 file: %v, %v", err, lm.Params().CheckWide())
	}
}

// What narrow weights cannot do is an error that says so.
func TestNarrowErrors(t *testing.T) {
	lm, err := Load(tiny, Weights("int8"))
	if err != nil {
		t.Fatal(err)
	}
	const what = "backbone.embeddings.weight is of "
	loadGGUF := func(opts ...nn.Option) func() error {
		return func() error { _, err := Load(filepath.Join(ggufTiny, "narrow-Q8_0.gguf"), opts...); return err }
	}
	for name, c := range map[string]struct {
		want string
		f    func() error
	}{
		"save":   {what, func() error { return Save(t.TempDir(), lm) }},
		"params": {what, func() error { return SaveParams(t.TempDir(), lm.Params(), nil) }},
		"lora":   {what, func() error { _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2}); return err }},
		"train": {what, func() error {
			_, err := train.New(lm, train.Config{Batch: 1, Length: 4, Steps: 1, Data: []train.Document{{Tokens: []int{1, 2, 3, 4, 5}}}})
			return err
		}},
		"type":           {`the option Weights is "int3", want float32, file, bfloat16, float16, int8 or int4`, func() error { _, err := Load(tiny, Weights("int3")); return err }},
		"empty":          {`the option Weights is "", want float32, file`, func() error { _, err := Load(tiny, Weights("")); return err }},
		"double":         {`the option Weights is "int8" with a dtype of float64`, func() error { _, err := Load(tiny, Weights("int8"), nn.WithDtype(tensor.Float64)); return err }},
		"GGUF, double":   {"dtype is float64, want float32 for a GGUF file", loadGGUF(nn.WithDtype(tensor.Float64))},
		"GGUF, double 2": {"dtype is float64, want float32 for a GGUF file", loadGGUF(nn.WithDtype(tensor.Float64), Weights("float32"))},
		"GGUF, device":   {"the device is missing", loadGGUF(nn.OnDevice(nil), Weights("file"))},
		"int4, device":   {`the option Weights is "int4", want float32, file, bfloat16, float16 or int8 on a device`, loadGGUF(nn.OnDevice(nil), Weights("int4"))},
		"GGUF, device 2": {"the device is missing", loadGGUF(nn.OnDevice(nil))},
		"new":            {`the option Weights is "int8", want none`, func() error { return nn.NewLM(lm.Config(), Weights("int8")).Err() }},
	} {
		if err := c.f(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A narrow weight keeps its shape: LoRAShapes gives it, and SetNarrow takes no other, not even (n, 1) for (n).
func TestNarrowShape(t *testing.T) {
	lm, err := Load(tiny, Weights("int8"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"backbone.layers.0.mixer.in_proj.weight", "backbone.norm_f.weight"} {
		p := lm.Params().ByName(name)
		shape := p.Shape()
		if p.Narrow() != nil {
			if _, shapes := p.LoRAShapes(2); !shapes[0].Eq(tensor.Shape{2, shape[1]}) || !shapes[1].Eq(tensor.Shape{shape[0], 2}) {
				t.Errorf("%s: LoRA of shapes %v", name, shapes)
			}
			shape = tensor.Shape{shape[1], shape[0]}
		}
		w, err := blas.Quantize(blas.BFloat16, shape[0], shape.TotalSize()/shape[0], make([]float32, shape.TotalSize()))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.SetNarrow(w); err == nil || !strings.Contains(err.Error(), name+": the matrix has shape (") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A GGUF file can become a directory, also one with the ending .gguf, which Load takes with another dtype.
func TestGGUFToDirectory(t *testing.T) {
	lm, err := Load(filepath.Join(ggufTiny, "narrow-Q8_0.gguf"), Weights("float32"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "folder.gguf")
	if err := Save(dir, lm); err != nil {
		t.Fatal(err)
	}
	if lm, err = Load(dir, nn.WithDtype(tensor.Float64)); err != nil || lm.Params()[0].Value.Dtype() != tensor.Float64 {
		t.Error(err)
	}
}

// On a device, the weights of a GGUF file can be float32.
func TestGGUFOnDevice(t *testing.T) {
	path, ids := filepath.Join(ggufTiny, "narrow-Q4_K_M.gguf"), []int{3, 1, 4, 1, 5, 9, 2, 6}
	wide, err := Load(path, Weights("float32"))
	if err != nil {
		t.Fatal(err)
	}
	lm, err := Load(path, nn.OnDevice(gputest.Open(t, cuda.Open)), Weights("float32"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := golden.Distance(ggufLogits(t, lm, ids), ggufLogits(t, wide, ids)); !(d <= 1e-5) || err != nil || lm.Params().Place().OnHost() {
		t.Errorf("off by %.2g, on the host: %t (%v)", d, lm.Params().Place().OnHost(), err)
	}
}

// On a device, a model of narrow weights has the logits and the tokens of the host, and takes the memory of its types. It is not trained there.
func TestNarrowOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	wide := newLM(t, nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 45})
	dir := t.TempDir()
	if err := Save(dir, wide); err != nil {
		t.Fatal(err)
	}
	prompts := [][]int{{3, 1, 4, 1, 5, 9, 2, 6, 5}, {11, 13}}
	generate := func(lm *nn.LM) [][]int {
		g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 4, Piece: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		tokens, err := g.Generate(t.Context(), prompts, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tokens
	}
	count := wide.Params().Count()
	for types, c := range map[string]struct {
		tolerance float64
		bytes     float64 // a weight; many of this model are not in matrices
	}{"bf16": {3e-2, 2.8}, "float16": {1e-5, 2.8}, "int8": {3e-2, 2}} {
		host, err := Load(dir, Weights(types))
		if err != nil {
			t.Fatal(err)
		}
		before, _ := d.Memory()
		lm, err := Load(dir, Weights(types), nn.OnDevice(d))
		if err != nil {
			t.Fatal(err)
		}
		if used, _ := d.Memory(); float64(used-before) > c.bytes*float64(count) {
			t.Errorf("%s: %d bytes on the device for %d weights, want at most %g each", types, used-before, count, c.bytes)
		}
		far, err := golden.Distance(ggufLogits(t, lm, prompts[0]), ggufLogits(t, host, prompts[0]))
		if err != nil || !(far <= c.tolerance) {
			t.Errorf("%s: logits are off by %.2g of the largest, want at most %g (%v)", types, far, c.tolerance, err)
		}
		if got, want := generate(lm), generate(host); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: tokens %v, want %v", types, got, want)
		}
		if err := lm.Params().CheckWide(); err == nil || !strings.Contains(err.Error(), "want float32: a model of narrow weights generates, and is not trained") {
			t.Errorf("%s: %v", types, err)
		}
		g := G.NewGraph()
		loss, err := lm.Apply(intLeaf(g, "ids", prompts[0], 1, len(prompts[0])))
		if err == nil {
			loss, err = G.Sum(loss)
		}
		if err == nil {
			_, err = G.Grad(loss, lm.Params()[0].Node(g))
		}
		if err != nil {
			t.Fatal(err)
		}
		m := G.NewTapeMachine(g)
		if err := m.RunAll(); err == nil || !strings.Contains(err.Error(), "a model of narrow weights is not trained") {
			t.Errorf("%s: the gradient: %v", types, err)
		}
		m.Close()
	}
}

// A model that does not fit into a device's memory leaves nothing there, whatever the garbage collector does.
func TestNarrowOutOfMemory(t *testing.T) {
	limit := gputest.Allocations(t)
	d := gputest.Open(t, cuda.Open)
	before, _ := d.Memory()
	for allowed := 0; ; allowed++ {
		limit(allowed)
		_, err := Load(filepath.Join(ggufTiny, "narrow-Q8_0.gguf"), nn.OnDevice(d))
		limit(-1)
		if err == nil {
			if allowed < 3 {
				t.Errorf("loaded after %d allocations, want that some weights fit and others do not", allowed)
			}
			return
		}
		if used, _ := d.Memory(); used != before {
			t.Fatalf("after %d allocations: %d bytes in use, want %d (%v)", allowed, used, before, err)
		}
	}
}

// A file that is cut after it was opened is an error, wherever it is cut: neither the end of the process nor zeros.
func TestShorterGGUF(t *testing.T) {
	for _, types := range []string{"file", "float32", "int8"} {
		for cut := range int64(4) {
			path := filepath.Join(t.TempDir(), "x.gguf")
			b, err := os.ReadFile(filepath.Join(ggufTiny, "narrow-Q8_0.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			put(t, path, b)
			file, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, []int64{int64(len(b)) - 1, int64(len(b)) - 9000, 5000, 0}[cut]); err != nil {
				t.Fatal(err)
			}
			_, _, err = readGGUF(file, types, nil)
			if err == nil {
				err = file.Whole()
			}
			if err == nil || !strings.Contains(err.Error(), "cannot") && !strings.Contains(err.Error(), "shorter than") {
				t.Errorf("%s, cut %d: %v", types, cut, err)
			}
			if err := file.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A damaged GGUF file is an error that names what is wrong.
func TestHostileGGUF(t *testing.T) {
	source := filepath.Join(ggufTiny, "narrow-Q8_0.gguf")
	replace := func(old, replacement string) func([]byte) []byte {
		return func(b []byte) []byte { return []byte(strings.Replace(string(b), old, replacement, 1)) }
	}
	for name, c := range map[string]struct {
		want  string
		spoil func([]byte) []byte
	}{
		"short":        {"bytes at", func(b []byte) []byte { return b[:len(b)-4096] }},
		"architecture": {"general.architecture is \"llama\", want mamba", replace("\x05\x00\x00\x00\x00\x00\x00\x00mamba\x0c", "\x05\x00\x00\x00\x00\x00\x00\x00llama\x0c")},
		"layers":       {"tensors do not fit", replace("mamba.block_count\x04\x00\x00\x00\x02", "mamba.block_count\x04\x00\x00\x00\x03")},
		"no layers":    {"mamba.block_count is 0, want 1 to", replace("mamba.block_count\x04\x00\x00\x00\x02", "mamba.block_count\x04\x00\x00\x00\x00")},
		"many layers":  {"mamba.block_count is 16777218, but the file has only", replace("mamba.block_count\x04\x00\x00\x00\x02\x00\x00\x00", "mamba.block_count\x04\x00\x00\x00\x02\x00\x00\x01")},
		"width":        {"tensors do not fit", replace("mamba.embedding_length\x04\x00\x00\x00\x40", "mamba.embedding_length\x04\x00\x00\x00\x41")},
		"missing key":  {"mamba.ssm.state_size is missing", replace("mamba.ssm.state_size", "mamba.ssm.state_sise")},
		"name":         {"superfluous: blk.0.ssm_y.weight", replace("blk.0.ssm_x.weight", "blk.0.ssm_y.weight")},
	} {
		b, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "x.gguf")
		put(t, path, c.spoil(b))
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// Scales that are not finite: the largest tensor's.
	file, err := gguf.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	largest := file.Tensors[0]
	for _, x := range file.Tensors {
		if x.Size > largest.Size {
			largest = x
		}
	}
	b[largest.Offset+34], b[largest.Offset+35] = 0, 0x7c
	path := filepath.Join(t.TempDir(), "x.gguf")
	put(t, path, b)
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "row 0 has a NaN, or a scale that is not finite") {
		t.Errorf("an infinite scale: %v", err)
	}
}
