package op

import (
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// Add returns a + b. The operands have the same shape and type, and so has the result.
//
// Use it instead of gorgonia.Add, which overwrites its first operand if no later operator reads that node. If the operand is a reshaped
// value, it shares its memory with the original, which may be a weight. Add overwrites neither operand.
//
// Errors: an operand that is missing; a b of another type or shape than a.
func Add(a, b *G.Node) (*G.Node, error) {
	c := newChecker("add", "a", a)
	if c.err != nil {
		return nil, c.err
	}
	c.numbers("a", a)
	c.passes()
	c.numbers("b", b)
	c.passes()
	shape := a.Shape()
	if b == nil {
		c.errorf("b is missing, want a node of shape %v like a", shape)
	} else if c.typed("b", b, operator.Numbers); !slices.Equal(b.Shape(), shape) {
		c.errorf("b has shape %v, want %v like a", b.Shape(), shape)
	}
	return c.apply1(add[float32]{}, add[float64]{}, shape)
}

type add[T kernel.Float] struct{}

func (add[T]) Forward(in []value[T], out [][]T) { kernel.Sum(out[0], in[0].Data, in[1].Data) }

func (add[T]) Backward(_ []value[T], _, _ [][]T) {}

func (add[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.Add(s, in[0].Array, in[1].Array, out[0])
}

func (add[T]) BackwardOn(*cuda.Stream, cuda.Precision, []onDevice, []array, []array, kept) error {
	return nil
}

// NegExp returns -exp(x), element by element: the A of a selective scan from the weight A_log. Errors: an x that is missing or not of
// float32 or float64.
func NegExp(x *G.Node) (*G.Node, error) {
	c := newChecker("negative exponential", "x", x)
	if c.err != nil {
		return nil, c.err
	}
	c.numbers("x", x)
	return c.apply1(negExp[float32]{}, negExp[float64]{}, x.Shape())
}

type negExp[T kernel.Float] struct{}

func (negExp[T]) Forward(in []value[T], out [][]T) { kernel.NegExp(out[0], in[0].Data) }

func (negExp[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.NegExpBackward(grad[0], dout[0], in[0].Data)
}

func (negExp[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.NegExp(s, in[0].Array, out[0])
}

func (negExp[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.NegExpBackward(s, in[0].Array, dout[0], grad[0])
}

// Activation is a function that is applied to each element.
type Activation = kernel.Activation

// The activations. GELU is the exact form with the error function, not the approximation with tanh (Hendrycks and Gimpel, "Gaussian Error
// Linear Units").
const (
	SiLU = kernel.SiLU // x·sigmoid(x)
	GELU = kernel.GELU // x·Φ(x), where Φ is the distribution function of the standard normal distribution
)

// Activate returns f(x), element by element: x and the result are (batch, …, channels). Errors: an x that is missing, or of another
// type or shape; an unknown f.
func Activate(x *G.Node, f Activation) (*G.Node, error) {
	c := newChecker("activation", "x", x)
	s, _, _ := c.rows("x", x, "channels")
	c.numbers("", nil) // the x of Gate
	c.activation(f)
	return c.apply1(gated[float32]{f}, gated[float64]{f}, s)
}

// Gate returns f(gate)·x, element by element: gate, x and the result are (batch, …, channels). With SiLU it is the gate of SwiGLU,
// with GELU that of GeGLU. Errors: an operand that is missing, or of another type or shape; an unknown f. Source: Shazeer, "GLU Variants
// Improve Transformer", equation 6.
func Gate(gate, x *G.Node, f Activation) (*G.Node, error) {
	c := newChecker("gate", "gate", gate)
	s, _, _ := c.rows("gate", gate, "channels")
	c.activation(f)
	c.required("x", x, "(batch, …, channels)", s...)
	return c.apply1(gated[float32]{f}, gated[float64]{f}, s)
}

func (c *checker) activation(f Activation) {
	if f != SiLU && f != GELU {
		c.errorf("the activation is %d, want SiLU or GELU", int(f))
	}
}

// gated is the function of Gate and, with an absent x, of Activate.
type gated[T kernel.Float] struct{ f Activation }

func (g gated[T]) Forward(in []value[T], out [][]T) { kernel.Gate(g.f, out[0], in[0].Data, in[1].Data) }

func (g gated[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.GateBackward(g.f, grad[0], grad[1], dout[0], in[0].Data, in[1].Data)
}

func (g gated[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.Gate(s, cuda.Nonlinearity(g.f), in[0].Array, in[1].Array, out[0])
}

func (g gated[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.GateBackward(s, cuda.Nonlinearity(g.f), in[0].Array, in[1].Array, dout[0], grad[0], grad[1])
}
