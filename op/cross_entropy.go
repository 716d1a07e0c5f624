package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// CrossEntropy returns the mean of -log softmax(logits)_target over the targets that are not equal to ignore. The logits are (batch,
// length, vocabulary), the targets (batch, length) of int, and the result is a scalar. For one target a sequence, the logits are (batch,
// vocabulary), and the targets (batch); for one a cell of a grid, they are (batch, height, width, classes) and (batch, height, width).
//
// If every target is ignored, the loss and its gradient are 0. (PyTorch returns 0/0, which is NaN, so one batch that holds only padding
// destroys the weights.)
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither in the vocabulary
// nor equal to ignore.
func CrossEntropy(logits, targets *G.Node, ignore int) (*G.Node, error) {
	c := newChecker("cross-entropy", "logits", logits)
	s, rows, vocabulary := c.rows("logits", logits, "vocabulary")
	axes := [...]string{"(batch)", "(batch, length)", "(batch, …)"}
	c.ints("targets", targets, axes[min(len(s), 4)-2], s[:len(s)-1]...)
	f := crossEntropy[float32]{rows, vocabulary, ignore}
	return c.apply1(f, crossEntropy[float64](f), tensor.ScalarShape())
}

type crossEntropy[T kernel.Float] struct{ rows, vocabulary, ignore int }

func (f crossEntropy[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	return checkTargets(shapes[1], ints[1], f.vocabulary, f.ignore)
}

func checkTargets(shape tensor.Shape, targets []int, vocabulary, ignore int) error {
	for i, target := range targets {
		if target != ignore && (target < 0 || target >= vocabulary) {
			at, rest := "", i
			for axis := len(shape) - 1; axis > 0; axis-- {
				at, rest = fmt.Sprintf(", %d%s", rest%shape[axis], at), rest/shape[axis]
			}
			return fmt.Errorf("targets[%d%s] is %d, want 0 to %d, the vocabulary, or %d, which is ignored", rest, at, target, vocabulary-1, ignore)
		}
	}
	return nil
}

func (f crossEntropy[T]) kernel(in []value[T]) *kernel.CrossEntropy[T] {
	return &kernel.CrossEntropy[T]{Vocabulary: f.vocabulary, Logits: in[0].Data, Targets: in[1].Ints, Ignore: f.ignore}
}

func (f crossEntropy[T]) Forward(in []value[T], out [][]T) { out[0][0] = f.kernel(in).Forward() }

func (f crossEntropy[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0][0], grad[0])
}

func (f crossEntropy[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	state, err := cuda.NewArray[float32](s, cuda.CrossEntropyState(f.rows))
	if err != nil {
		return nil, err
	}
	err = cuda.CrossEntropyForward(s, f.rows, f.vocabulary, f.vocabulary, operator.Int32(f.ignore), in[0].Array, in[1].Ids, state, out[0])
	if err != nil || !keep {
		state.Free()
		return nil, err
	}
	return state, nil
}

// BackwardOn writes the gradient over a copy of the logits, since the kernel works in place.
func (f crossEntropy[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, state kept) error {
	if err := grad[0].CopyOf(s, in[0].Array); err != nil {
		return err
	}
	return cuda.CrossEntropyBackward(s, f.rows, f.vocabulary, f.vocabulary, operator.Int32(f.ignore), grad[0], in[1].Ids, state.(array), dout[0])
}
