package op

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/node"
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
	shape := a.Shape()
	if b == nil {
		c.errorf("b is missing, want a node of shape %v like a", shape)
	} else if c.float("b", b); !slices.Equal(b.Shape(), shape) {
		c.errorf("b has shape %v, want %v like a", b.Shape(), shape)
	}
	if c.err != nil {
		return nil, c.err
	}
	o := &addition{operator{
		f: add{}, names: []string{"a", "b"}, dt: c.dt,
		in: []slot{{shape, c.dt, true, true}, {shape, c.dt, true, true}}, out: []tensor.Shape{shape},
	}}
	n, err := node.Apply(o, a, b)
	if err != nil {
		return nil, fmt.Errorf("op: add: %w", err)
	}
	return n, nil
}

// addition is an operator whose gradient is passed to both operands without a copy.
type addition struct{ operator }

var _ G.SDOp = (*addition)(nil)

func (*addition) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	return G.Nodes{grad, grad}, nil
}

type add struct{}

func (add) String() string         { return "add" }
func (add) differentiable() []bool { return []bool{true, true} }

func (add) forward(in, out []operand) {
	if out[0].is32() {
		kernel.Sum(floats[float32](out[0]), floats[float32](in[0]), floats[float32](in[1]))
	} else {
		kernel.Sum(floats[float64](out[0]), floats[float64](in[0]), floats[float64](in[1]))
	}
}

func (add) backward(_, dout, grad []operand) {
	grad[0].copy(dout[0])
	grad[1].copy(dout[0])
}

// NegExp returns -exp(x), element by element: the A of a selective scan from the weight A_log. Errors: an x that is missing or not of
// float32 or float64.
func NegExp(x *G.Node) (*G.Node, error) {
	c := newChecker("negative exponential", "x", x)
	if c.err != nil {
		return nil, c.err
	}
	return apply1(negExp{}, operands{[]string{"x"}, G.Nodes{x}}, c.dt, x.Shape())
}

type negExp struct{}

func (negExp) String() string         { return "negative exponential" }
func (negExp) differentiable() []bool { return []bool{true} }

func (negExp) forward(in, out []operand) {
	if out[0].is32() {
		kernel.NegExp(floats[float32](out[0]), floats[float32](in[0]))
	} else {
		kernel.NegExp(floats[float64](out[0]), floats[float64](in[0]))
	}
}

func (negExp) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		kernel.NegExpBackward(floats[float32](grad[0]), floats[float32](dout[0]), floats[float32](in[0]))
	} else {
		kernel.NegExpBackward(floats[float64](grad[0]), floats[float64](dout[0]), floats[float64](in[0]))
	}
}
