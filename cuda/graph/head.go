package graph

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
)

// Logits returns x·weightᵀ on a device: x (batch, length, width), weight (vocabulary, width), and the result (batch, length, vocabulary).
// Both operands have gradients.
//
// Errors: an operand that is missing or of another shape.
func (c *Context) Logits(x, weight *G.Node, p cuda.Precision) (*G.Node, error) {
	in := operands{{"x", onDevice, x}, {"weight", onDevice, weight}}
	f, err := newHead("logits", in, p)
	if err != nil {
		return nil, err
	}
	s := x.Shape()
	n, err := c.apply(logits{f}, in, tensor.Shape{s[0], s[1], f.vocabulary})
	if err != nil {
		return nil, err
	}
	return n[0], nil
}

// head is the matrix product that computes logits.
type head struct {
	rows, width, vocabulary int
	precision               cuda.Precision
}

func newHead(what string, in operands, p cuda.Precision) (h head, err error) {
	if err := in.check(what); err != nil {
		return h, err
	}
	if err := p.Err(); err != nil {
		return h, fmt.Errorf("graph: %s: %w", what, err)
	}
	s, w := in[0].node.Shape(), in[1].node.Shape()
	if len(s) != 3 || len(w) != 2 || s[2] != w[1] {
		return h, fmt.Errorf("graph: %s: x has shape %v and weight %v, want (batch, length, width) and (vocabulary, width)", what, s, w)
	}
	return head{s[0] * s[1], s[2], w[0], p}, nil
}

// halves returns operands in bfloat16: the copy of a weight, or a new array that free frees.
func halves(s *cuda.Stream, list ...operand) (half []cuda.Array[cuda.BFloat16], free func(), err error) {
	var work []cuda.Array[cuda.BFloat16]
	free = func() {
		for _, a := range work {
			a.Free()
		}
	}
	for _, o := range list {
		if o.weight != nil {
			a, err := o.weight.Half()
			if err != nil {
				free()
				return nil, nil, err
			}
			half = append(half, a)
			continue
		}
		a, err := cuda.NewArray[cuda.BFloat16](s, o.Len())
		if err == nil {
			work = append(work, a)
			err = cuda.Convert(s, o.Array, a)
		}
		if err != nil {
			free()
			return nil, nil, err
		}
		half = append(half, a)
	}
	return half, free, nil
}

// padded returns the row stride of logits that no user sees, in elements. It makes a row a multiple of 16 bytes; tensor cores read other
// rows slowly.
func (h head) padded() int { return (h.vocabulary + 7) / 8 * 8 }

// product writes the logits of x into to, whose rows are stride elements apart.
func product[C, T cuda.Activation](s *cuda.Stream, h head, x, weight cuda.Array[T], to cuda.Array[C], stride int) error {
	return cuda.MatMul(s, h.precision, h.rows, h.vocabulary, h.width, cuda.Matrix[T]{Data: x, Stride: h.width},
		cuda.Matrix[T]{Data: weight, Stride: h.width, Transposed: true}, 0, cuda.Matrix[C]{Data: to, Stride: stride})
}

// backward computes the gradients of x and weight from the gradient of the logits.
func (h head) backward(s *cuda.Stream, x, weight operand, dy, dx, dweight cuda.Array[float32]) error {
	if h.precision != cuda.BF16 {
		return gradientsOf(s, h, x.Array, weight.Array, dy, h.vocabulary, dx, dweight)
	}
	half, free, err := halves(s, x, weight, operand{Array: dy})
	if err != nil {
		return err
	}
	defer free()
	return gradientsOf(s, h, half[0], half[1], half[2], h.vocabulary, dx, dweight)
}

// gradientsOf computes the gradients of x and weight from dy. It divides the vocabulary into two parts, the first a multiple of eight.
// Without this cuBLAS does not use tensor cores along the rows of dy, and its other kernels have a fifth of their speed.
func gradientsOf[T cuda.Activation](s *cuda.Stream, h head, x, weight, dy cuda.Array[T], stride int, dx, dweight cuda.Array[float32]) error {
	whole := h.vocabulary / 8 * 8
	for _, part := range [][2]int{{0, whole}, {whole, h.vocabulary}} {
		from, n := part[0], part[1]-part[0]
		if n == 0 {
			continue
		}
		beta := float32(0)
		if from > 0 {
			beta = 1
		}
		d := cuda.Matrix[T]{Data: dy.Slice(from, dy.Len()-from), Stride: stride}
		w := cuda.Matrix[T]{Data: weight.Slice(from*h.width, n*h.width), Stride: h.width}
		if err := cuda.MatMul(s, h.precision, h.rows, h.width, n, d, w, beta, cuda.Matrix[float32]{Data: dx, Stride: h.width}); err != nil {
			return err
		}
		d.Transposed = true
		dw := cuda.Matrix[float32]{Data: dweight.Slice(from*h.width, n*h.width), Stride: h.width}
		if err := cuda.MatMul(s, h.precision, n, h.width, h.rows, d, cuda.Matrix[T]{Data: x, Stride: h.width}, 0, dw); err != nil {
			return err
		}
	}
	return nil
}

type logits struct{ head }

func (f logits) String() string       { return fmt.Sprintf("logits{precision: %v}", f.precision) }
func (logits) differentiable() []bool { return []bool{true, true} }

func (f logits) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if f.precision != cuda.BF16 {
		return nothing(keep), product(s, f.head, in[0].Array, in[1].Array, out[0], f.vocabulary)
	}
	half, free, err := halves(s, in...)
	if err != nil {
		return nil, err
	}
	defer free()
	return nothing(keep), product(s, f.head, half[0], half[1], out[0], f.vocabulary)
}

func (f logits) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], _ any) error {
	return f.head.backward(s, in[0], in[1], dout[0], grad[0], grad[1])
}

// Loss returns op.CrossEntropy of the Logits of x and weight: targets (batch, length) are of int on the host, and the result is a scalar on
// the host. x and weight have gradients.
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither in the vocabulary nor
// equal to ignore.
func (c *Context) Loss(x, weight, targets *G.Node, ignore int, p cuda.Precision) (*G.Node, error) {
	in := operands{{"x", onDevice, x}, {"weight", onDevice, weight}, {"targets", onHost, targets}}
	f, err := newHead("loss", in, p)
	if err != nil {
		return nil, err
	}
	if s := x.Shape(); !targets.Shape().Eq(tensor.Shape{s[0], s[1]}) || targets.Dtype() != tensor.Int {
		return nil, fmt.Errorf("graph: loss: targets are %v %v, want int of shape (%d, %d)", targets.Dtype(), targets.Shape(), s[0], s[1])
	}
	n, err := c.apply(&loss{f, ignore}, in, tensor.Shape{1})
	if err != nil {
		return nil, err
	}
	return node.Apply(&scalar{c}, n[0])
}

type loss struct {
	head
	ignore int
}

func (f *loss) String() string {
	return fmt.Sprintf("loss{ignore: %d, precision: %v}", f.ignore, f.precision)
}
func (f *loss) differentiable() []bool { return []bool{true, true, false} }
func (f *loss) overwritesKept()        {} // backward replaces the logits by their gradient

// lossKept holds what the gradient needs: the logits, with a row stride of padded, the state of CrossEntropyForward, and the targets.
type lossKept[T cuda.Activation] struct {
	logits  cuda.Array[T]
	state   cuda.Array[float32]
	targets cuda.Array[int32]
}

func (k *lossKept[T]) free() {
	k.logits.Free()
	k.state.Free()
	k.targets.Free()
}

func (f *loss) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if f.precision != cuda.BF16 {
		return lossForward(f, s, in[0].Array, in[1].Array, in[2].ints, out[0], keep)
	}
	half, free, err := halves(s, in[0], in[1])
	if err != nil {
		return nil, err
	}
	defer free()
	return lossForward(f, s, half[0], half[1], in[2].ints, out[0], keep)
}

func lossForward[T cuda.Activation](f *loss, s *cuda.Stream, x, weight cuda.Array[T], ints []int, out cuda.Array[float32], keep bool) (_ *kept, err error) {
	targets, err := small(ints, "targets", f.vocabulary, f.ignore)
	if err != nil {
		return nil, err
	}
	k := new(lossKept[T])
	defer func() {
		if err != nil || !keep {
			k.free()
		}
	}()
	if k.targets, err = cuda.Upload(s, targets); err != nil {
		return nil, err
	}
	if k.logits, err = cuda.NewArray[T](s, f.rows*f.padded()); err != nil {
		return nil, err
	}
	if k.state, err = cuda.NewArray[float32](s, cuda.CrossEntropyState(f.rows)); err != nil {
		return nil, err
	}
	if err = product(s, f.head, x, weight, k.logits, f.padded()); err != nil {
		return nil, err
	}
	err = cuda.CrossEntropyForward(s, f.rows, f.vocabulary, f.padded(), int32(f.ignore), k.logits, k.targets, k.state, out)
	if err != nil || !keep {
		return nil, err
	}
	return &kept{values: k, free: k.free}, nil
}

func (f *loss) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], values any) error {
	if f.precision != cuda.BF16 {
		return lossBackward(f, s, in[0].Array, in[1].Array, values.(*lossKept[float32]), dout[0], grad)
	}
	half, free, err := halves(s, in[0], in[1])
	if err != nil {
		return err
	}
	defer free()
	return lossBackward(f, s, half[0], half[1], values.(*lossKept[cuda.BFloat16]), dout[0], grad)
}

func lossBackward[T cuda.Activation](f *loss, s *cuda.Stream, x, weight cuda.Array[T], k *lossKept[T], dout cuda.Array[float32], grad []cuda.Array[float32]) error {
	err := cuda.CrossEntropyBackward(s, f.rows, f.vocabulary, f.padded(), int32(f.ignore), k.logits, k.targets, k.state, dout)
	if err != nil {
		return err
	}
	return gradientsOf(s, f.head, x, weight, k.logits, f.padded(), grad[0], grad[1])
}
