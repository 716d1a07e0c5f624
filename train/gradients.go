package train

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// gradient is a weight of the host with the sum of its gradients since the last step.
type gradient struct {
	*G.Node
	sum *tensor.Dense
}

// Grad returns the sum.
func (g gradient) Grad() (G.Value, error) { return g.sum, nil }

// mostCollected is the most memory, in bytes, of gradients that collect lets stay until all of them are there.
var mostCollected = mostReused // a variable for tests

// collect adds an operator to a graph that adds all gradients of weights to sums, in one job of all processors. A machine that binds gradients to weights adds
// each on one processor, which takes a fortieth of a small model's step. It returns nil, and changes and allocates nothing, unless the weights are on the host,
// of one type, and not large: a machine frees a gradient that it has added.
func collect(weights, grads G.Nodes) ([]G.ValueGrad, error) {
	dt, elements := weights[0].Dtype(), 0
	for i, w := range weights {
		if !operator.PlaceOf(w).OnHost() || !operator.PlaceOf(grads[i]).OnHost() || w.Dtype() != dt || grads[i].Dtype() != dt || !grads[i].Shape().Eq(w.Shape()) {
			return nil, nil
		}
		elements += w.Shape().TotalSize()
	}
	if elements*int(dt.Size()) > mostCollected {
		return nil, nil
	}
	d := operator.Definition{Name: "sums of gradients", Dtype: dt, Out: []tensor.Shape{tensor.ScalarShape()}}
	var all []G.ValueGrad
	var single gradientSums[float32]
	var double gradientSums[float64]
	for i, w := range weights {
		sum := tensor.New(tensor.WithShape(w.Shape().Clone()...), tensor.Of(dt))
		all = append(all, gradient{w, sum})
		d.In = append(d.In, operator.In{Name: w.Name(), Node: grads[i]})
		if dt == tensor.Float32 {
			single = append(single, slice[float32](sum))
		} else {
			double = append(double, slice[float64](sum))
		}
	}
	d.Float32, d.Float64 = collector[float32]{&single}, collector[float64]{&double}
	_, err := operator.Apply(d)
	return all, err
}

// gradientSums are the sums of the gradients of all weights.
type gradientSums[T kernel.Float] [][]T

// collector is the function of collect's operator. Its pointer tells it from others in a graph.
type collector[T kernel.Float] struct{ to *gradientSums[T] }

// Forward adds the operands to the sums. The result is of no use.
func (c collector[T]) Forward(in []operator.Operand[T], out [][]T) {
	parts := make([][]T, len(in))
	for i := range in {
		parts[i] = in[i].Data
	}
	kernel.AddEach(*c.to, parts)
	out[0][0] = 0
}

// Backward writes zeros: nothing depends on the result.
func (collector[T]) Backward(_ []operator.Operand[T], _, grad [][]T) {
	for _, g := range grad {
		clear(g)
	}
}
