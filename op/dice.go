package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// Dice returns the Dice loss of a segmentation, a scalar: 1 minus a mean of overlaps between probabilities p and targets t. The logits are
// (batch, grid…, classes) or (batch, classes), the targets (batch, grid…) of int. Cells whose target is equal to ignore count nowhere.
//
//   - Of one class: p = sigmoid(logit), and the targets are 0 and 1; they may have the shape of the logits. Each image has the overlap
//     (2Σpt + 1) / (Σp + Σt + 1), and the mean is over the images.
//   - Of several classes: p = softmax(logits), and t is 1 for the class of the target. Each class has the overlap
//     (2Σpt + 1e-5) / (Σp² + Σt² + 1e-5), with sums over the whole batch, and the mean is over the classes.
//
// An image, or a class, without a cell that counts has the overlap 1.
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither a class nor equal to ignore.
//
// Source: Milletari, Navab and Ahmadi, "V-Net", equation 1 (with squares); both forms as in VM-UNet's training.
func Dice(logits, targets *G.Node, ignore int) (*G.Node, error) {
	return diceOf(logits, targets, ignore, false)
}

func diceOf(logits, targets *G.Node, ignore int, nearest bool) (*G.Node, error) {
	c := newChecker("Dice loss", "logits", logits)
	f := dice[float32]{c.newCellLoss(logits, targets, ignore, nearest)}
	return c.apply1(f, dice[float64]{cellLoss[float64](f.cellLoss)}, tensor.ScalarShape())
}

type dice[T kernel.Float] struct{ cellLoss[T] }

func (f dice[T]) kernel(in []value[T]) *kernel.Dice[T] {
	return &kernel.Dice[T]{Images: f.images, Cells: f.cells, Classes: f.classes, Logits: in[0].Data, Targets: f.grid.nearest(in[1].Ints), Ignore: f.ignore}
}

func (f dice[T]) Forward(in []value[T], out [][]T) { out[0][0] = f.kernel(in).Forward() }

func (f dice[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0][0], grad[0])
}

// onDevice calls use with the operands.
func (f dice[T]) onDevice(s *cuda.Stream, in []onDevice, use func(*cuda.Dice) error) error {
	return f.grid.nearestOn(s, in[1].Ids, func(targets cuda.Array[int32]) error {
		return use(&cuda.Dice{Images: f.images, Cells: f.cells, Classes: f.classes, Ignore: operator.Int32(f.ignore), Logits: in[0].Array, Targets: targets})
	})
}

func (f dice[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	var state cuda.Array[float64]
	err := f.onDevice(s, in, func(d *cuda.Dice) (err error) {
		if state, err = cuda.NewArray[float64](s, d.State()); err != nil {
			return err
		}
		return d.Forward(s, state, out[0])
	})
	if err != nil || !keep {
		state.Free()
		return nil, err
	}
	return state, nil
}

func (f dice[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, state kept) error {
	return f.onDevice(s, in, func(d *cuda.Dice) error { return d.Backward(s, state.(cuda.Array[float64]), dout[0], grad[0]) })
}
