package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// Embedding returns the rows of weight whose indices are in ids: weight (vocabulary, width), ids (batch, length) of int, and the result
// (batch, length, width). The weight has a gradient.
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, an id outside the vocabulary.
func Embedding(weight, ids *G.Node) (*G.Node, error) {
	c := newChecker("embedding", "weight", weight)
	c.required("weight", weight, "(vocabulary, width)", 0, 0)
	c.ints("ids", ids, "(batch, length)", 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := ids.Shape()
	return apply1(embedding{}, operands{[]string{"weight", "ids"}, G.Nodes{weight, ids}}, c.dt,
		tensor.Shape{s[0], s[1], weight.Shape()[1]})
}

type embedding struct{}

func (embedding) String() string         { return "embedding" }
func (embedding) differentiable() []bool { return []bool{true, false} }

func (embedding) check(in []operand) error {
	vocabulary, length := in[0].shape[0], in[1].shape[1]
	for i, id := range in[1].data.([]int) {
		if id < 0 || id >= vocabulary {
			return fmt.Errorf("ids[%d, %d] is %d, want 0 to %d", i/length, i%length, id, vocabulary-1)
		}
	}
	return nil
}

func (embedding) forward(in, out []operand) {
	ids, width := in[1].data.([]int), in[0].shape[1]
	if out[0].is32() {
		kernel.Embedding(floats[float32](out[0]), floats[float32](in[0]), ids, width)
	} else {
		kernel.Embedding(floats[float64](out[0]), floats[float64](in[0]), ids, width)
	}
}

func (embedding) backward(in, dout, grad []operand) {
	ids, width := in[1].data.([]int), in[0].shape[1]
	if dout[0].is32() {
		kernel.EmbeddingBackward(floats[float32](grad[0]), floats[float32](dout[0]), ids, width)
	} else {
		kernel.EmbeddingBackward(floats[float64](grad[0]), floats[float64](dout[0]), ids, width)
	}
}
