package train

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomamba/mamba/layer"
)

// The files of an adapter, as the peft library names them.
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

// SaveLoRA writes the LoRA of weights to a directory in the layout of the peft library: adapter_config.json, which names the
// model that it belongs to, and adapter_model.safetensors. Each is replaced once the new one is whole.
func SaveLoRA(dir, base string, params layer.Params) error {
	if err := params.ToHost(); err != nil {
		return fmt.Errorf("train: save LoRA: %w", err)
	}
	a := adapter{PeftType: "LORA", TaskType: "CAUSAL_LM", BaseModel: base, Bias: "none", InferenceMode: true}
	var tensors []Moment
	for _, p := range params {
		l := p.LoRA()
		if l == nil {
			continue
		}
		rank := l.A.Value.Shape()[0]
		alpha := l.Scale * float64(rank)
		if a.Rank != 0 && (a.Rank != rank || a.Alpha != alpha) {
			return fmt.Errorf("train: save LoRA: %s has rank %d and alpha %v, want %d and %v as the ones before", p.Name, rank, alpha, a.Rank, a.Alpha)
		}
		a.Rank, a.Alpha = rank, alpha
		of := strings.TrimSuffix(p.Name, ".weight")
		if target := of[strings.LastIndex(of, ".")+1:]; !slices.Contains(a.TargetModules, target) {
			a.TargetModules = append(a.TargetModules, target)
		}
		tensors = append(tensors, Moment{adapterPrefix + l.A.Name, l.A.Value}, Moment{adapterPrefix + l.B.Name, l.B.Value})
	}
	if tensors == nil {
		return fmt.Errorf("train: save LoRA: none of %d weights has one", len(params))
	}
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("train: save LoRA: %w", err)
	}
	if err := writeTensors(filepath.Join(dir, adapterWeights), struct{}{}, tensors); err != nil {
		return fmt.Errorf("train: save LoRA: %w", err)
	}
	err = replace(filepath.Join(dir, adapterConfig), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	if err != nil {
		return fmt.Errorf("train: save LoRA: %w", err)
	}
	return nil
}

// LoadLoRA gives weights the LoRA that SaveLoRA has written, or peft in the type of the weights. The weights are frozen, as by
// AddLoRA. It is an error if a tensor is missing, superfluous or of another shape or type; the LoRA is then removed again.
func LoadLoRA(dir string, params layer.Params) error {
	text, err := os.ReadFile(filepath.Join(dir, adapterConfig))
	if err != nil {
		return fmt.Errorf("train: load LoRA: %w", err)
	}
	var a adapter
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("train: load LoRA: %s: %w", filepath.Join(dir, adapterConfig), err)
	}
	if a.PeftType != "LORA" || a.FanInFanOut || a.UseRSLoRA || a.UseDoRA || a.Bias != "none" && a.Bias != "" {
		return fmt.Errorf("train: load LoRA: %s: want a peft_type of LORA, without biases, fan_in_fan_out, use_rslora and use_dora",
			filepath.Join(dir, adapterConfig))
	}
	s, err := openTensors(filepath.Join(dir, adapterWeights), nil)
	if err != nil {
		return err
	}
	defer s.close()
	added, err := params.AddLoRA(layer.LoRAConfig{Rank: a.Rank, Alpha: a.Alpha, Targets: a.TargetModules})
	if err != nil {
		return err
	}
	var into []Moment
	for _, p := range added {
		into = append(into, Moment{adapterPrefix + p.Name, p.Value})
	}
	if err := s.read(into); err != nil {
		params.RemoveLoRA()
		return err
	}
	added.ValuesChanged()
	return nil
}
