package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// LinearCrossEntropy returns CrossEntropy of the logits Linear(x, weight, nil): x (batch, length, in), weight (vocabulary, in), targets (batch,
// length) of int. On a device it is one operator, which computes the logits in the precision of the product, in chunks of rows of at most 2 GiB, and replaces them by their gradient. It
// can then be differentiated once. On the host it is the two operators.
//
// Errors: those of Linear and of CrossEntropy.
func LinearCrossEntropy(x, weight, targets *G.Node, ignore int) (*G.Node, error) {
	if operator.PlaceOf(x).OnHost() {
		logits, err := Linear(x, weight, nil)
		if err != nil {
			return nil, err
		}
		return CrossEntropy(logits, targets, ignore)
	}
	c := newChecker("linear cross-entropy", "x", x)
	s := c.required("x", x, "(batch, length, in)", 0, 0, 0)
	vocabulary := c.required("weight", weight, "(vocabulary, in)", 0, s[2])[0]
	c.ints("targets", targets, "(batch, length)", s[0], s[1])
	f := &headLoss[float32]{product{s[0] * s[1], s[2], vocabulary}, ignore}
	return c.apply1(f, nil, tensor.ScalarShape())
}

// headLoss is the function of LinearCrossEntropy on a device.
type headLoss[T kernel.Float] struct {
	product
	ignore int
}

func (f *headLoss[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	return checkTargets(shapes[2], ints[2], f.out, f.ignore, "the vocabulary")
}

// Bounds says which targets need no check.
func (f *headLoss[T]) Bounds(int) (least, most int) { return 0, f.out - 1 }

// Forward and Backward never run: on the host there are two operators.
func (f *headLoss[T]) Forward(_ []value[T], _ [][]T)     {}
func (f *headLoss[T]) Backward(_ []value[T], _, _ [][]T) {}

// OverwritesKept says that the backward pass replaces the logits by their gradient.
func (f *headLoss[T]) OverwritesKept() {}

func (f *headLoss[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return headForward[cuda.BFloat16](f, s, p, in, out[0], keep)
	}
	return headForward[float32](f, s, p, in, out[0], keep)
}

// headOn returns a head with its operands. Call free after its kernels are queued.
func headOn[T cuda.Activation, N kernel.Float](f *headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, training bool) (h *cuda.Head[T], free func(), err error) {
	product, free, err := as[T](s, training, in[0], in[1])
	if err != nil {
		return nil, nil, err
	}
	return &cuda.Head[T]{
		Rows: f.rows, In: f.in, Vocabulary: f.out, Ignore: operator.Int32(f.ignore), Precision: p, X: product[0], Weight: product[1], Targets: in[2].Ids,
	}, free, nil
}

func headForward[T cuda.Activation, N kernel.Float](f *headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, out array, keep bool) (kept, error) {
	h, free, err := headOn[T](f, s, p, in, keep)
	if err != nil {
		return nil, err
	}
	defer free()
	k, err := h.Forward(s, out, keep)
	if k == nil {
		return nil, err
	}
	return k, err
}

func (f *headLoss[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	if p == cuda.BF16 {
		return headBackward(f, s, p, in, values.(*cuda.HeadKept[cuda.BFloat16]), dout[0], grad)
	}
	return headBackward(f, s, p, in, values.(*cuda.HeadKept[float32]), dout[0], grad)
}

func headBackward[T cuda.Activation, N kernel.Float](
	f *headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, k *cuda.HeadKept[T], dout array, grad []array,
) error {
	h, free, err := headOn[T](f, s, p, in, true)
	if err != nil {
		return err
	}
	defer free()
	return h.Backward(s, k, dout, grad[0], grad[1])
}
