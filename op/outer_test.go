package op

import (
	"testing"

	G "gorgonia.org/gorgonia"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

func TestOuterProduct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length := size(t, "batch", 2), size(t, "length", 3)
		heads, size := size(t, "heads", 3), size(t, "size", 4)
		k, v := drawInput(t, "k", batch, length, heads*size), drawInput(t, "v", batch, length, heads*size)
		var want []float64
		for head := range batch * length * heads {
			for i := range size {
				for j := range size {
					want = append(want, elements(k.Value)[head*size+i]*elements(v.Value)[head*size+j])
				}
			}
		}
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(OuterProduct(in[0], in[1], heads)) }, in: []grad.Input{k, v}}.holds(t, want)
	})
}

func TestContract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length := size(t, "batch", 2), size(t, "length", 3)
		heads, size := size(t, "heads", 3), size(t, "size", 4)
		q, s := drawInput(t, "q", batch, length, heads*size), drawInput(t, "s", batch, length, heads*size*size)
		want := make([]float64, batch*length*heads*size)
		for head := range batch * length * heads {
			for i := range size {
				for j := range size {
					want[head*size+j] += elements(q.Value)[head*size+i] * elements(s.Value)[(head*size+i)*size+j]
				}
			}
		}
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(Contract(in[0], in[1], heads)) }, in: []grad.Input{q, s}}.holds(t, want)
	})
}

// The product of an operand with itself: the operand gets the sum of both gradients.
func TestOuterProductWithItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawInput(t, "k", 1, 2, 3)
		var want []float64
		for row := 0; row < 6; row += 3 {
			e := elements(k.Value)[row : row+3]
			for _, a := range e {
				want = append(want, a*e[0], a*e[1], a*e[2])
			}
		}
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(OuterProduct(in[0], in[0], 1)) }, in: []grad.Input{k}}.holds(t, want)
	})
}

// Products of the same operands with different numbers of heads are different nodes.
func TestOuterProductsOfOtherHeads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, v := drawInput(t, "k", 1, 1, 2), drawInput(t, "v", 1, 1, 2)
		a, b := elements(k.Value), elements(v.Value)
		use{f: func(in G.Nodes) (G.Nodes, error) {
			two, err := OuterProduct(in[0], in[1], 2)
			if err != nil {
				return nil, err
			}
			one, err := OuterProduct(in[0], in[1], 1)
			return G.Nodes{two, one}, err
		}, in: []grad.Input{k, v}}.
			holds(t, []float64{a[0] * b[0], a[1] * b[1]}, []float64{a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]})
	})
}
