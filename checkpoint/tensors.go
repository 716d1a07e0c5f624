package checkpoint

import (
	"fmt"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
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
		shapes := op.BlockShapes(model, inner, c.DState, c.DConv, c.DtRank)
		shapes.Each(func(about op.BlockWeight, shape *[]int) {
			has := c.Bias
			if about.Field == "ConvBias" {
				has = !c.NoConvBias
			}
			if has || !about.Optional {
				wants = append(wants, tensorfile.Want{Name: fmt.Sprintf("backbone.layers.%d.%s", i, about.Name), Shape: *shape})
			}
		})
	}
	wants = append(wants, tensorfile.Want{Name: "backbone.norm_f.weight", Shape: []int{model}})
	if c.UntiedHead {
		wants = append(wants, tensorfile.Want{Name: head, Shape: []int{c.Vocab, model}})
	}
	return wants
}
