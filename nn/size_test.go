package nn

import (
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
)

// The bytes of a model are counted before any weight is drawn, without a loop over the layers.
func TestHugeModels(t *testing.T) {
	const layers = math.MaxInt/(1<<23) + 1 // 1<<40 if an int has 64 bits
	for _, pattern := range [][]Kind{nil, {Mamba, Attention}} {
		cfg := Config{DModel: 8, Pattern: pattern}
		bytes := func(params layer.Params) (b size.Bytes) {
			for _, p := range params {
				b = b.Plus(size.Of(p.Value.Dtype().Size(), p.Value.Shape()...)).Plus(512)
			}
			return b
		}
		one := NewMambaStack(cfg)
		norm := bytes(one.norm.Params())
		need := (bytes(one.Params()) - norm).Times(layers / one.cfg.NLayer).Plus(norm)
		cfg.NLayer = layers
		want := "the weights need " + need.String() + ", more than this machine's memory of " + size.Machine().String()
		for _, m := range []anyModel{NewMambaStack(cfg), NewLM(LMConfig{Config: cfg, Vocab: 5})} {
			err := m.Err()
			if err == nil || !strings.Contains(err.Error(), "NLayer is ") || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%T: error %v, want NLayer … %s", m, err, want)
			}
		}
	}
	for want, cfg := range map[string]LMConfig{
		"nn: DModel is ":      {Config: Config{DModel: math.MaxInt / 2}, Vocab: 5},
		"nn: DState is ":      {Config: Config{DModel: 8, DState: math.MaxInt / 2}, Vocab: 5},
		"nn: DConv is ":       {Config: Config{DModel: 8, DConv: math.MaxInt / 2}, Vocab: 5},
		"nn: DtRank is ":      {Config: Config{DModel: 8, DtRank: math.MaxInt / 2}, Vocab: 5},
		"nn: Expand is ":      {Config: Config{DModel: 8, Expand: math.MaxInt / 2}, Vocab: 5},
		"DInner or Expand·DM": {Config: Config{DModel: 8, DInner: math.MaxInt / 2}, Vocab: 5},
		"nn: Vocab is ":       {Config: Config{DModel: 8}, Vocab: math.MaxInt / 2},
		"NHead is ":           {Config: Config{DModel: 8, NHead: math.MaxInt / 2, Pattern: []Kind{H3}}, Vocab: 5},
		"heads is ":           {Config: Config{DModel: 8, NHead: math.MaxInt / 2, Pattern: []Kind{Attention}}, Vocab: 5},
		"the window is ":      {Config: Config{DModel: 8, Window: math.MaxInt / 2, Pattern: []Kind{Attention}}, Vocab: 5},
		"hidden is ":          {Config: Config{DModel: 8, DHidden: math.MaxInt / 2, Pattern: []Kind{SwiGLU}}, Vocab: 5},
		"the weights need ":   {Config: Config{DModel: 1 << 20}, Vocab: int(size.Machine() >> 20)},
	} {
		if want == "NHead is " {
			want = "heads is " // the layer's name of this option
		}
		err := NewLM(cfg).Err()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// A state that exceeds the machine's memory is an error where it is used, and allocates nothing.
func TestHugeStates(t *testing.T) {
	cfg := Config{DModel: 4, NLayer: 2, Pattern: []Kind{Mamba, S4}}
	stack, block := NewMambaStack(cfg), NewMambaBlock(Config{DModel: 4})
	for batch, want := range map[int]string{
		0: "ZeroState: batch is 0, want at least 1", math.MaxInt / 2: "its states need ",
	} {
		g := G.NewGraph()
		_, err := stack.ZeroState(g, batch)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("stack: error %v, want %s", err, want)
		}
		if _, err = layer.ZeroState(block, g, batch); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("block: error %v, want %s", err, want)
		}
		if _, err := NewStepper(NewLM(LMConfig{Config: cfg, Vocab: 3}), batch); err == nil || !strings.Contains(err.Error(), "batch is ") {
			t.Errorf("stepper: error %v, want one that names the batch", err)
		}
	}
}
