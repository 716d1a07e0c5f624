package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// LinearCrossEntropy returns CrossEntropy of the logits Linear(x, weight, nil): x (batch, length, in), weight (vocabulary, in), targets (batch,
// length) of int. On a device it is one operator, which keeps the logits in the precision of the product and replaces them by their gradient. It
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

// Forward and Backward never run: on the host there are two operators.
func (f *headLoss[T]) Forward(_ []value[T], _ [][]T)     {}
func (f *headLoss[T]) Backward(_ []value[T], _, _ [][]T) {}

// OverwritesKept says that the backward pass replaces the logits by their gradient.
func (f *headLoss[T]) OverwritesKept() {}

// padded returns a row stride for logits that no user sees, in elements. It makes a row a multiple of 16 bytes; tensor cores read other rows
// slowly.
func (f *headLoss[T]) padded() int { return (f.out + 7) / 8 * 8 }

// headKept holds what the gradient needs: the logits, with rows of padded elements, and the state of CrossEntropyForward.
type headKept[T cuda.Activation] struct {
	logits cuda.Array[T]
	state  array
}

func (k *headKept[T]) Free() {
	k.logits.Free()
	k.state.Free()
}

func (f *headLoss[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return headForward[cuda.BFloat16](f, s, p, in, out[0], keep)
	}
	return headForward[float32](f, s, p, in, out[0], keep)
}

func headForward[T cuda.Activation, N kernel.Float](
	f *headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, out array, keep bool,
) (_ kept, err error) {
	product, free, err := as[T](s, in[0], in[1])
	if err != nil {
		return nil, err
	}
	defer free()
	k := new(headKept[T])
	defer func() {
		if err != nil || !keep {
			k.Free()
		}
	}()
	if k.logits, err = cuda.NewArray[T](s, f.rows*f.padded()); err != nil {
		return nil, err
	}
	if k.state, err = cuda.NewArray[float32](s, cuda.CrossEntropyState(f.rows)); err != nil {
		return nil, err
	}
	if err = cuda.Multiply(s, p, f.rows, f.in, f.out, product[0], product[1], k.logits, f.padded()); err != nil {
		return nil, err
	}
	err = cuda.CrossEntropyForward(s, f.rows, f.out, f.padded(), operator.Int32(f.ignore), k.logits, in[2].Ids, k.state, out)
	if err != nil || !keep {
		return nil, err
	}
	return k, nil
}

func (f *headLoss[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	if p == cuda.BF16 {
		return headBackward(f, s, p, in, values.(*headKept[cuda.BFloat16]), dout[0], grad)
	}
	return headBackward(f, s, p, in, values.(*headKept[float32]), dout[0], grad)
}

func headBackward[T cuda.Activation, N kernel.Float](
	f *headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, k *headKept[T], dout array, grad []array,
) error {
	product, free, err := as[T](s, in[0], in[1])
	if err != nil {
		return err
	}
	defer free()
	err = cuda.CrossEntropyBackward(s, f.rows, f.out, f.padded(), operator.Int32(f.ignore), k.logits, in[2].Ids, k.state, dout)
	if err != nil {
		return err
	}
	return cuda.MultiplyBackward(s, p, f.rows, f.in, f.out, product[0], product[1], k.logits, f.padded(), grad[0], grad[1])
}
