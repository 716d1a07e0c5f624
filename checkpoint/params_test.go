package checkpoint

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// userModel returns the weights of a model as users make them: a block, a stack with layers of other kinds, and two weights of their
// own, of which one has no axes.
func userModel(seed uint64) layer.Params {
	cfg := nn.Config{DModel: 4, NLayer: 2, Pattern: []nn.Kind{nn.Mamba, nn.SwiGLU}}
	block := nn.NewMambaBlock(nn.Config{DModel: 4}, nn.WithName("block"), nn.WithSeed(seed+1))
	stack := nn.NewMambaStack(cfg, nn.WithName("stack"), nn.WithSeed(seed+1), nn.WithDtype(tensor.Float64))
	scale := layer.NewParam("scale", tensor.New(tensor.FromScalar(float32(seed)+0.5)), false)
	table := layer.NewParam("table", tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]float64{1, 2, 3, 4, 5, float64(seed)})), true)
	return slices.Concat(block.Params(), stack.Params(), layer.Params{scale, table})
}

// The weights of any model are saved and loaded, bit for bit, with metadata.
func TestSaveParams(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	want := userModel(3)
	metadata := map[string]string{"made by": "a test", "": "\"\n∂"}
	for range 2 { // over itself too
		if err := SaveParams(dir, want, metadata); err != nil {
			t.Fatal(err)
		}
	}
	filesAre(t, dir, weightsFile)
	r := open(t, dir)
	if !maps.Equal(r.Metadata(), metadata) {
		t.Errorf("the metadata is %q, want %q", r.Metadata(), metadata)
	}
	if clear(r.Metadata()); !maps.Equal(r.Metadata(), metadata) {
		t.Errorf("the caller changes the reader's metadata, to %q", r.Metadata())
	}
	got := userModel(8)
	if err := r.LoadParams(got, ""); err != nil {
		t.Fatal(err)
	}
	for i, p := range want {
		if a, b := must(elements(got[i])), must(elements(p)); !slices.Equal(doubled(a), doubled(b)) {
			t.Errorf("%s is %v, want %v", p.Name, a, b)
		}
	}
	// Load a part of the model by its prefix.
	block := nn.NewMambaBlock(nn.Config{DModel: 4})
	if err := r.LoadInto(block, "block"); err != nil {
		t.Fatal(err)
	}
	sameWeights(t, block.Params(), want[:len(block.Params())])
	if len(r.Names()) != len(want) {
		t.Errorf("the names are %q, want %d", r.Names(), len(want))
	}
	// Load the weights of one of several models by a prefix.
	inner := layer.NewLinear(layer.LinearConfig{In: 2, Out: 2}, layer.WithName("inner.proj"), layer.WithSeed(5))
	if err := SaveParams(t.TempDir(), inner.Params(), nil); err != nil {
		t.Error(err)
	}
	outer := layer.NewLinear(layer.LinearConfig{In: 2, Out: 2}, layer.WithName("proj"), layer.WithSeed(6))
	dir = t.TempDir()
	if err := SaveParams(dir, inner.Params(), nil); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).LoadParams(outer.Params(), "inner"); err != nil {
		t.Fatal(err)
	}
	sameWeights(t, outer.Params(), inner.Params())
}

// A weight of a user may have the name of the embedding in the original layout, which Open replaces by another name.
func TestSaveParamsOfTheOriginalName(t *testing.T) {
	weight := func(name string, v float32) *layer.Param {
		return layer.NewParam(name, tensor.New(tensor.WithShape(1), tensor.WithBacking([]float32{v})), false)
	}
	for _, names := range [][]string{{originalEmbedding}, {originalEmbedding, embedding}, {embedding, head, originalEmbedding}} {
		var want, got layer.Params
		for i, name := range names {
			want, got = append(want, weight(name, float32(i+1))), append(got, weight(name, 0))
		}
		dir := t.TempDir()
		if err := SaveParams(dir, want, nil); err != nil {
			t.Fatal(err)
		}
		if err := open(t, dir).LoadParams(got, ""); err != nil {
			t.Fatal(err)
		}
		sameWeights(t, got, want)
	}
}

func doubled(data any) (all []uint64) {
	switch data := data.(type) {
	case []float32:
		for _, v := range data {
			all = append(all, math.Float64bits(float64(v)))
		}
	case []float64:
		for _, v := range data {
			all = append(all, math.Float64bits(v))
		}
	}
	return all
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A weight that cannot be saved is an error that names it, and the old file does not change.
func TestSaveParamsErrors(t *testing.T) {
	dir := t.TempDir()
	if err := SaveParams(dir, userModel(1), map[string]string{"version": "1"}); err != nil {
		t.Fatal(err)
	}
	before := get(t, filepath.Join(dir, weightsFile))
	vector := func(name string, data any, n int) *layer.Param {
		return layer.NewParam(name, tensor.New(tensor.WithShape(n), tensor.WithBacking(data)), false)
	}
	withLoRA := layer.NewLinear(layer.LinearConfig{In: 2, Out: 2}, layer.WithName("in_proj"))
	if _, err := withLoRA.Params().AddLoRA(layer.LoRAConfig{Rank: 1}); err != nil {
		t.Fatal(err)
	}
	view := tensor.New(tensor.WithShape(3, 2), tensor.WithBacking(make([]float32, 6)))
	if err := view.T(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		params   layer.Params
		metadata map[string]string
		want     string
	}{
		{nil, nil, "there are no weights"},
		{layer.Params{layer.NewParam("zero", new(tensor.Dense), false)}, nil, "weight 0 is missing or has no value"},
		{layer.Params{vector("", []float32{1}, 1)}, nil, "weight 0 of 1 has no name"},
		{layer.Params{vector("a", []float32{1}, 1), vector("a", []float32{2}, 1)}, nil, "two tensors have the name a"},
		{layer.Params{vector("a", []float32{1, float32(math.NaN())}, 2)}, nil, "a: element 1 is not a number"},
		{layer.Params{vector("a", []float32{1}, 1), nil}, nil, "weight 1 is missing"},
		{layer.Params{vector("a", []int{1}, 1)}, nil, "a is of int, want float32 or float64"},
		{layer.Params{vector("a\xff", []float32{1}, 1)}, nil, "want UTF-8"},
		{layer.Params{vector(strings.Repeat("a", 600), []float32{1}, 1)}, nil, "at most 512 bytes"},
		{layer.Params{vector("__metadata__", []float32{1}, 1)}, nil, "two tensors have the name __metadata__"},
		{layer.Params{layer.NewParam("view", view, false)}, nil, "view is a view of another tensor"},
		{withLoRA.Params(), nil, "in_proj.weight has a LoRA: merge or remove it first"},
		{userModel(1), map[string]string{"format": "np"}, `the metadata has the key "format"`},
		{userModel(1), map[string]string{"a": "\xff"}, "want UTF-8"},
	} {
		err := SaveParams(dir, c.params, c.metadata)
		if err == nil || !strings.HasPrefix(err.Error(), "checkpoint: save to "+dir) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
		if !slices.Equal(get(t, filepath.Join(dir, weightsFile)), before) {
			t.Fatalf("%s: the file has changed", c.want)
		}
		filesAre(t, dir, weightsFile)
	}
	lm := t.TempDir()
	if err := Save(lm, newLM(t, someConfigs()[0])); err != nil {
		t.Fatal(err)
	}
	if err := SaveParams(lm, userModel(1), nil); err == nil || !strings.Contains(err.Error(), "config.json exists and describes another model") {
		t.Errorf("over a language model: error %v", err)
	}
	r := open(t, dir)
	for _, c := range []struct {
		params layer.Params
		prefix string
		want   string
	}{
		{layer.Params{{}}, "", "weight 0 is missing"},
		{layer.Params{vector("other", []float32{1}, 1)}, "", "missing: other (1)"},
		{layer.Params{vector("table", []float64{1}, 1)}, "", "table is (2, 3), want (1)"},
		{userModel(1), "x", "missing: x.scale ()"},
		{layer.Params{vector("scale", []float32{1}, 1), vector("scale", []float32{1}, 1)}, "", "two weights have the name scale"},
	} {
		if err := r.LoadParams(c.params, c.prefix); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

// The weights of any model do not take the place of a checkpoint with a config.json, not even of one that was committed and whose save
// was interrupted.
func TestSaveParamsBesideConfig(t *testing.T) {
	for _, name := range []string{configFile, filepath.Join(tensorfile.Committed, configFile)} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		put(t, path, []byte("{}"))
		if err := SaveParams(dir, userModel(1), nil); err == nil || !strings.Contains(err.Error(), "config.json exists and describes another model") {
			t.Errorf("%s: error %v", name, err)
		}
		if got := string(get(t, path)); got != "{}" {
			t.Errorf("%s is %q", name, got)
		}
	}
}
