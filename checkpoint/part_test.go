package checkpoint

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

func open(t testing.TB, dir string) *Reader {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// A block, a stack, a shorter stack and a layer load their weights by a prefix. Their own names do not matter.
func TestLoadParts(t *testing.T) {
	r := open(t, tiny)
	cfg, err := r.Config()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Load(tiny)
	if err != nil {
		t.Fatal(err)
	}
	short := cfg.Config
	short.NLayer = 2
	for _, c := range []struct {
		part   Part
		prefix string
		strip  string // the part's own name
	}{
		{nn.NewMambaBlock(cfg.Config), "backbone.layers.1", ""},
		{nn.NewMambaBlock(cfg.Config, nn.WithName("my.block")), "backbone.layers.2", "my.block."},
		{nn.NewMambaStack(cfg.Config), "backbone", ""},
		{nn.NewMambaStack(cfg.Config, nn.WithName("encoder")), "backbone", "encoder."},
		{nn.NewMambaStack(short), "backbone", ""},
		{nn.NewLM(cfg), "", ""},
		{layer.NewRMSNorm(layer.RMSNormConfig{Channels: 32}), "backbone.norm_f", ""},
		{layer.NewConv1D(layer.Conv1DConfig{Channels: 64, Width: 4}, layer.WithName("conv")), "backbone.layers.0.mixer.conv1d", "conv."},
	} {
		if err := r.LoadInto(c.part, c.prefix); err != nil {
			t.Errorf("%s: %v", c.part.Name(), err)
			continue
		}
		var want layer.Params
		for _, p := range c.part.Params() {
			want = append(want, whole.Params().ByName(strings.TrimPrefix(c.prefix+"."+strings.TrimPrefix(p.Name, c.strip), ".")))
		}
		sameWeights(t, c.part.Params(), want)
	}
}

// A model of float64 loads the same numbers.
func TestLoadFloat64(t *testing.T) {
	single, err := Load(tiny)
	if err != nil {
		t.Fatal(err)
	}
	double, err := Load(tiny, nn.WithDtype(tensor.Float64))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range double.Params() {
		for j, v := range single.Params()[i].Value.Data().([]float32) {
			if got := p.Value.Data().([]float64)[j]; got != float64(v) {
				t.Fatalf("%s: element %d is %v, want %v", p.Name, j, got, v)
			}
		}
	}
}

func TestLoadPartsThatDoNotFit(t *testing.T) {
	r := open(t, tiny)
	cfg, err := r.Config()
	if err != nil {
		t.Fatal(err)
	}
	other := func(change func(c *nn.Config)) nn.Config {
		c := cfg.Config
		change(&c)
		return c
	}
	for _, c := range []struct {
		part   Part
		prefix string
		want   string
	}{
		{nn.NewMambaBlock(cfg.Config), "backbone.layers.3", "missing: backbone.layers.3.norm.weight (32)"},
		{nn.NewMambaBlock(cfg.Config), "", "missing: mixer.A_log (64, 8)"},
		{nn.NewMambaBlock(other(func(c *nn.Config) { c.Bias = true })), "backbone.layers.0", "missing: backbone.layers.0.mixer.in_proj.bias (128)"},
		{nn.NewMambaBlock(other(func(c *nn.Config) { c.NoConvBias = true })), "backbone.layers.0", "superfluous: backbone.layers.0.mixer.conv1d.bias (64)"},
		{nn.NewMambaBlock(other(func(c *nn.Config) { c.DConv = 3 })), "backbone.layers.0", "misshapen: backbone.layers.0.mixer.conv1d.weight is (64, 1, 4), want (64, 1, 3)"},
		{nn.NewMambaBlock(other(func(c *nn.Config) { c.NormEps = 1e-6 })), "backbone.layers.0", "layer_norm_epsilon of 1e-05, the model one of 1e-06"},
		{nn.NewMambaStack(other(func(c *nn.Config) { c.NLayer = 4 })), "backbone", "missing: backbone.layers.3.norm.weight (32)"},
		{nn.NewLM(nn.LMConfig{Config: cfg.Config, Vocab: 96, UntiedHead: true}), "", "config.json has an untied head: false, the model: true"},
		{layer.NewLinear(layer.LinearConfig{In: 0, Out: 3}), "x", "layer: linear: in is 0, want at least 1"},
	} {
		var before [][]byte
		for _, p := range c.part.Params() {
			before = append(before, bits(p))
		}
		err := r.LoadInto(c.part, c.prefix)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.part.Name(), err, c.want)
		}
		for i, p := range c.part.Params() {
			if string(before[i]) != string(bits(p)) {
				t.Errorf("%s: %s has changed", c.part.Name(), p.Name)
			}
		}
	}
}

// Without a config.json a part of a model can be loaded, but not a whole model.
func TestNoConfig(t *testing.T) {
	dir := copyOf(t, tiny)
	if err := os.Remove(filepath.Join(dir, configFile)); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	if err := r.LoadInto(layer.NewRMSNorm(layer.RMSNormConfig{Channels: 32, Eps: 1}), "backbone.norm_f"); err != nil {
		t.Error(err)
	}
	if _, err := r.Config(); err == nil || !strings.Contains(err.Error(), configFile) {
		t.Errorf("%v, want an error that names %s", err, configFile)
	}
}

func TestNames(t *testing.T) {
	for _, dir := range []string{tiny, sharded, original} {
		r := open(t, dir)
		cfg, err := r.Config()
		if err != nil {
			t.Fatal(err)
		}
		names := r.Names()
		want := len(lmTensors(cfg))
		if dir == original {
			want++ // its head is on file, tied though it is
		}
		if len(names) != want || names[0] != embedding {
			t.Errorf("%s: %d names from %s on, want %d from %s on", dir, len(names), names[0], want, embedding)
		}
	}
}

// If the head is tied and the file has a head, the head must be equal to the embedding.
func TestTiedHeadOnFile(t *testing.T) {
	dir := t.TempDir()
	untied := newLM(t, nn.LMConfig{Config: nn.Config{DModel: 4}, Vocab: 5, UntiedHead: true})
	head := untied.Params().ByName(head).Value.Data().([]float32)
	embedding := untied.Params().ByName(embedding).Value.Data().([]float32)
	copy(head, embedding)
	save := func() {
		if err := Save(dir, untied); err != nil {
			t.Fatal(err)
		}
		setOptions(t, dir, map[string]any{"tie_word_embeddings": true})
	}
	save()
	lm, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	sameWeights(t, lm.Params(), untied.Params()[:len(untied.Params())-1])
	head[7] = math.Nextafter32(head[7], 2)
	save()
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "lm_head.weight differs from backbone.embeddings.weight") {
		t.Errorf("%v, want one about the head", err)
	}
	copy(head, embedding)
	save()
	reads := 0
	restore := tensorfile.Intercept(func(op, name string) error {
		if op == "read" && filepath.Base(name) == weightsFile {
			if reads++; reads == 1 { // that which compares
				return errDisk
			}
		}
		return nil
	})
	_, err = Load(dir)
	restore()
	if !errors.Is(err, errDisk) {
		t.Errorf("a disk that fails while the head is compared: error %v", err)
	}
}

// The embedding has two names, one in each layout. A language model with both of them is an error. Another model may have both:
// TestSaveParamsOfTheOriginalName.
func TestEmbeddingTwice(t *testing.T) {
	var both layer.Params
	for _, name := range []string{"backbone.embedding.weight", embedding} {
		both = append(both, layer.NewParam(name, tensor.New(tensor.WithShape(2, 2), tensor.Of(tensor.Float32)), true))
	}
	dir := t.TempDir()
	if err := SaveParams(dir, both, nil); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, configFile), get(t, filepath.Join(tiny, configFile)))
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), embedding+" is there twice") {
		t.Errorf("error %v, want that %s is there twice", err, embedding)
	}
}
