package graph

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// RMSNorm is op.RMSNorm on a device: x (batch, length, width), weight (width), and the result has x's shape. Both operands have gradients.
//
// Errors: an operand that is missing or of another shape.
func (c *Context) RMSNorm(x, weight *G.Node, eps float64) (*G.Node, error) {
	in := operands{{"x", onDevice, x}, {"weight", onDevice, weight}}
	if err := in.check("RMS norm"); err != nil {
		return nil, err
	}
	s := x.Shape()
	if len(s) != 3 || !weight.Shape().Eq(tensor.Shape{s[2]}) {
		return nil, fmt.Errorf("graph: RMS norm: x has shape %v and weight %v, want (batch, length, width) and (width)", s, weight.Shape())
	}
	if !(eps >= 0) || math.IsInf(eps, 1) {
		return nil, fmt.Errorf("graph: RMS norm: eps is %v, want a finite number of at least 0", eps)
	}
	n, err := c.apply(norm{s[0] * s[1], s[2], float32(eps)}, in, s)
	if err != nil {
		return nil, err
	}
	return n[0], nil
}

// check returns an error if an operand is missing, belongs to no graph or to another one, or is on the device and not of float32.
func (in operands) check(what string) error {
	for _, x := range in {
		switch {
		case x.node == nil:
			return fmt.Errorf("graph: %s: %s is missing", what, x.name)
		case x.node.Graph() == nil:
			return fmt.Errorf("graph: %s: %s belongs to no graph", what, x.name)
		case x.node.Graph() != in[0].node.Graph():
			return fmt.Errorf("graph: %s: %s belongs to another graph than %s", what, x.name, in[0].name)
		case x.place == onDevice && x.node.Dtype() != tensor.Float32:
			return fmt.Errorf("graph: %s: %s is of %v, want float32", what, x.name, x.node.Dtype())
		}
	}
	return nil
}

type norm struct {
	rows, width int
	eps         float32
}

func (f norm) String() string       { return fmt.Sprintf("RMS norm{eps: %v}", f.eps) }
func (norm) differentiable() []bool { return []bool{true, true} }

func (f norm) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	return nothing(keep), cuda.RMSNormForward(s, f.rows, f.width, f.eps, in[0].Array, in[1].Array, out[0])
}

func (f norm) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], _ any) error {
	return cuda.RMSNormBackward(s, f.rows, f.width, f.eps, in[0].Array, in[1].Array, dout[0], cuda.Array[float32]{}, grad[0], grad[1])
}

// nothing returns the kept values of a function whose backward needs only the operands: empty ones, or nil if nothing is to be kept.
func nothing(keep bool) *kept {
	if !keep {
		return nil
	}
	return new(kept)
}

// Embedding is op.Embedding on a device: weight (vocabulary, width), ids (batch, length) of int on the host, and the result x (batch, length,
// width). The second result, tied, is the weight itself. Use it as the weight of a tied head: then one operator adds both gradients of the
// weight.
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, an id outside the vocabulary.
func (c *Context) Embedding(weight, ids *G.Node) (x, tied *G.Node, err error) {
	in := operands{{"weight", onDevice, weight}, {"ids", onHost, ids}}
	if err := in.check("embedding"); err != nil {
		return nil, nil, err
	}
	w, s := weight.Shape(), ids.Shape()
	if len(w) != 2 || len(s) != 2 || ids.Dtype() != tensor.Int {
		return nil, nil, fmt.Errorf("graph: embedding: weight has shape %v and ids are %v %v, want (vocabulary, width) and (batch, length) of int",
			w, ids.Dtype(), s)
	}
	n, err := c.apply(&embedding{rows: s[0] * s[1], vocabulary: w[0], width: w[1]}, in, tensor.Shape{s[0], s[1], w[1]}, w)
	if err != nil {
		return nil, nil, err
	}
	return n[0], n[1], nil
}

type embedding struct{ rows, vocabulary, width int }

func (f *embedding) String() string         { return "embedding" }
func (f *embedding) differentiable() []bool { return []bool{true, false} }
func (f *embedding) passed() (int, int)     { return 1, 0 }

// small converts ints to int32. It returns an error if an element is neither in 0 to below-1 nor equal to also.
func small(ints []int, name string, below, also int) ([]int32, error) {
	v := make([]int32, len(ints))
	for i, x := range ints {
		if (x < 0 || x >= below) && x != also {
			return nil, fmt.Errorf("%s: element %d is %d, want 0 to %d", name, i, x, below-1)
		}
		v[i] = int32(x)
	}
	return v, nil
}

func (f *embedding) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	ids, err := small(in[1].ints, "ids", f.vocabulary, 0)
	if err != nil {
		return nil, err
	}
	there, err := cuda.Upload(s, ids)
	if err != nil {
		return nil, err
	}
	defer there.Free()
	if err := cuda.EmbeddingForward(s, f.rows, f.width, in[0].Array, there, out[0]); err != nil || !keep {
		return nil, err
	}
	return &kept{values: ids}, nil
}

func (f *embedding) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], values any) error {
	if dout[1].Absent() {
		if err := grad[0].Fill(s, 0); err != nil {
			return err
		}
	} else if err := grad[0].CopyOf(s, dout[1]); err != nil {
		return err
	}
	if dout[0].Absent() {
		return nil
	}
	return cuda.EmbeddingBackward(s, f.rows, f.width, f.vocabulary, values.([]int32), dout[0], grad[0])
}
