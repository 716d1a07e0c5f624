package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// BinaryCrossEntropy returns the mean of -t log p - (1-t) log(1-p), with p = sigmoid(logit), over the targets t that are not equal to ignore. The
// logits are of any shape, such as (batch, grid…, 1). The targets, 0 or 1 and of int, have the same shape, or the shape without
// a last axis of 1. The result is a scalar, and 0 if every target is ignored. No logit is too large: p is never computed.
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither 0, 1 nor equal to ignore.
func BinaryCrossEntropy(logits, targets *G.Node, ignore int) (*G.Node, error) {
	return binaryOf(logits, targets, ignore, false)
}

func binaryOf(logits, targets *G.Node, ignore int, nearest bool) (*G.Node, error) {
	c := newChecker("binary cross-entropy", "logits", logits)
	var f binaryCrossEntropy[float32]
	if logits != nil && targets != nil && !nearest && logits.Shape().Eq(targets.Shape()) {
		s := c.required("logits", logits, "any shape", make([]int, len(logits.Shape()))...)
		c.ints("targets", targets, "the shape of logits", s...)
		f.cellLoss = cellLoss[float32]{images: 1, cells: s.TotalSize(), classes: 1, ignore: ignore}
	} else if f.cellLoss = c.newCellLoss(logits, targets, ignore, nearest); c.err == nil && f.classes != 1 {
		c.errorf("targets has shape %v, want that of logits, %v", targets.Shape(), logits.Shape())
	}
	return c.apply1(f, binaryCrossEntropy[float64]{cellLoss[float64](f.cellLoss)}, tensor.ScalarShape())
}

type binaryCrossEntropy[T kernel.Float] struct{ cellLoss[T] }

func (f binaryCrossEntropy[T]) kernel(in []value[T]) *kernel.BinaryCrossEntropy[T] {
	return &kernel.BinaryCrossEntropy[T]{Logits: in[0].Data, Targets: f.grid.nearest(in[1].Ints), Ignore: f.ignore}
}

func (f binaryCrossEntropy[T]) Forward(in []value[T], out [][]T) { out[0][0] = f.kernel(in).Forward() }

func (f binaryCrossEntropy[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0][0], grad[0])
}

func (f binaryCrossEntropy[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	state, err := cuda.NewArray[float64](s, 1)
	if err != nil {
		return nil, err
	}
	err = f.grid.nearestOn(s, in[1].Ids, func(targets cuda.Array[int32]) error {
		return cuda.BinaryCrossEntropyForward(s, f.images*f.cells, operator.Int32(f.ignore), in[0].Array, targets, state, out[0])
	})
	if err != nil || !keep {
		state.Free()
		return nil, err
	}
	return state, nil
}

func (f binaryCrossEntropy[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, state kept) error {
	return f.grid.nearestOn(s, in[1].Ids, func(targets cuda.Array[int32]) error {
		return cuda.BinaryCrossEntropyBackward(s, f.images*f.cells, operator.Int32(f.ignore), in[0].Array, targets, state.(cuda.Array[float64]), dout[0], grad[0])
	})
}
