package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// MLPInputs holds the operands of an MLP. Optional operands may be nil.
type MLPInputs struct {
	X  *G.Node // (batch, …, channels)
	W1 *G.Node // (hidden, channels)
	B1 *G.Node // optional: (hidden)
	W2 *G.Node // (out, hidden)
	B2 *G.Node // optional: (out)
}

// MLP returns f(X·W1ᵀ + B1)·W2ᵀ + B2, from (batch, …, channels) to (batch, …, out), computed by one operator. It is Linear, Activate and Linear, but
// the machine holds one value of hidden channels instead of two, and only if the graph has gradients. In cuda.BF16 that value is of bfloat16.
//
// Errors: an operand that is missing, or of another type or shape; an unknown f.
func MLP(in MLPInputs, f Activation) (*G.Node, error) {
	c := newChecker("MLP", "X", in.X)
	shape, rows, channels := c.rows("X", in.X, "channels")
	hidden := c.required("W1", in.W1, "(hidden, channels)", 0, channels)[0]
	out := c.required("W2", in.W2, "(out, hidden)", 0, hidden)[0]
	c.optional("B1", in.B1, "(hidden)", hidden)
	c.optional("B2", in.B2, "(out)", out)
	c.activation(f)
	m := mlp[float32]{F: f, Rows: rows, In: channels, Hidden: hidden, Out: out}
	result := append(tensor.Shape{}, shape...)
	if len(result) > 0 {
		result[len(result)-1] = out
	}
	return c.apply1(m, mlp[float64](m), result)
}

// mlp is the function of MLP. Its operands are X, W1, W2, B1, B2.
type mlp[T kernel.Float] struct {
	F                     Activation
	Rows, In, Hidden, Out int
}

// On the host.

func (f mlp[T]) first(in []value[T]) *kernel.Linear[T] {
	return linear[T]{product{f.Rows, f.In, f.Hidden}}.kernel([]value[T]{in[0], in[1], in[3]})
}

func (f mlp[T]) second(in []value[T], g []T) *kernel.Linear[T] {
	return linear[T]{product{f.Rows, f.Hidden, f.Out}}.kernel([]value[T]{{Data: g}, in[2], in[4]})
}

// Keeps returns the size of X·W1ᵀ + B1.
func (f mlp[T]) Keeps() int { return f.Rows * f.Hidden }

func (f mlp[T]) Forward(in []value[T], out [][]T)         { f.ForwardKeeping(in, out, nil) }
func (f mlp[T]) Backward(in []value[T], dout, grad [][]T) { f.BackwardKept(in, dout, grad, nil) }

func (f mlp[T]) ForwardKeeping(in []value[T], out [][]T, kept []T) {
	g := make([]T, f.Keeps())
	h := g
	if kept != nil {
		h = kept
	}
	f.first(in).Forward(h)
	kernel.Gate(f.F, g, h, nil)
	f.second(in, g).Forward(out[0])
}

func (f mlp[T]) BackwardKept(in []value[T], dout, grad [][]T, kept []T) {
	if kept == nil {
		kept = make([]T, f.Keeps())
		f.first(in).Forward(kept)
	}
	g, dh := make([]T, f.Keeps()), make([]T, f.Keeps())
	kernel.Gate(f.F, g, kept, nil)
	f.second(in, g).Backward(dout[0], dh, grad[2], grad[4])
	kernel.GateBackward(f.F, dh, nil, dh, kept, nil)
	f.first(in).Backward(dh, grad[0], grad[1], grad[3])
}

// On a device.

func mlpOn[A cuda.Activation, T kernel.Float](f mlp[T], s *cuda.Stream, p cuda.Precision, in []onDevice) (*cuda.MLP[A], func(), error) {
	products, free, err := as[A](s, false, in[1], in[2])
	if err != nil {
		return nil, nil, err
	}
	return &cuda.MLP[A]{
		Rows: f.Rows, In: f.In, Hidden: f.Hidden, Out: f.Out, F: cuda.Nonlinearity(f.F), Precision: p,
		X: in[0].Array, W1: products[0], W2: products[1], B1: in[3].Array, B2: in[4].Array,
	}, free, nil
}

func (f mlp[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return mlpForward[cuda.BFloat16](f, s, p, in, out, keep)
	}
	return mlpForward[float32](f, s, p, in, out, keep)
}

func mlpForward[A cuda.Activation, T kernel.Float](f mlp[T], s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	m, free, err := mlpOn[A](f, s, p, in)
	if err != nil {
		return nil, err
	}
	defer free()
	return m.Forward(s, out[0], keep)
}

func (f mlp[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	if p == cuda.BF16 {
		return mlpBackward(f, s, p, in, dout, grad, values.(*cuda.MLPKept[cuda.BFloat16]))
	}
	return mlpBackward(f, s, p, in, dout, grad, values.(*cuda.MLPKept[float32]))
}

func mlpBackward[A cuda.Activation, T kernel.Float](
	f mlp[T], s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values *cuda.MLPKept[A],
) error {
	m, free, err := mlpOn[A](f, s, p, in)
	if err != nil {
		return err
	}
	defer free()
	return m.Backward(s, values, dout[0], &cuda.MLPGrad{X: grad[0], W1: grad[1], W2: grad[2], B1: grad[3], B2: grad[4]})
}
