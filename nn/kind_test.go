package nn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// hybrid is a configuration with a layer of every kind.
func hybrid() LMConfig {
	return LMConfig{Config: Config{DModel: 8, NLayer: len(Kinds()), DState: 4, NHead: 2, Window: 5, Pattern: Kinds()}, Vocab: 11}
}

// Weights have names like those of Mamba blocks, and no two have the same name. The pattern repeats along the stack.
func TestKindsParams(t *testing.T) {
	cfg := hybrid()
	cfg.NLayer *= 2
	lm := NewLM(cfg)
	if err := lm.Err(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range lm.Params() {
		if seen[p.Name] {
			t.Errorf("two weights have the name %s", p.Name)
		}
		seen[p.Name] = true
	}
	for _, name := range []string{
		"backbone.layers.0.mixer.A_log", "backbone.layers.1.mixer.s4.log_A_real", "backbone.layers.1.mixer.conv1d.weight",
		"backbone.layers.2.mixer.inner.A_imag", "backbone.layers.3.mixer.inner.x_proj.weight", "backbone.layers.4.mixer.s4.C",
		"backbone.layers.4.mixer.out_proj.weight", "backbone.layers.5.mixer.s6.dt_proj.bias", "backbone.layers.6.mixer.q_proj.weight",
		"backbone.layers.7.mixer.lstm.weight_hh", "backbone.layers.8.mixer.gate_proj.weight", "backbone.layers.9.mixer.down_proj.weight",
		"backbone.layers.9.norm.weight", fmt.Sprintf("backbone.layers.%d.mixer.A_log", len(Kinds())),
	} {
		if !seen[name] {
			t.Errorf("no weight %s", name)
		}
	}
	if n := len(lm.Stack().Blocks()); n != 2 {
		t.Errorf("%d Mamba blocks, want 2", n)
	}
}

// A hybrid model generates the tokens that the logits of the whole text give, from prompts of different lengths.
func TestKindsGenerate(t *testing.T) {
	lm := NewLM(hybrid(), WithDtype(tensor.Float64))
	scramble(lm.Params(), rand.New(rand.NewPCG(8, 1)))
	prompts := [][]int{{1, 2, 3, 4, 5, 6, 7, 8, 9}, {3}, {10, 0, 10}}
	g, err := NewGenerator(lm, GenerateConfig{MaxTokens: 6})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	got, err := g.Generate(context.Background(), prompts, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, prompt := range prompts {
		text := slices.Clone(prompt)
		for range 6 {
			logits := logitsOf(t, lm, text)
			best := 0
			for j, v := range logits[len(logits)-11:] {
				if v > logits[len(logits)-11+best] {
					best = j
				}
			}
			text = append(text, best)
		}
		if want := text[len(prompt):]; !slices.Equal(got[i], want) {
			t.Errorf("prompt %v is continued by %v, want %v", prompt, got[i], want)
		}
	}
}

func TestKindErrors(t *testing.T) {
	if pattern, err := ParseKinds("mamba, attention,swiglu"); err != nil || !slices.Equal(pattern, []Kind{Mamba, Attention, SwiGLU}) {
		t.Errorf("%v, %v", pattern, err)
	}
	for want, err := range map[string]error{
		`nn: "lstn" is no kind of layer, want one of mamba, mamba-s4, `: NewMambaStack(Config{DModel: 4, Pattern: []Kind{"lstn"}}).Err(),
		`nn: "" is no kind of layer`:                                    func() error { _, err := ParseKinds("mamba,"); return err }(),
		`nn: NHead is -1`:                                               NewMambaStack(Config{DModel: 4, NHead: -1}).Err(),
		`nn: layer 1, attention: layer: attention: heads is 3`:          NewMambaStack(Config{DModel: 4, NLayer: 2, NHead: 3, Pattern: []Kind{Mamba, Attention}}).Err(),
		`nn: layer 0, s4: layer: S4: state size is 3, want an even`:     NewMambaStack(Config{DModel: 4, DState: 3, Pattern: []Kind{S4}}).Err(),
		`nn: layer 0, attention: layer: attention: rotary positions`:    NewMambaStack(Config{DModel: 3, Pattern: []Kind{Attention}}).Err(),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	// Attention without a window has no state of fixed size. The error says so, and which option to set.
	cfg := hybrid()
	cfg.Window = 0
	lm := NewLM(cfg)
	if _, err := NewStepper(lm, 1); err == nil || !strings.Contains(err.Error(), "layer 6") || !strings.Contains(err.Error(), "Config.Window") {
		t.Errorf("error %v, want one that names Config.Window", err)
	}
}

// logitsOf returns the logits of a whole text.
func logitsOf(t *testing.T, lm *LM, text []int) []float64 {
	t.Helper()
	logits, err := lm.Apply(intLeaf(G.NewGraph(), "ids", text, 1, len(text)))
	if err != nil {
		t.Fatal(err)
	}
	return forward(t, logits)[0]
}
