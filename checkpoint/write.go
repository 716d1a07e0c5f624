package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// savedConfig is a configuration as transformers' MambaConfig reads it.
type savedConfig struct {
	Architectures    []string `json:"architectures"`
	ModelType        string   `json:"model_type"`
	Dtype            string   `json:"dtype"`
	TorchDtype       string   `json:"torch_dtype"` // the same for older versions
	VocabSize        int      `json:"vocab_size"`
	HiddenSize       int      `json:"hidden_size"`
	NumHiddenLayers  int      `json:"num_hidden_layers"`
	StateSize        int      `json:"state_size"`
	ConvKernel       int      `json:"conv_kernel"`
	Expand           int      `json:"expand"`
	IntermediateSize int      `json:"intermediate_size"`
	TimeStepRank     int      `json:"time_step_rank"`
	TimeStepMin      decimal  `json:"time_step_min"`
	TimeStepMax      decimal  `json:"time_step_max"`
	TimeStepScale    decimal  `json:"time_step_scale"`
	TimeStepFloor    decimal  `json:"time_step_floor"`
	LayerNormEpsilon decimal  `json:"layer_norm_epsilon"`
	UseBias          bool     `json:"use_bias"`
	UseConvBias      bool     `json:"use_conv_bias"`
	HiddenAct        string   `json:"hidden_act"`
	ResidualInFP32   bool     `json:"residual_in_fp32"`
	TieWordEmbedding bool     `json:"tie_word_embeddings"`
	UseCache         bool     `json:"use_cache"`
}

// decimal is a number that is written with a point: transformers takes 1 for an integer, and refuses it.
type decimal float64

func (d decimal) MarshalJSON() ([]byte, error) {
	text, err := json.Marshal(float64(d))
	if err == nil && !bytes.ContainsAny(text, ".eE") {
		text = append(text, ".0"...)
	}
	return text, err
}

func savedConfigOf(lm *nn.LM) savedConfig {
	c := lm.Config()
	dt := lm.Params()[0].Value.Dtype().String() // float32 or float64, as PyTorch calls them too
	return savedConfig{
		Architectures: []string{"MambaForCausalLM"}, ModelType: "mamba", Dtype: dt, TorchDtype: dt,
		VocabSize: c.Vocab, HiddenSize: c.DModel, NumHiddenLayers: c.NLayer, StateSize: c.DState, ConvKernel: c.DConv,
		Expand: c.Expand, IntermediateSize: inner(c.Config), TimeStepRank: c.DtRank,
		TimeStepMin: decimal(c.DtMin), TimeStepMax: decimal(c.DtMax), TimeStepScale: decimal(c.DtScale), TimeStepFloor: decimal(c.DtInitFloor),
		LayerNormEpsilon: decimal(c.NormEps), UseBias: c.Bias, UseConvBias: !c.NoConvBias, HiddenAct: "silu",
		ResidualInFP32: true, TieWordEmbedding: !c.UntiedHead, UseCache: true,
	}
}

// complete returns an error that names the first weight that is missing.
func complete(params layer.Params) error {
	for i, p := range params {
		if p != nil && p.Narrow() != nil {
			return fmt.Errorf("%s is of %v, want float32: load the model without the option Weights to train or save it", p.Name, p.Narrow().Type())
		}
		if p == nil || p.Value == nil || p.Value.Dtype().Type == nil { // a zero tensor has no type
			return fmt.Errorf("weight %d is missing or has no value, want one that layer.NewParam or a layer made", i)
		}
		if p.Name == "" {
			return fmt.Errorf("weight %d of %d has no name, want one that no other weight has", i, len(params))
		}
	}
	return nil
}

func fullNames(params layer.Params) []string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.Name
	}
	return names
}

// arrays returns weights under the names that they have on file.
func arrays(names []string, params layer.Params) ([]tensorfile.Array, error) {
	all := make([]tensorfile.Array, len(params))
	for i, p := range params {
		data, err := elements(p)
		if err != nil {
			return nil, err
		}
		all[i] = tensorfile.Array{Name: names[i], Shape: p.Value.Shape(), Data: data}
	}
	return all, nil
}

// elements returns the elements of a weight as a slice that shares their memory.
func elements(p *layer.Param) (any, error) {
	v := p.Value
	if o := v.DataOrder(); v.RequiresIterator() || o.IsColMajor() || o.IsTransposed() {
		return nil, fmt.Errorf("%s is a view of another tensor, want a tensor of its own", p.Name)
	}
	switch v.Dtype() {
	case tensor.Float32:
		return v.Float32s(), nil
	case tensor.Float64:
		return v.Float64s(), nil
	}
	return nil, fmt.Errorf("%s is of %v, want float32 or float64", p.Name, v.Dtype())
}
