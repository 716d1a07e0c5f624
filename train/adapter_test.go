package train

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// What is saved is loaded, bit for bit, under the names of peft; and is no part of a checkpoint before it is merged.
func TestSaveLoRA(t *testing.T) {
	dir := t.TempDir()
	lm := newLM(tensor.Float32, false)
	if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 3, Seed: 9}); err != nil {
		t.Fatal(err)
	}
	for i, p := range lm.Params().Trainable() {
		copyInto(p.Value, []float64{float64(i), 1.5})
	}
	if err := SaveLoRA(dir, "base", lm.Params()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{
		"adapter_config.json":       {`"r": 2`, `"lora_alpha": 3`, `"in_proj"`, `"base_model_name_or_path": "base"`},
		"adapter_model.safetensors": {`"base_model.model.backbone.layers.1.mixer.out_proj.lora_B.weight":{"dtype":"F32","shape":[8,2]`},
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s lacks %s", file, w)
			}
		}
	}
	other := newLM(tensor.Float32, false)
	if err := LoadLoRA(dir, other.Params()); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(weights(other), weights(lm)) || len(other.Params().Trainable()) != 16 {
		t.Error("the LoRA differs after it was loaded")
	}
	if err := checkpoint.Save(t.TempDir(), lm); err == nil || !strings.Contains(err.Error(), "has a LoRA: merge or remove it first") {
		t.Errorf("error %v, want that there is a LoRA", err)
	}
}

func TestLoRAFileErrors(t *testing.T) {
	dir := t.TempDir()
	lm := newLM(tensor.Float32, false)
	if err := SaveLoRA(dir, "", lm.Params()); err == nil || !strings.Contains(err.Error(), "has one") {
		t.Errorf("error %v, want that there is none", err)
	}
	if err := LoadLoRA(dir, lm.Params()); err == nil || !strings.Contains(err.Error(), "adapter_config.json") {
		t.Errorf("error %v, want the file that is missing", err)
	}
	if err := SaveLoRA(dir, "", newLM(tensor.Float32, true).Params()); err != nil {
		t.Fatal(err)
	}
	untouched := weights(lm)
	wide := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 16}, Vocab: vocab})
	for _, m := range []*nn.LM{wide, newLM(tensor.Float64, false)} {
		if err := LoadLoRA(dir, m.Params()); err == nil || !strings.Contains(err.Error(), "lora_A.weight is F32") {
			t.Errorf("error %v, want the tensor that does not fit", err)
		}
		if n := len(m.Params()); len(m.Params().Trainable()) != n {
			t.Error("the error leaves a LoRA behind")
		}
	}
	config := filepath.Join(dir, "adapter_config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{{`"use_dora": false`, `"use_dora": true`}, {`"LORA"`, `"IA3"`}, {`{`, ``}, {`"r": 2`, `"r": 0`}} {
		if err := os.WriteFile(config, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := LoadLoRA(dir, lm.Params()); err == nil {
			t.Errorf("no error with %s", change[1])
		}
	}
	if !reflect.DeepEqual(weights(lm), untouched) {
		t.Error("an error has changed the weights")
	}
}
