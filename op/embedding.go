package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// Embedding returns the rows of weight whose indices are in ids: weight (vocabulary, channels), ids (batch, length) of int, and the result
// (batch, length, channels).
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, an id outside the vocabulary.
func Embedding(weight, ids *G.Node) (*G.Node, error) {
	x, _, err := TiedEmbedding(weight, ids)
	return x, err
}

// TiedEmbedding is Embedding that also returns the weight. Use this node as the weight of a tied head: on a device, one operator then adds both
// gradients of the weight, without memory for a second one.
func TiedEmbedding(weight, ids *G.Node) (x, tied *G.Node, err error) {
	c := newChecker("embedding", "weight", weight)
	w := c.required("weight", weight, "(vocabulary, channels)", 0, 0)
	c.ints("ids", ids, "(batch, length)", 0, 0)
	if c.err != nil {
		return nil, nil, c.err
	}
	s := ids.Shape()
	f := embedding[float32]{s[0] * s[1], w[0], w[1]}
	results := []tensor.Shape{{s[0], s[1], w[1]}}
	if !operator.PlaceOf(weight).OnHost() && !operator.IsNarrow(weight) {
		results = append(results, w)
	}
	n, err := c.apply(f, embedding[float64](f), results...)
	if err != nil {
		return nil, nil, err
	}
	return n[0], append(n, weight)[1], nil
}

type embedding[T kernel.Float] struct{ rows, vocabulary, channels int }

func (f embedding[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	if i := kernel.FirstOutside(ints[1], f.vocabulary); i >= 0 {
		length := shapes[1][1]
		return fmt.Errorf("ids[%d, %d] is %d, want 0 to %d", i/length, i%length, ints[1][i], f.vocabulary-1)
	}
	return nil
}

// Bounds says which ids need no check.
func (f embedding[T]) Bounds(int) (least, most int) { return 0, f.vocabulary - 1 }

func (embedding[T]) TakesNarrow(i int) bool { return i == 0 }

func (f embedding[T]) Forward(in []value[T], out [][]T) {
	if w := in[0].Narrow; w != nil {
		for i, id := range in[1].Ints {
			w.Row(id, any(out[0]).([]float32)[i*f.channels:(i+1)*f.channels])
		}
		return
	}
	kernel.Embedding(out[0], in[0].Data, in[1].Ints, f.channels)
}

func (f embedding[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.EmbeddingBackward(grad[0], dout[0], in[1].Ints, f.channels)
}

// Passes says that the second result is the weight.
func (embedding[T]) Passes() (result, operand int) { return 1, 0 }

// RowSum says how many rows of the first result's gradient are added to that of the second one. See operator.Split.
func (f embedding[T]) RowSum() (rows, width, table int) { return f.rows, f.channels, f.vocabulary }

func (f embedding[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	if n := in[0].Narrow; n != nil {
		return nil, cuda.WeightRows(s, n.OnDevice(), in[1].Ids, out[0])
	}
	return nil, cuda.EmbeddingForward(s, f.rows, f.channels, f.vocabulary, in[0].Array, in[1].Ids, out[0])
}

func (f embedding[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	if dout[1].Absent() {
		if err := grad[0].Fill(s, 0); err != nil {
			return err
		}
	} else if err := grad[0].CopyOf(s, dout[1]); err != nil {
		return err
	}
	if dout[0].Absent() {
		return nil
	}
	return cuda.EmbeddingBackward(s, f.rows, f.channels, f.vocabulary, in[1].Ids, in[1].Ints, dout[0], grad[0])
}
