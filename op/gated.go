package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/kernel"
)

// Activation is a function that is applied to each element.
type Activation = kernel.Activation

// The activations. GELU is the exact form with the error function, not the approximation with tanh (Hendrycks and Gimpel, "Gaussian Error
// Linear Units").
const (
	SiLU = kernel.SiLU // x·sigmoid(x)
	GELU = kernel.GELU // x·Φ(x), where Φ is the distribution function of the standard normal distribution
)

// Activate returns f(x), element by element: x and the result are (batch, length, channels). Errors: an x that is missing, or of another
// type or shape; an unknown f.
func Activate(x *G.Node, f Activation) (*G.Node, error) {
	c := newChecker("activation", "x", x)
	c.required("x", x, "(batch, length, channels)", 0, 0, 0)
	c.activation(f)
	if c.err != nil {
		return nil, c.err
	}
	return apply1(activation{f}, operands{[]string{"x"}, G.Nodes{x}}, c.dt, x.Shape())
}

// Gate returns f(gate)·x, element by element: gate, x and the result are (batch, length, channels). With SiLU it is the gate of SwiGLU,
// with GELU that of GeGLU. Errors: an operand that is missing, or of another type or shape; an unknown f. Source: Shazeer, "GLU Variants
// Improve Transformer", equation 6.
func Gate(gate, x *G.Node, f Activation) (*G.Node, error) {
	c := newChecker("gate", "gate", gate)
	c.required("gate", gate, "(batch, length, channels)", 0, 0, 0)
	c.activation(f)
	if c.err != nil {
		return nil, c.err
	}
	c.required("x", x, "(batch, length, channels)", gate.Shape()...)
	if c.err != nil {
		return nil, c.err
	}
	return apply1(gated{f}, operands{[]string{"gate", "x"}, G.Nodes{gate, x}}, c.dt, x.Shape())
}

func (c *checker) activation(f Activation) {
	if f != SiLU && f != GELU {
		c.errorf("the activation is %d, want SiLU or GELU", int(f))
	}
}

type activation struct{ f Activation }

func (a activation) String() string       { return fmt.Sprintf("activation{%v}", a.f) }
func (activation) differentiable() []bool { return []bool{true} }

func (a activation) forward(in, out []operand) {
	if out[0].is32() {
		kernel.Activate(a.f, floats[float32](out[0]), floats[float32](in[0]))
	} else {
		kernel.Activate(a.f, floats[float64](out[0]), floats[float64](in[0]))
	}
}

func (a activation) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		kernel.ActivateBackward(a.f, floats[float32](grad[0]), floats[float32](dout[0]), floats[float32](in[0]))
	} else {
		kernel.ActivateBackward(a.f, floats[float64](grad[0]), floats[float64](dout[0]), floats[float64](in[0]))
	}
}

type gated struct{ f Activation }

func (g gated) String() string       { return fmt.Sprintf("gate{%v}", g.f) }
func (gated) differentiable() []bool { return []bool{true, true} }

func (g gated) forward(in, out []operand) {
	if out[0].is32() {
		kernel.Gate(g.f, floats[float32](out[0]), floats[float32](in[0]), floats[float32](in[1]))
	} else {
		kernel.Gate(g.f, floats[float64](out[0]), floats[float64](in[0]), floats[float64](in[1]))
	}
}

func (g gated) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		gateBackward[float32](g, in, dout, grad)
	} else {
		gateBackward[float64](g, in, dout, grad)
	}
}

func gateBackward[T kernel.Float](g gated, in, dout, grad []operand) {
	kernel.GateBackward(g.f, floats[T](grad[0]), floats[T](grad[1]), floats[T](dout[0]), floats[T](in[0]), floats[T](in[1]))
}
