package grad

import (
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// weightedSum is an operator that sums the elements of its operands, each with a weight of its own. It replaces HadamardProd and Sum,
// which depend on Gorgonia's treatment of tensors with one element and can overwrite their operands.
//
// Operands without weights are bystanders, and do not change the sum. They are operands because the lisp machine starts, with a
// gradient of one, from every node that no other node depends on.
type weightedSum struct{ operands []operand }

type operand struct {
	typ     hm.Type
	shape   tensor.Shape
	weights []float64 // nil for a bystander
}

var (
	_ G.SDOp = (*weightedSum)(nil)
	_ G.ADOp = (*weightedSum)(nil)
)

func newWeightedSum(outputs, bystanders G.Nodes) *weightedSum {
	r := rand.New(rand.NewPCG(1982, 75))
	o := &weightedSum{}
	for _, n := range outputs {
		weights := make([]float64, n.Shape().TotalSize())
		for i := range weights {
			weights[i] = 0.5 + r.Float64() // away from zero, so that every element counts
			if r.IntN(2) == 0 {
				weights[i] = -weights[i]
			}
		}
		o.operands = append(o.operands, operand{n.Type(), n.Shape(), weights})
	}
	for _, n := range bystanders {
		o.operands = append(o.operands, operand{n.Type(), n.Shape(), nil})
	}
	return o
}

func (o *weightedSum) Arity() int { return len(o.operands) }

func (o *weightedSum) Type() hm.Type {
	var types []hm.Type
	for _, p := range o.operands {
		types = append(types, p.typ)
	}
	return hm.NewFnType(append(types, tensor.Float64)...)
}

func (o *weightedSum) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.ScalarShape(), nil
}

func (o *weightedSum) Do(values ...G.Value) (G.Value, error) {
	sum := 0.0
	for i, p := range o.operands {
		if p.weights == nil {
			continue
		}
		v, err := elements(values[i], p.shape)
		if err != nil {
			return nil, fmt.Errorf("output %d %w", i, err)
		}
		sum += dot(p.weights, v)
	}
	return G.NewF64(sum), nil
}

func dot(a, b []float64) (sum float64) {
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

func (o *weightedSum) ReturnsPtr() bool     { return false }
func (o *weightedSum) CallsExtern() bool    { return false }
func (o *weightedSum) OverwritesInput() int { return -1 }

func (o *weightedSum) WriteHash(h hash.Hash) {
	fmt.Fprint(h, "weighted sum")
	for _, p := range o.operands {
		fmt.Fprintf(h, " %v%v", p.shape, p.weights != nil)
	}
}

func (o *weightedSum) Hashcode() uint32 { return hashcode(o) }
func (o *weightedSum) String() string   { return "weighted sum of outputs" }

func (o *weightedSum) DiffWRT(int) []bool {
	with := make([]bool, len(o.operands))
	for i, p := range o.operands {
		with[i] = p.weights != nil
	}
	return with
}

func (o *weightedSum) SymDiff(in G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	result := make(G.Nodes, len(in))
	for i, p := range o.operands {
		if p.weights == nil {
			continue
		}
		n, err := node.Apply(&scaledWeights{i, p}, grad)
		if err != nil {
			return nil, err
		}
		result[i] = n
	}
	return result, nil
}

func (o *weightedSum) DoDiff(_ G.ExecutionContext, in G.Nodes, out *G.Node) error {
	scale, err := gradientOf(out)
	if err != nil {
		return err
	}
	for i, p := range o.operands {
		if p.weights == nil {
			continue
		}
		into, err := in[i].Grad()
		if err == nil {
			err = addTo(into, scaled(p.weights, scale))
		}
		if err != nil {
			return fmt.Errorf("gradient of output %d: %w", i, err)
		}
	}
	return nil
}

// gradientOf returns the gradient of a scalar in the lisp machine.
func gradientOf(n *G.Node) (float64, error) {
	v, err := n.Grad()
	if err != nil {
		return 0, err
	}
	d, err := elements(v, tensor.ScalarShape())
	if err != nil {
		return 0, fmt.Errorf("the gradient %w", err)
	}
	return d[0], nil
}

func scaled(v []float64, by float64) []float64 {
	s := make([]float64, len(v))
	for i, x := range v {
		s[i] = by * x
	}
	return s
}

// scaledWeights is the gradient of weightedSum with respect to one operand: its weights times the gradient of the sum.
type scaledWeights struct {
	i int
	operand
}

func (o *scaledWeights) Arity() int                                     { return 1 }
func (o *scaledWeights) Type() hm.Type                                  { return hm.NewFnType(tensor.Float64, o.typ) }
func (o *scaledWeights) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.shape.Clone(), nil }
func (o *scaledWeights) ReturnsPtr() bool                               { return true }
func (o *scaledWeights) CallsExtern() bool                              { return false }
func (o *scaledWeights) OverwritesInput() int                           { return -1 }
func (o *scaledWeights) Hashcode() uint32                               { return hashcode(o) }
func (o *scaledWeights) String() string                                 { return fmt.Sprintf("weights of output %d", o.i) }

func (o *scaledWeights) Do(values ...G.Value) (G.Value, error) {
	scale, err := elements(values[0], tensor.ScalarShape())
	if err != nil {
		return nil, fmt.Errorf("the gradient %w", err)
	}
	v := scaled(o.weights, scale[0])
	if o.shape.IsScalar() {
		return G.NewF64(v[0]), nil
	}
	return tensor.New(tensor.WithShape(o.shape.Clone()...), tensor.WithBacking(v)), nil
}

func (o *scaledWeights) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "weights of output %d %v", o.i, o.shape)

}

func hashcode(o G.Op) uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}
