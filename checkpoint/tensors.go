package checkpoint

import (
	"fmt"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
)

const (
	embedding         = "backbone.embeddings.weight"
	originalEmbedding = "backbone.embedding.weight"
	head              = "lm_head.weight"
)

// canonical returns the name that a tensor of the original layout has in the Hugging Face layout. Only the embedding has another name.
func canonical(name string) string {
	if name == originalEmbedding {
		return embedding
	}
	return name
}

// lmTensors returns the names and shapes of the tensors of a language model. It allocates no weights.
func lmTensors(c nn.LMConfig) []tensorfile.Want {
	model, inner := c.DModel, inner(c.Config)
	wants := []tensorfile.Want{{Name: embedding, Shape: []int{c.Vocab, model}}}
	for i := range c.NLayer {
		add := func(name string, shape ...int) {
			wants = append(wants, tensorfile.Want{Name: fmt.Sprintf("backbone.layers.%d.%s", i, name), Shape: shape})
		}
		add("norm.weight", model)
		add("mixer.A_log", inner, c.DState)
		add("mixer.D", inner)
		add("mixer.in_proj.weight", 2*inner, model)
		if c.Bias {
			add("mixer.in_proj.bias", 2*inner)
		}
		add("mixer.conv1d.weight", inner, 1, c.DConv)
		if !c.NoConvBias {
			add("mixer.conv1d.bias", inner)
		}
		add("mixer.x_proj.weight", c.DtRank+2*c.DState, inner)
		add("mixer.dt_proj.weight", inner, c.DtRank)
		add("mixer.dt_proj.bias", inner)
		add("mixer.out_proj.weight", model, inner)
		if c.Bias {
			add("mixer.out_proj.bias", model)
		}
	}
	wants = append(wants, tensorfile.Want{Name: "backbone.norm_f.weight", Shape: []int{model}})
	if c.UntiedHead {
		wants = append(wants, tensorfile.Want{Name: head, Shape: []int{c.Vocab, model}})
	}
	return wants
}
