package operator

import (
	"fmt"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
)

// Narrow is a matrix on the host in a type of blas.Weights: a Gorgonia value for weights of models that are not trained. Only some operators take it, as a
// weight, and they have no gradients then. To Gorgonia it is a matrix of float32.
type Narrow struct {
	onPlace // the host
	weights *blas.Weights
}

// NewNarrow returns the value of weights.
func NewNarrow(w *blas.Weights) *Narrow {
	return &Narrow{onPlace{shape: tensor.Shape{w.Outputs(), w.Inputs()}}, w}
}

// Weights returns the matrix.
func (n *Narrow) Weights() *blas.Weights { return n.weights }

func (n *Narrow) MemSize() uintptr    { return uintptr(n.weights.Bytes()) }
func (n *Narrow) Dtype() tensor.Dtype { return tensor.Float32 }
func (n *Narrow) Data() any           { return nil }
func (n *Narrow) Type() hm.Type       { return typeOf(tensor.Float32, n.shape) }
func (n *Narrow) String() string      { return fmt.Sprintf("%v of %v", n.shape, n.weights.Type()) }

// Format implements fmt.Formatter.
func (n *Narrow) Format(s fmt.State, _ rune) { fmt.Fprint(s, n.String()) }

// ToHost returns nothing: the matrix has no tensor.
func (n *Narrow) ToHost() (*tensor.Dense, error) { return nil, nil }

// HostChanged does nothing: the matrix does not change.
func (n *Narrow) HostChanged() {}

// Average returns an error: the matrix does not change.
func (n *Narrow) Average(G.Value, float64, float64) error {
	return fmt.Errorf("is of %v, want float32", n.weights.Type())
}

// TakesNarrow is a function that takes a Narrow as an operand.
type TakesNarrow interface {
	// TakesNarrow reports whether operand i may be a Narrow.
	TakesNarrow(i int) bool
}

// ofNarrow returns the matrix of a value for operand i of the operator, nil if it is no Narrow.
func (o *Operator) ofNarrow(i int, v any) (*blas.Weights, error) {
	n, ok := v.(*Narrow)
	if !ok {
		return nil, nil
	}
	if f, ok := o.function.(TakesNarrow); !ok || !f.TakesNarrow(i) {
		return nil, fmt.Errorf("is of %v, want float32: only products and embeddings take narrow weights", n.weights.Type())
	}
	return n.weights, nil
}
