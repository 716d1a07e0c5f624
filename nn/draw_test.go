package nn

import (
	"reflect"
	"strings"
	"testing"

	"github.com/gomamba/mamba/layer"
)

// A stack has a layer for each entry of its pattern, or NLayer layers if NLayer is a multiple of the pattern's length.
func TestPatternLength(t *testing.T) {
	pattern := []Kind{Mamba, Mamba, Attention, SwiGLU}
	for _, c := range []struct {
		nLayer, want int
		err          string
	}{
		{0, 4, ""},
		{4, 4, ""},
		{8, 8, ""},
		{1, 0, "nn: NLayer is 1, want a multiple of 4, the length of Pattern, or 0 for 4"},
		{6, 0, "nn: NLayer is 6, want a multiple of 4, the length of Pattern, or 0 for 4"},
	} {
		cfg := Config{DModel: 8, NLayer: c.nLayer, NHead: 2, Pattern: pattern}
		for _, m := range []interface {
			Params() layer.Params
			Err() error
		}{NewMambaStack(cfg), NewLM(LMConfig{Config: cfg, Vocab: 5})} {
			if c.err != "" {
				if m.Err() == nil || m.Err().Error() != c.err {
					t.Errorf("NLayer %d: error %v, want %s", c.nLayer, m.Err(), c.err)
				}
				continue
			}
			layers := map[string]bool{}
			for _, p := range m.Params() {
				if _, after, ok := strings.Cut(p.Name, "layers."); ok {
					layers[strings.Split(after, ".")[0]] = true
				}
			}
			if m.Err() != nil || len(layers) != c.want {
				t.Errorf("NLayer %d: %d layers (%v), want %d", c.nLayer, len(layers), m.Err(), c.want)
			}
		}
	}
	if err := NewMambaBlock(Config{DModel: 8, Pattern: pattern}).Err(); err == nil || !strings.Contains(err.Error(), "nn: MambaBlock: Pattern has 4 layers, want none") {
		t.Errorf("a block with a pattern: error %v", err)
	}
}

// The initial output projections are scaled by the number of layers, whether Pattern or NLayer sets it.
func TestPatternScalesStart(t *testing.T) {
	start := func(cfg Config) any {
		return NewMambaStack(cfg, WithSeed(1)).Params().ByName("layers.0.mixer.out_proj.weight").Value.Data()
	}
	pattern := Config{DModel: 4, Pattern: []Kind{Mamba, Mamba, Mamba, Mamba}}
	if !reflect.DeepEqual(start(pattern), start(Config{DModel: 4, NLayer: 4})) {
		t.Error("a pattern of four blocks starts differently from four blocks")
	}
}

// Two modules without names have different initial weights, unless they have the same seed. The initial weights of a language model depend
// only on its seed and configuration.
func TestUnnamedModulesDrawApart(t *testing.T) {
	type module interface{ Params() layer.Params }
	equal := func(a, b module) bool {
		for i, p := range a.Params() {
			if strings.HasSuffix(p.Name, "in_proj.weight") || strings.HasSuffix(p.Name, "embeddings.weight") {
				return reflect.DeepEqual(p.Value.Data(), b.Params()[i].Value.Data())
			}
		}
		t.Fatalf("no weight of %T to compare", a)
		return false
	}
	cfg := Config{DModel: 4}
	for what, c := range map[string]struct {
		make  func(opts ...Option) module
		equal bool
	}{
		"block": {func(opts ...Option) module { return NewMambaBlock(cfg, opts...) }, false},
		"stack": {func(opts ...Option) module { return NewMambaStack(cfg, opts...) }, false},
		"LM":    {func(opts ...Option) module { return NewLM(LMConfig{Config: cfg, Vocab: 7}, opts...) }, true},
	} {
		if got := equal(c.make(), c.make()); got != c.equal {
			t.Errorf("two unnamed %ss are equal: %v, want %v", what, got, c.equal)
		}
		for _, seed := range []uint64{0, 7} {
			if !equal(c.make(WithSeed(seed)), c.make(WithSeed(seed))) {
				t.Errorf("two %ss of seed %d differ", what, seed)
			}
		}
		if equal(c.make(WithSeed(0)), c.make(WithSeed(7))) {
			t.Errorf("two %ss of different seeds are equal", what)
		}
		if what != "LM" && equal(c.make(), c.make(WithSeed(0))) {
			t.Errorf("an unnamed %s is equal to that of seed 0", what)
		}
		if !equal(c.make(WithName("a")), c.make(WithName("a"))) {
			t.Errorf("two %ss of one name differ", what)
		}
	}
}
