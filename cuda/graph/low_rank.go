package graph

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
)

// LowRank is op.LowRank on a device: weight + scale·b·a, of weight (out, in), a (rank, in) and b (out, rank), in strict float32. A
// weight that is frozen has no gradient, which would be as large as the weight.
func (c *Context) LowRank(weight, a, b *G.Node, scale float64, frozen bool) (*G.Node, error) {
	in := operands{{"weight", onDevice, weight}, {"a", onDevice, a}, {"b", onDevice, b}}
	if err := in.check("low rank"); err != nil {
		return nil, err
	}
	w, sa, sb := weight.Shape(), a.Shape(), b.Shape()
	if len(w) != 2 || len(sa) != 2 || len(sb) != 2 || sa[1] != w[1] || sb[0] != w[0] || sa[0] != sb[1] {
		return nil, fmt.Errorf("graph: low rank: weight has shape %v, a %v and b %v, want (out, in), (rank, in) and (out, rank)", w, sa, sb)
	}
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		return nil, fmt.Errorf("graph: low rank: scale is %v, want a finite number", scale)
	}
	n, err := c.apply(lowRank{w[0], w[1], sa[0], float32(scale), frozen}, in, w)
	if err != nil {
		return nil, err
	}
	return n[0], nil
}

type lowRank struct {
	out, in, rank int
	scale         float32
	frozen        bool
}

func (f lowRank) String() string {
	return fmt.Sprintf("low rank{scale: %v, frozen: %v}", f.scale, f.frozen)
}
func (f lowRank) differentiable() []bool { return []bool{!f.frozen, true, true} }

func rowsOf(a cuda.Array[float32], width int) cuda.Matrix[float32] {
	return cuda.Matrix[float32]{Data: a, Stride: width}
}

func turned(m cuda.Matrix[float32]) cuda.Matrix[float32] {
	m.Transposed = true
	return m
}

func (f lowRank) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if err := out[0].CopyOf(s, in[0].Array); err != nil {
		return nil, err
	}
	a, b := rowsOf(in[1].Array, f.in), rowsOf(in[2].Array, f.rank)
	return nothing(keep), cuda.MatMulScaled(s, cuda.Strict, f.out, f.in, f.rank, f.scale, b, a, 1, rowsOf(out[0], f.in))
}

func (f lowRank) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], _ any) error {
	if !f.frozen {
		if err := grad[0].CopyOf(s, dout[0]); err != nil {
			return err
		}
	}
	a, b, d := rowsOf(in[1].Array, f.in), rowsOf(in[2].Array, f.rank), rowsOf(dout[0], f.in)
	if err := cuda.MatMulScaled(s, cuda.Strict, f.rank, f.in, f.out, f.scale, turned(b), d, 0, rowsOf(grad[1], f.in)); err != nil {
		return err
	}
	return cuda.MatMulScaled(s, cuda.Strict, f.out, f.rank, f.in, f.scale, d, turned(a), 0, rowsOf(grad[2], f.rank))
}
