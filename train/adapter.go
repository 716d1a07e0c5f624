package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/jsonoptions"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
)

// The names of an adapter's files in the peft library.
const (
	adapterConfig  = "adapter_config.json"
	adapterWeights = "adapter_model.safetensors"
	adapterPrefix  = "base_model.model."
)

// adapter is peft's LoraConfig.
type adapter struct {
	PeftType      string   `json:"peft_type"`
	TaskType      string   `json:"task_type"`
	BaseModel     string   `json:"base_model_name_or_path"`
	Rank          int      `json:"r"`
	Alpha         float64  `json:"lora_alpha"`
	Dropout       float64  `json:"lora_dropout"`
	TargetModules []string `json:"target_modules"`
	Bias          string   `json:"bias"`
	FanInFanOut   bool     `json:"fan_in_fan_out"`
	UseRSLoRA     bool     `json:"use_rslora"`
	UseDoRA       bool     `json:"use_dora"`
	InferenceMode bool     `json:"inference_mode"`
}

// SaveLoRA writes the LoRA of weights to a directory in the layout of the peft library: adapter_config.json, which names the model that
// the LoRA belongs to, and adapter_model.safetensors. The two files are replaced together. Other files in the directory stay.
//
// peft 0.21 refuses an adapter of a Mamba model that has out_proj among its targets, and transformers leaves an unmerged update of dt_proj
// out: both bypass the layers that peft puts there. For these programs choose the targets in_proj and x_proj, or merge.
//
// It is an error, and old files stay, if no weight has a LoRA, if their ranks or alphas differ, if an element is not a number, or if
// another process is saving to the directory.
func SaveLoRA(dir, base string, params layer.Params) error {
	if err := saveLoRA(dir, base, params); err != nil {
		return fmt.Errorf("train: save LoRA to %s: %w", dir, err)
	}
	return nil
}

func saveLoRA(dir, base string, params layer.Params) (err error) {
	if err := params.ToHost(); err != nil {
		return err
	}
	a := adapter{PeftType: "LORA", TaskType: "CAUSAL_LM", BaseModel: base, Bias: "none", InferenceMode: true}
	var tensors []tensorfile.Array
	for _, p := range params {
		l := p.LoRA()
		if l == nil {
			continue
		}
		rank := l.A.Value.Shape()[0]
		alpha := alphaOf(l.Scale, rank)
		if a.Rank != 0 && (a.Rank != rank || a.Alpha != alpha) {
			return fmt.Errorf("%s has rank %d and alpha %v, want %d and %v as the ones before", p.Name, rank, alpha, a.Rank, a.Alpha)
		}
		a.Rank, a.Alpha = rank, alpha
		target := strings.TrimSuffix(p.Name, ".weight")
		last := target[strings.LastIndex(target, ".")+1:]
		if !slices.ContainsFunc(params, func(q *layer.Param) bool { return q.LoRA() == nil && strings.HasSuffix("."+q.Name, "."+last+".weight") }) {
			target = last // every weight of this name has a LoRA
		}
		if !slices.Contains(a.TargetModules, target) {
			a.TargetModules = append(a.TargetModules, target)
		}
		tensors = append(tensors, array(Moment{adapterPrefix + l.A.Name, l.A.Value}), array(Moment{adapterPrefix + l.B.Name, l.B.Value}))
	}
	if tensors == nil {
		return fmt.Errorf("none of %d weights has one", len(params))
	}
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	lock, err := tensorfile.AcquireFolder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	return lock.Do(func(d *tensorfile.Folder) error {
		return d.ReplaceAll(
			tensorfile.NewFile{Name: adapterWeights, Write: func(w io.Writer) error { return tensorfile.Write(w, nil, tensors) }},
			tensorfile.NewFile{Name: adapterConfig, Write: func(w io.Writer) error {
				_, err := w.Write(append(text, '\n'))
				return err
			}})
	})
}

// alphaOf returns the alpha for a scale and a rank: alpha/rank is the scale, bit for bit, if there is such a number.
func alphaOf(scale float64, rank int) float64 {
	alpha := scale * float64(rank) // rounded
	for _, a := range []float64{math.Round(alpha), alpha, math.Nextafter(alpha, math.Inf(1)), math.Nextafter(alpha, 0)} {
		if a/float64(rank) == scale {
			return a
		}
	}
	return alpha
}

// LoadLoRA gives weights the LoRA that SaveLoRA or peft wrote to a directory, and freezes all weights, as Params.AddLoRA does. Numbers
// on file are float32, float16, bfloat16 or float64. They are converted to the type of the weights.
//
// It is an error, and the weights do not change, if the configuration has an unsupported option, lacks lora_alpha or r, if a tensor is missing,
// superfluous or of another shape, if an element is not a number, or if a target's weight already has a LoRA. Options of peft that do not
// affect a trained adapter may have any value. One of them is lora_dropout, which peft uses only in training: a trainer of this package
// continues without dropout.
func LoadLoRA(dir string, params layer.Params) error {
	if dir == "" { // which filepath.Join would take for the current folder
		return errors.New("train: load LoRA: dir is empty, want the folder of an adapter, such as \".\"")
	}
	var cfg layer.LoRAConfig
	var file *tensorfile.File
	err := tensorfile.Together(func() (*os.File, error) { return tensorfile.OpenFile(place(dir, adapterConfig)) }, func() (err error) {
		if file != nil { // of the previous attempt
			if err := file.Close(); err != nil {
				return err
			}
			file = nil
		}
		text, err := tensorfile.ReadFile(place(dir, adapterConfig), 1<<20)
		if err != nil {
			return err
		}
		if cfg, err = parseAdapter(text); err != nil {
			return err
		}
		file, err = tensorfile.Open(place(dir, adapterWeights))
		return err
	})
	if err == nil {
		err = loadLoRA(cfg, file, params)
	}
	if file != nil {
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("train: load LoRA from %s: %w", dir, err)
	}
	return nil
}

// place returns the path of a file of an adapter.
func place(dir, name string) string {
	committed := filepath.Join(dir, tensorfile.Committed)
	if info, err := os.Lstat(committed); err == nil && info.IsDir() {
		if _, err := os.Lstat(filepath.Join(committed, name)); err == nil {
			return filepath.Join(committed, name)
		}
	}
	return filepath.Join(dir, name)
}

// parseAdapter reads an adapter_config.json. Each option is either supported, or known to have no effect, or an error.
func parseAdapter(text []byte) (cfg layer.LoRAConfig, err error) {
	o, err := jsonoptions.Parse(adapterConfig, text)
	if err != nil {
		return cfg, err
	}
	// All options of another method would be wrong, so the error names only the method.
	if !o.Has("peft_type") || o.Text("peft_type") != `"LORA"` {
		o.Fail("peft_type", `"LORA"`)
		return cfg, o.Err()
	}
	cfg.Rank = o.Size("r", 0, 1)
	if !o.Has("r") {
		o.Fail("r", "the rank")
	}
	cfg.Alpha = o.Positive("lora_alpha", 1)
	if !o.Has("lora_alpha") {
		o.Fail("lora_alpha", "a positive number")
	}
	cfg.Targets = jsonoptions.Read[[]string](o, "target_modules", nil, "a list of layers: patterns are not supported")
	if len(cfg.Targets) == 0 {
		o.Fail("target_modules", "a list of layers: patterns are not supported")
	}
	if p := jsonoptions.Read(o, "lora_dropout", 0.0, "a probability"); !(p >= 0 && p < 1) {
		o.Fail("lora_dropout", "a probability")
	}
	o.Only("bias", `"none"`)
	// These initialisations do not change the base model's weights; pissa, olora, corda and loftq do.
	o.Only("init_lora_weights", "true", "false", `"gaussian"`, `"eva"`)
	o.Only("layers_to_transform", "[]") // 0 is a layer
	o.Off(`fan_in_fan_out use_rslora use_dora use_qalora lora_bias rank_pattern alpha_pattern layers_pattern layer_replication
		modules_to_save exclude_modules target_parameters trainable_token_indices megatron_config loftq_config
		corda_config arrow_config alora_invocation_tokens ensure_weight_tying`)
	// The origin of the adapter, and settings of features that are off.
	o.Ignore(`task_type base_model_name_or_path revision auto_mapping inference_mode peft_version megatron_core qalora_group_size
		eva_config runtime_config`)
	o.UnknownOff()
	return cfg, o.Err()
}

func loadLoRA(cfg layer.LoRAConfig, file *tensorfile.File, params layer.Params) error {
	targets, err := params.TargetsOf(cfg)
	if err != nil {
		return err
	}
	// The file is checked before anything is made: the rank could be any number.
	var wants []tensorfile.Want
	for _, w := range targets {
		names, shapes := w.LoRAShapes(cfg.Rank)
		for i, name := range names {
			wants = append(wants, tensorfile.Want{Name: adapterPrefix + name, Shape: shapes[i]})
		}
	}
	tensors := file.ByName()
	if err := tensorfile.Match(tensors, wants, func(string) bool { return true }); err != nil {
		return fmt.Errorf("%s: %w", adapterWeights, err)
	}
	cfg.Start = func(added layer.Params) error {
		jobs := make([]tensorfile.Job, len(added))
		for i, p := range added {
			jobs[i] = tensorfile.Job{From: tensors[wants[i].Name], To: p.Value.Data()}
		}
		if err := tensorfile.Fill(jobs); err != nil {
			return fmt.Errorf("%s: %w", adapterWeights, err)
		}
		return nil
	}
	_, err = params.AddLoRA(cfg)
	return err
}
