package op

import (
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// Add returns a + b, where b has the shape of a, or that shape with a size of 1 in place of the first sizes, or without them: b is then added
// to each part of a. So b can be a position embedding (1, length, channels) for each sequence of a (batch, length, channels), or a bias
// (channels). The result has the shape of a.
//
// Use it instead of gorgonia.Add, which overwrites its first operand if no later operator reads that node. If the operand is a reshaped
// value, it shares its memory with the original, which may be a weight. Add overwrites neither operand.
//
// Errors: an operand that is missing; a b of another type than a, or of another shape.
func Add(a, b *G.Node) (*G.Node, error) {
	c := newChecker("add", "a", a)
	if c.err != nil {
		return nil, c.err
	}
	c.numbers("a", a)
	c.passes()
	c.numbers("b", b)
	shape, rows := a.Shape(), 1
	if b == nil {
		c.errorf("b is missing, want a node of shape %v like a", shape)
	} else if c.typed("b", b, operator.Numbers); !repeats(b.Shape(), shape) {
		c.errorf("b has shape %v, want %v like a, or the last sizes of it", b.Shape(), shape)
	} else if rows = shape.TotalSize() / b.Shape().TotalSize(); rows == 1 {
		c.passes()
	}
	return c.apply1(add[float32]{rows}, add[float64]{rows}, shape)
}

// repeats reports whether a value of shape b can be repeated to fill the shape a: its sizes are the last ones of a, after sizes of 1.
func repeats(b, a tensor.Shape) bool {
	for len(b) > 1 && b[0] == 1 && !ends(a, b) {
		b = b[1:]
	}
	return ends(a, b) && b.TotalSize() > 0
}

// ends reports whether b is a, or the last sizes of a, at least one.
func ends(a, b tensor.Shape) bool {
	return len(b) <= len(a) && (len(b) > 0 || len(a) == 0) && slices.Equal(b, a[len(a)-len(b):])
}

// add adds b to each of rows parts of a.
type add[T kernel.Float] struct{ rows int }

func (add[T]) Forward(in []value[T], out [][]T) { kernel.AddRows(out[0], in[0].Data, in[1].Data) }

func (f add[T]) Backward(_ []value[T], dout, grad [][]T) {
	if grad[1] != nil {
		kernel.SumRows(grad[1], dout[0])
	}
}

func (f add[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.AddRows(s, in[0].Array, in[1].Array, out[0])
}

func (add[T]) Linear() {}

func (f add[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	if f.rows == 1 {
		return nil
	}
	return cuda.ColumnSums(s, f.rows, grad[1].Len(), dout[0], grad[1].Len(), grad[1])
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

	ReLU    = kernel.ReLU    // max(x, 0); its derivative at 0 is 0
	Sigmoid = kernel.Sigmoid // 1/(1 + exp(-x))

	LeakyReLU = kernel.LeakyReLU // x, or 0.01·x if x is negative; its derivative at 0 is 0.01
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
	if !f.Known() {
		c.errorf("the activation is %d, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU", int(f))
	}
}

// gated is the function of Gate and, with an absent x, of Activate.
type gated[T kernel.Float] struct{ f Activation }

func (g gated[T]) Forward(in []value[T], out [][]T) { kernel.Gate(g.f, out[0], in[0].Data, in[1].Data) }

func (g gated[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.GateBackward(g.f, grad[0], grad[1], dout[0], in[0].Data, in[1].Data)
}

func (gated[T]) Repeatable() bool { return true }

func (g gated[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.Gate(s, cuda.Nonlinearity(g.f), in[0].Array, in[1].Array, out[0])
}

func (g gated[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return cuda.GateBackward(s, cuda.Nonlinearity(g.f), in[0].Array, in[1].Array, dout[0], grad[0], grad[1])
}
