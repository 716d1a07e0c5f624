package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/node"
)

// LowRank returns weight + scale·b·a, a matrix with an update of low rank: weight (out, in), a (rank, in), b (out, rank), and the result
// (out, in). All operands have gradients. The gradient of the weight is the gradient of the result, without a copy. Matrix products are
// computed as in Linear.
//
// Errors: an operand that is missing, or of another type or shape; a scale that is not finite.
//
// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
func LowRank(weight, a, b *G.Node, scale float64) (*G.Node, error) {
	c := newChecker("low rank", "weight", weight)
	c.required("weight", weight, "(out, in)", 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := weight.Shape()
	c.required("a", a, "(rank, in)", 0, s[1])
	if c.err != nil {
		return nil, c.err
	}
	c.required("b", b, "(out, rank)", s[0], a.Shape()[0])
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		c.errorf("scale is %v, want a finite number", scale)
	}
	if c.err != nil {
		return nil, c.err
	}
	o := &lowRankUpdate{operator{f: lowRank{scale}, names: []string{"weight", "a", "b"}, dt: c.dt, out: []tensor.Shape{s}}}
	for _, n := range []*G.Node{weight, a, b} {
		o.in = append(o.in, slot{n.Shape(), c.dt, true, true})
	}
	n, err := node.Apply(o, weight, a, b)
	if err != nil {
		return nil, fmt.Errorf("op: low rank: %w", err)
	}
	return n, nil
}

// lowRankUpdate is an operator whose gradient is passed to the weight without a copy.
type lowRankUpdate struct{ operator }

var _ G.SDOp = (*lowRankUpdate)(nil)

func (o *lowRankUpdate) SymDiff(in G.Nodes, output, grad *G.Node) (G.Nodes, error) {
	factors := &operator{f: o.f, names: o.names, dt: o.dt, in: append([]slot(nil), o.in...), out: o.out}
	factors.in[0].differentiable = false
	each, err := factors.SymDiff(in, output, grad)
	if err != nil {
		return nil, err
	}
	each[0] = grad
	return each, nil
}

type lowRank struct{ scale float64 }

func (f lowRank) String() string       { return fmt.Sprintf("low rank{scale: %v}", f.scale) }
func (lowRank) differentiable() []bool { return []bool{true, true, true} }

func (f lowRank) forward(in, out []operand) {
	if out[0].is32() {
		lowRankKernel(f, in, product().Sgemm).Forward(floats[float32](out[0]))
	} else {
		lowRankKernel(f, in, product().Dgemm).Forward(floats[float64](out[0]))
	}
}

func (f lowRank) backward(in, dout, grad []operand) {
	if grad[0].data != nil {
		grad[0].copy(dout[0])
	}
	if dout[0].is32() {
		lowRankBackward(f, in, dout, grad, product().Sgemm)
	} else {
		lowRankBackward(f, in, dout, grad, product().Dgemm)
	}
}

func lowRankBackward[T kernel.Float](f lowRank, in, dout, grad []operand, gemm kernel.Gemm[T]) {
	lowRankKernel(f, in, gemm).Backward(floats[T](dout[0]), floats[T](grad[2]), floats[T](grad[1]))
}

func lowRankKernel[T kernel.Float](f lowRank, in []operand, gemm kernel.Gemm[T]) *kernel.LowRank[T] {
	return &kernel.LowRank[T]{
		Out: in[0].shape[0], In: in[0].shape[1], Rank: in[1].shape[0], Scale: T(f.scale),
		W: floats[T](in[0]), A: floats[T](in[1]), B: floats[T](in[2]), Gemm: gemm,
	}
}
