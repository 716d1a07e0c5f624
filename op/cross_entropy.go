package op

import (
	"fmt"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// CrossEntropy returns the mean of -log softmax(logits)_target over the targets that are not equal to ignore. The logits are (batch,
// length, vocabulary), the targets (batch, length) of int, and the result is a scalar. For one target a sequence or image, the logits are
// (batch, vocabulary), and the targets (batch). For one a cell of a grid, they are (batch, grid…, classes) and (batch, grid…).
//
// If every target is ignored, the loss and its gradient are 0. (PyTorch returns 0/0, which is NaN, so one batch that holds only padding
// destroys the weights.)
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither in the vocabulary
// nor equal to ignore.
func CrossEntropy(logits, targets *G.Node, ignore int) (*G.Node, error) {
	return crossEntropyOf(logits, targets, ignore, false)
}

// crossEntropyOf is CrossEntropy. With nearest, the targets may be of another grid.
func crossEntropyOf(logits, targets *G.Node, ignore int, nearest bool) (*G.Node, error) {
	c := newChecker("cross-entropy", "logits", logits)
	s, rows, vocabulary := c.rows("logits", logits, "vocabulary")
	f := crossEntropy[float32]{rows, vocabulary, ignore, c.targets(targets, s[:len(s)-1], nearest)}
	return c.apply1(f, crossEntropy[float64](f), tensor.ScalarShape())
}

type crossEntropy[T kernel.Float] struct {
	rows, vocabulary, ignore int
	grid                     targetGrid
}

func (f crossEntropy[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	return checkTargets(shapes[1], ints[1], f.vocabulary, f.ignore, "the vocabulary")
}

// checkTargets returns an error that names the first target that is neither a class nor ignored. what is what the classes are called.
func checkTargets(shape tensor.Shape, targets []int, classes, ignore int, what string) error {
	if i := kernel.FirstOutside(targets, classes, ignore); i >= 0 {
		target, at := targets[i], make([]string, len(shape))
		for axis := len(shape) - 1; axis >= 0; axis-- {
			at[axis] = fmt.Sprint(i % shape[axis])
			i /= shape[axis]
		}
		return fmt.Errorf("targets[%s] is %d, want 0 to %d, %s, or %d, which is ignored", strings.Join(at, ", "), target, classes-1, what, ignore)
	}
	return nil
}

// Bounds says which targets need no check.
func (f crossEntropy[T]) Bounds(int) (least, most int) { return 0, f.vocabulary - 1 }

func (f crossEntropy[T]) kernel(in []value[T]) *kernel.CrossEntropy[T] {
	return &kernel.CrossEntropy[T]{Vocabulary: f.vocabulary, Logits: in[0].Data, Targets: f.grid.nearest(in[1].Ints), Ignore: f.ignore}
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
	err = f.grid.nearestOn(s, in[1].Ids, func(targets cuda.Array[int32]) error {
		return cuda.CrossEntropyForward(s, f.rows, f.vocabulary, f.vocabulary, operator.Int32(f.ignore), in[0].Array, targets, state, out[0])
	})
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
	return f.grid.nearestOn(s, in[1].Ids, func(targets cuda.Array[int32]) error {
		return cuda.CrossEntropyBackward(s, f.rows, f.vocabulary, f.vocabulary, operator.Int32(f.ignore), grad[0], targets, state.(array), dout[0])
	})
}
