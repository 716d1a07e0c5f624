package train

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// A saved LoRA has the names of peft and is loaded bit for bit. A model with a LoRA cannot be saved as a checkpoint before merging.
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
		t.Errorf("error %v, want one that says that there is a LoRA", err)
	}
}

func TestLoRAFileErrors(t *testing.T) {
	dir := t.TempDir()
	lm := newLM(tensor.Float32, false)
	if err := SaveLoRA(dir, "", lm.Params()); err == nil || !strings.Contains(err.Error(), "has one") {
		t.Errorf("error %v, want one that says that there is no LoRA", err)
	}
	if err := LoadLoRA(dir, lm.Params()); err == nil || !strings.Contains(err.Error(), "adapter_config.json") {
		t.Errorf("error %v, want one that names the missing file", err)
	}
	if err := SaveLoRA(dir, "", newLM(tensor.Float32, true).Params()); err != nil {
		t.Fatal(err)
	}
	for alpha, want := range map[float64]string{4: "has rank 2 and alpha 4, want 2 and 2 as the ones before", 2: ""} {
		mixed := newLM(tensor.Float32, false)
		for i, target := range []string{"in_proj", "out_proj"} {
			cfg := layer.LoRAConfig{Rank: 2, Alpha: []float64{2, alpha}[i], Targets: []string{target}}
			if _, err := mixed.Params().AddLoRA(cfg); err != nil {
				t.Fatal(err)
			}
		}
		if err := SaveLoRA(t.TempDir(), "", mixed.Params()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("alphas 2 and %v: error %v, want %q", alpha, err, want)
		}
	}
	untouched := weights(lm)
	wide := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 16, NLayer: 2, DState: 4}, Vocab: vocab})
	if err := LoadLoRA(dir, wide.Params()); err == nil || !strings.Contains(err.Error(), "in_proj.lora_A.weight is (2, 8), want (2, 16)") {
		t.Errorf("error %v, want one that names the tensor of a wrong shape", err)
	}
	if n := len(wide.Params()); len(wide.Params().Trainable()) != n {
		t.Error("the error leaves a LoRA behind")
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

// adapted returns a model with a LoRA whose numbers differ from the initial ones.
func adapted(t *testing.T, dt tensor.Dtype, cfg layer.LoRAConfig) *nn.LM {
	t.Helper()
	lm := newLM(dt, false)
	added, err := lm.Params().AddLoRA(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range added {
		values := make([]float64, p.Value.Shape().TotalSize())
		for j := range values {
			values[j] = float64(i) + float64(j)/64
		}
		copyInto(p.Value, values)
	}
	return lm
}

// A loaded LoRA is the saved one, bit for bit, its scale included, for any rank and alpha.
func TestLoRARoundTrip(t *testing.T) {
	for rank := 1; rank < 200; rank++ {
		for _, alpha := range []float64{1, 0.1, 1.0 / 3, 16, 7, math.Pi, 1e-300, 1e300} {
			scale := alpha / float64(rank)
			if got := alphaOf(scale, rank) / float64(rank); got != scale {
				t.Fatalf("rank %d, alpha %v: the scale is %v, want %v", rank, alpha, got, scale)
			}
		}
	}
	for _, targets := range [][]string{nil, {"in_proj"}, {"layers.1.mixer.in_proj"}, {"layers.0.mixer.x_proj", "out_proj"}} {
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			dir := t.TempDir()
			lm := adapted(t, dt, layer.LoRAConfig{Rank: 3, Alpha: 0.7, Targets: targets})
			if err := SaveLoRA(dir, "base", lm.Params()); err != nil {
				t.Fatal(err)
			}
			other := newLM(dt, false)
			if err := LoadLoRA(dir, other.Params()); err != nil {
				t.Fatalf("%v: %v", targets, err)
			}
			for i, p := range lm.Params() {
				a, b := p.LoRA(), other.Params()[i].LoRA()
				if (a == nil) != (b == nil) || a != nil && a.Scale != b.Scale {
					t.Errorf("%v: the LoRA of %s differs", targets, p.Name)
				}
			}
			if !reflect.DeepEqual(weights(other), weights(lm)) {
				t.Errorf("%v: the numbers differ", targets)
			}
		}
	}
}

// peftConfig is a file as peft 0.18 writes it.
const peftConfig = `{"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
	"base_model_name_or_path": "state-spaces/mamba-130m-hf", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
	"eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
	"layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16,
	"lora_bias": false, "lora_dropout": 0.05, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
	"peft_type": "LORA", "peft_version": "0.18.0", "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": null,
	"target_modules": ["in_proj", "x_proj", "dt_proj", "out_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
	"trainable_token_indices": null, "use_dora": false, "use_qalora": false, "use_rslora": false, "a_future_option": false}`

// An option that changes the LoRA and is not supported is an error that names it.
func TestAdapterOptions(t *testing.T) {
	for _, c := range []struct{ old, replacement, want string }{
		{"", "", ""},
		{`"lora_alpha": 16`, `"lora_alpha": 16.5`, ""},
		{`"init_lora_weights": true`, `"init_lora_weights": "gaussian"`, ""},
		{`"modules_to_save": null`, `"modules_to_save": []`, ""},
		{`"target_modules": ["in_proj"`, `"target_modules": ["mixer.in_proj"`, ""},
		{`"alpha_pattern": {}`, `"alpha_pattern": {"in_proj": 32}`, `alpha_pattern is {"in_proj": 32}, which is not supported`},
		{`"rank_pattern": {}`, `"rank_pattern": {"in_proj": 4}`, "rank_pattern is"},
		{`"layers_to_transform": null`, `"layers_to_transform": [0]`, "layers_to_transform is [0]"},
		{`"layers_to_transform": null`, `"layers_to_transform": 0`, "layers_to_transform is 0"},
		{`"lora_alpha": 16`, `"lora_alpha": 1e300`, "Alpha is 1e+300"},
		{`"layers_to_transform": null`, `"layers_to_transform": 1`, "layers_to_transform is 1"},
		{`"layers_pattern": null`, `"layers_pattern": "layers"`, "layers_pattern is"},
		{`"modules_to_save": null`, `"modules_to_save": ["lm_head"]`, "modules_to_save is"},
		{`"exclude_modules": null`, `"exclude_modules": "x_proj"`, "exclude_modules is"},
		{`"target_parameters": null`, `"target_parameters": ["A_log"]`, "target_parameters is"},
		{`"trainable_token_indices": null`, `"trainable_token_indices": [1]`, "trainable_token_indices is"},
		{`"layer_replication": null`, `"layer_replication": [[0, 1]]`, "layer_replication is"},
		{`"loftq_config": {}`, `"loftq_config": {"loftq_bits": 4}`, "loftq_config is"},
		{`"bias": "none"`, `"bias": "all"`, `bias is "all"`},
		{`"lora_bias": false`, `"lora_bias": true`, "lora_bias is true"},
		{`"use_dora": false`, `"use_dora": true`, "use_dora is true"},
		{`"use_rslora": false`, `"use_rslora": true`, "use_rslora is true"},
		{`"use_qalora": false`, `"use_qalora": true`, "use_qalora is true"},
		{`"fan_in_fan_out": false`, `"fan_in_fan_out": true`, "fan_in_fan_out is true"},
		{`"init_lora_weights": true`, `"init_lora_weights": "pissa"`, `init_lora_weights is "pissa"`},
		{`"a_future_option": false`, `"a_future_option": true`, "a_future_option is true, an option that is not supported"},
		{`"LORA"`, `"IA3"`, `peft_type is "IA3", want "LORA"`},
		{`"peft_type": "LORA", `, ``, `peft_type is missing`},
		{`"target_modules": ["in_proj", "x_proj", "dt_proj", "out_proj"]`, `"target_modules": ".*_proj"`, `target_modules is ".*_proj", want a list`},
		{`"target_modules": ["in_proj", "x_proj", "dt_proj", "out_proj"]`, `"target_modules": "all-linear"`, "target_modules is"},
		{`"target_modules": ["in_proj", "x_proj", "dt_proj", "out_proj"]`, `"target_modules": []`, "target_modules is"},
		{`"target_modules": ["in_proj"`, `"target_modules": [7`, "target_modules is"},
		{`"lora_alpha": 16`, `"lora_alpha": 0`, "lora_alpha is 0, want a positive number"},
		{`"lora_alpha": 16`, `"lora_alpha": -1`, "lora_alpha is -1"},
		{`"lora_alpha": 16,`, ``, "lora_alpha is missing, want a positive number"},
		{`"lora_alpha": 16`, `"lora_alpha": null`, "lora_alpha is null"},
		{`"lora_alpha": 16`, `"lora_alpha": 1e999`, "lora_alpha is 1e999"},
		{`"r": 2`, `"r": 0`, "r is 0, want a whole number"},
		{`"r": 2`, `"r": -2`, "r is -2"},
		{`"r": 2`, `"r": 2.5`, "r is 2.5"},
		{`"r": 2, `, ``, "r is missing"},
		{`"r": 2`, `"r": 8589934592`, "r is 8589934592, want a whole number from 1 to 268435456"},
		{`"r": 2`, `"r": 268435456`, "in_proj.lora_A.weight is (2, 8), want (268435456, 8)"},
		{`"r": 2`, `"r": 3`, "lora_A.weight is (2, 8), want (3, 8)"},
		{`"lora_dropout": 0.05`, `"lora_dropout": 1`, "lora_dropout is 1, want a probability"},
	} {
		dir := t.TempDir()
		if err := SaveLoRA(dir, "", adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 2}).Params()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(peftConfig, c.old) {
			t.Fatalf("no %s", c.old)
		}
		put(t, filepath.Join(dir, adapterConfig), []byte(strings.Replace(peftConfig, c.old, c.replacement, 1)))
		lm := newLM(tensor.Float32, false)
		before := weights(lm)
		var err error
		n := allocated(func() { err = LoadLoRA(dir, lm.Params()) })
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.replacement, err, c.want)
		}
		if err != nil && (!reflect.DeepEqual(weights(lm), before) || len(lm.Params().Trainable()) != len(lm.Params())) {
			t.Errorf("%s: the error has changed the model", c.replacement)
		}
		if n > 2<<20 {
			t.Errorf("%s: %d bytes allocated for a LoRA of 2 KB", c.replacement, n)
		}
	}
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A failed load changes neither another LoRA nor which weights are frozen.
func TestLoadLoRAChangesAllOrNothing(t *testing.T) {
	good := t.TempDir()
	if err := SaveLoRA(good, "", adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 2, Targets: []string{"in_proj"}}).Params()); err != nil {
		t.Fatal(err)
	}
	file := must(os.ReadFile(filepath.Join(good, adapterWeights)))
	nan := bytes.Clone(file)
	copy(nan[len(nan)-4:], "\x00\x00\xc0\x7f")
	for name, spoil := range map[string]func(dir string){
		"a weight that is no number": func(dir string) { put(t, filepath.Join(dir, adapterWeights), nan) },
		"a file that is cut":         func(dir string) { put(t, filepath.Join(dir, adapterWeights), file[:len(file)-8]) },
		"offsets that overlap": func(dir string) {
			put(t, filepath.Join(dir, adapterWeights), bytes.Replace(file, []byte(`"data_offsets":[64,320]`), []byte(`"data_offsets":[60,316]`), 1))
		},
		"no weights": func(dir string) {
			if err := os.Remove(filepath.Join(dir, adapterWeights)); err != nil {
				t.Fatal(err)
			}
		},
		"no configuration": func(dir string) {
			if err := os.Remove(filepath.Join(dir, adapterConfig)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		dir := t.TempDir()
		for _, f := range []string{adapterConfig, adapterWeights} {
			put(t, filepath.Join(dir, f), must(os.ReadFile(filepath.Join(good, f))))
		}
		spoil(dir)
		for _, c := range []struct {
			what string
			lm   *nn.LM
		}{
			{"another LoRA", adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 1, Targets: []string{"out_proj"}})},
			{"a LoRA of the same weights", adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 1, Targets: []string{"in_proj"}})},
			{"frozen weights", func() *nn.LM { lm := newLM(tensor.Float32, false); lm.Params()[2:5].Freeze(); return lm }()},
		} {
			before, trainable := weights(c.lm), c.lm.Params().Trainable()
			if err := LoadLoRA(dir, c.lm.Params()); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: error %v, want one that names the directory", name, err)
			}
			if !reflect.DeepEqual(weights(c.lm), before) || !slices.Equal(c.lm.Params().Trainable(), trainable) {
				t.Errorf("%s: the error has changed a model with %s", name, c.what)
			}
		}
	}
	both := adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 1, Targets: []string{"out_proj"}})
	if err := LoadLoRA(good, both.Params()); err != nil {
		t.Errorf("loading a LoRA of other weights than those that have one: %v", err)
	}
}

// Numbers of float16, bfloat16, float32 and float64 in files are converted to the type of the weights.
func TestLoRATypes(t *testing.T) {
	lm := newLM(tensor.Float32, false)
	if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 1, Targets: []string{"layers.0.mixer.dt_proj"}}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := SaveLoRA(dir, "", lm.Params()); err != nil {
		t.Fatal(err)
	}
	one := map[string]string{"F16": "\x00\x3e", "BF16": "\xc0\x3f", "F32": "\x00\x00\xc0\x3f", "F64": "\x00\x00\x00\x00\x00\x00\xf8\x3f"} // 1.5
	for dtype, bits := range one {
		a, b := lm.Params().ByName("backbone.layers.0.mixer.dt_proj.weight").LoRA().A.Value.Shape()[1], lm.Params().ByName("backbone.layers.0.mixer.dt_proj.weight").LoRA().B.Value.Shape()[0]
		header := fmt.Sprintf(`{"base_model.model.backbone.layers.0.mixer.dt_proj.lora_A.weight":{"dtype":%q,"shape":[1,%d],"data_offsets":[0,%d]},`+
			`"base_model.model.backbone.layers.0.mixer.dt_proj.lora_B.weight":{"dtype":%q,"shape":[%d,1],"data_offsets":[%d,%d]}}`,
			dtype, a, a*len(bits), dtype, b, a*len(bits), (a+b)*len(bits))
		file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		put(t, filepath.Join(dir, adapterWeights), append(append(file, header...), strings.Repeat(bits, a+b)...))
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			other := newLM(dt, false)
			if err := LoadLoRA(dir, other.Params()); err != nil {
				t.Fatalf("%s into %v: %v", dtype, dt, err)
			}
			for _, p := range other.Params().Trainable() {
				for _, v := range numbers(p.Value) {
					if v != 1.5 {
						t.Fatalf("%s into %v: %s has %v, want 1.5", dtype, dt, p.Name, v)
					}
				}
			}
		}
	}
}

// If any operation of the disk fails while a LoRA is saved or loaded, the directory has the old LoRA or the new one, weights and alpha together,
// and a model has the whole LoRA or none.
func TestLoRAOnAFailingDisk(t *testing.T) {
	old, fresh := adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 2, Alpha: 3}), adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 1, Alpha: 5})
	scale := func(dir string) float64 {
		lm := newLM(tensor.Float32, false)
		restore := tensorfile.Intercept(func(string, string) error { return nil }) // no operation of this preparation fails
		defer restore()
		if err := LoadLoRA(dir, lm.Params()); err != nil {
			t.Errorf("the directory cannot be read: %v", err)
			return 0
		}
		return lm.Params().ByName("backbone.layers.0.mixer.in_proj.weight").LoRA().Scale
	}
	var dir string
	onFailingDisk(t, func() error {
		dir = t.TempDir()
		restore := tensorfile.Intercept(func(string, string) error { return nil })
		err := SaveLoRA(dir, "", old.Params())
		restore()
		if err != nil {
			t.Fatal(err)
		}
		err = SaveLoRA(dir, "", fresh.Params())
		if s := scale(dir); s != 1.5 && s != 5 || err == nil && s != 5 {
			t.Errorf("after error %v the scale is %v, want 5, or after an error 1.5", err, s)
		}
		return err
	})
	if entries := must(os.ReadDir(dir)); len(entries) != 2 {
		t.Errorf("the directory has %v", entries)
	}
	onFailingDisk(t, func() error {
		lm := newLM(tensor.Float32, false)
		before := weights(lm)
		err := LoadLoRA(dir, lm.Params())
		if err != nil && (!reflect.DeepEqual(weights(lm), before) || len(lm.Params().Trainable()) != len(before)) {
			t.Errorf("the error %v has changed the model", err)
		}
		return err
	})
}

// A link in the place of the folder that a save commits is not followed: the adapter beside it is read.
func TestLoadLoRAFollowsNoLink(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for path, alpha := range map[string]float64{dir: 1, other: 8} {
		if err := SaveLoRA(path, "", adapted(t, tensor.Float32, layer.LoRAConfig{Rank: 1, Alpha: alpha}).Params()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, filepath.Join(dir, tensorfile.Committed)); err != nil {
		t.Skip("this system makes no symbolic links: ", err)
	}
	lm := newLM(tensor.Float32, false)
	if err := LoadLoRA(dir, lm.Params()); err != nil {
		t.Fatal(err)
	}
	if got := lm.Params().ByName("backbone.layers.0.mixer.in_proj.weight").LoRA().Scale; got != 1 {
		t.Errorf("the scale is %v, want 1", got)
	}
}
