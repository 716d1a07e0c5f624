package graph

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
)

// LowRank is op.LowRank on a device: weight + scale·b·a, with weight (out, in), a (rank, in), b (out, rank), and the result (out, in). It
// computes in strict float32. If frozen is true the weight has no gradient, which saves memory of the weight's size.
//
// Errors: an operand that is missing or of another shape; a scale that is not finite.
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

func (f lowRank) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if err := out[0].CopyOf(s, in[0].Array); err != nil {
		return nil, err
	}
	a, b, to := cuda.Matrix[float32]{Data: in[1].Array, Stride: f.in}, cuda.Matrix[float32]{Data: in[2].Array, Stride: f.rank},
		cuda.Matrix[float32]{Data: out[0], Stride: f.in}
	return nothing(keep), cuda.MatMulScaled(s, cuda.Strict, f.out, f.in, f.rank, f.scale, b, a, 1, to)
}

func (f lowRank) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], _ any) error {
	if !f.frozen {
		if err := grad[0].CopyOf(s, dout[0]); err != nil {
			return err
		}
	}
	d := cuda.Matrix[float32]{Data: dout[0], Stride: f.in}
	a, da := cuda.Matrix[float32]{Data: in[1].Array, Stride: f.in, Transposed: true}, cuda.Matrix[float32]{Data: grad[1], Stride: f.in}
	b, db := cuda.Matrix[float32]{Data: in[2].Array, Stride: f.rank, Transposed: true}, cuda.Matrix[float32]{Data: grad[2], Stride: f.rank}
	if err := cuda.MatMulScaled(s, cuda.Strict, f.rank, f.in, f.out, f.scale, b, d, 0, da); err != nil {
		return err
	}
	return cuda.MatMulScaled(s, cuda.Strict, f.out, f.rank, f.in, f.scale, d, a, 0, db)
}
