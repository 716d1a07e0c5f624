package checkpoint

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nlpodyssey/safetensors"
	"gorgonia.org/tensor"

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

// writeSafetensors writes the weights in the order of the model, converted a piece at a time.
func writeSafetensors(w io.Writer, lm *nn.LM) error {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}} // transformers demands it
	names := ownNames(lm)
	var end uint64
	for i, p := range lm.Params() {
		info := safetensors.TensorInfo{DType: safetensors.F32, DataOffsets: [2]uint64{end}}
		if p.Value.Dtype() == tensor.Float64 {
			info.DType = safetensors.F64
		}
		size := info.DType.Size()
		for _, d := range p.Value.Shape() {
			info.Shape = append(info.Shape, uint64(d))
			size *= uint64(d)
		}
		end += size
		info.DataOffsets[1] = end
		header[names[i]] = info
	}
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	for len(text)%8 != 0 { // the data starts at a multiple of eight
		text = append(text, ' ')
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(text)))); err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	for _, p := range lm.Params() {
		if err := writeWeight(w, p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

func writeWeight(w io.Writer, p *layer.Param) error {
	switch data := p.Value.Data().(type) {
	case []float32:
		return writeElements(w, data, 4)
	case []float64:
		return writeElements(w, data, 8)
	}
	return fmt.Errorf("it is of %v, want float32 or float64", p.Value.Dtype())
}

func writeElements[T float32 | float64](w io.Writer, data []T, width int) error {
	buffer := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buffer)
	for at := 0; at < len(data); {
		part := data[at:min(len(data), at+pieceSize/width)]
		if i, err := encode(buffer[:], part); err != nil {
			return fmt.Errorf("element %d %w", at+i, err)
		}
		if _, err := w.Write(buffer[:len(part)*width]); err != nil {
			return err
		}
		at += len(part)
	}
	return nil
}
