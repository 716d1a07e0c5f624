package grad_test

import (
	"fmt"
	"hash"
	"hash/fnv"
	"math"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// forward is an operator without gradients: the elementwise product of its operands, which have the same shape. The first operand is of
// float64; others may be integers.
type forward struct {
	name     string
	operands int
	do       func(in [][]float64) // a fault, called before the product is computed
}

func (o *forward) Arity() int { return o.operands }

func (o *forward) Type() hm.Type {
	types := make([]hm.Type, o.operands+1)
	for i := range types {
		types[i] = hm.TypeVariable(rune('p' + i)) // Gorgonia's own type inference uses b
	}
	types[o.operands] = types[0]
	return hm.NewFnType(types...)
}

func (o *forward) InferShape(in ...G.DimSizer) (tensor.Shape, error) {
	return in[0].(tensor.Shape), nil
}

func (o *forward) Do(values ...G.Value) (G.Value, error) {
	in := floats(values)
	if o.do != nil {
		o.do(in)
	}
	return tensor.New(tensor.WithShape(values[0].Shape().Clone()...), tensor.WithBacking(product(in, -1))), nil
}

// floats returns the elements as float64. It does not copy them if they are of float64.
func floats(values []G.Value) [][]float64 {
	in := make([][]float64, len(values))
	for i, v := range values {
		switch d := v.Data().(type) {
		case []float64:
			in[i] = d
		case []int:
			for _, x := range d {
				in[i] = append(in[i], float64(x))
			}
		}
	}
	return in
}

// product returns the elementwise product of all operands but one.
func product(in [][]float64, but int) []float64 {
	p := make([]float64, len(in[0]))
	for k := range p {
		p[k] = 1
		for i, v := range in {
			if i != but {
				p[k] *= v[k]
			}
		}
	}
	return p
}

func (o *forward) ReturnsPtr() bool      { return true }
func (o *forward) CallsExtern() bool     { return false }
func (o *forward) OverwritesInput() int  { return -1 }
func (o *forward) WriteHash(h hash.Hash) { fmt.Fprint(h, o.name, o.operands) }
func (o *forward) String() string        { return o.name }

func (o *forward) Hashcode() uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

// symbolic is forward with SymDiff, the gradient for the tape machine.
type symbolic struct {
	forward
	without int                                            // index of an operand without a gradient, plus one
	fault   func(operand int, in [][]float64, d []float64) // a fault that changes the gradient of an operand
	symDiff func(grads G.Nodes) G.Nodes                    // a fault that changes the result of SymDiff
}

func (o *symbolic) DiffWRT(n int) []bool {
	with := make([]bool, n)
	for i := range with {
		with[i] = i != o.without-1
	}
	return with
}

func (o *symbolic) gradient(operand int, in [][]float64, dy []float64) []float64 {
	d := product(append([][]float64{dy}, in...), operand+1)
	if o.fault != nil {
		o.fault(operand, in, d)
	}
	return d
}

func (o *symbolic) SymDiff(in G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	result := make(G.Nodes, len(in))
	for i, with := range o.DiffWRT(len(in)) {
		if !with {
			continue
		}
		d := &derivative{forward{name: fmt.Sprint("derivative ", i, " of ", o.name), operands: o.operands + 1}, i, o}
		n, err := G.ApplyOp(d, append(append(G.Nodes{}, in...), grad)...)
		if err != nil {
			return nil, err
		}
		result[i] = n
	}
	if o.symDiff != nil {
		result = o.symDiff(result)
	}
	return result, nil
}

type derivative struct {
	forward
	operand int
	of      *symbolic
}

func (o *derivative) Do(values ...G.Value) (G.Value, error) {
	in := floats(values)
	d := o.of.gradient(o.operand, in[:o.of.operands], in[o.of.operands])
	return tensor.New(tensor.WithShape(values[0].Shape().Clone()...), tensor.WithBacking(d)), nil
}

// automatic is symbolic with DoDiff, the gradient for the lisp machine.
type automatic struct{ symbolic }

func (o *automatic) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	dy, err := output.Grad()
	if err != nil {
		return err
	}
	values := make([]G.Value, len(inputs))
	for i, n := range inputs {
		values[i] = n.Value()
	}
	in := floats(values)
	for i, with := range o.DiffWRT(len(inputs)) {
		if !with {
			continue
		}
		d, err := inputs[i].Grad()
		if err != nil {
			return err
		}
		into := d.Data().([]float64)
		for k, x := range o.gradient(i, in, dy.Data().([]float64)) {
			into[k] += x
		}
	}
	return nil
}

// root is the square root. Its gradient is built from Gorgonia's own operators.
func root(in G.Nodes) (*G.Node, error) { return G.Sqrt(in[0]) }

func dense(shape []int, data ...float64) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(append([]float64(nil), data...)))
}

// wave returns n numbers between -1 and 1, all different from 0.
func wave(n int, phase float64) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = math.Sin(1.7*float64(i) + phase)
	}
	return v
}
