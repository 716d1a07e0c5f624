package op

import (
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// drawShape draws a shape of any rank from 1 to 4.
func drawShape(t *rapid.T) []int { return rapid.SliceOfN(rapid.IntRange(1, 4), 1, 4).Draw(t, "shape") }

func TestAdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shape := drawShape(t)
		a, b := drawInput(t, "a", shape...), drawInput(t, "b", shape...)
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(Add(in[0], in[1])) }, in: []grad.Input{a, b}}.
			holds(t, sum(elements(a.Value), elements(b.Value)))
	})
}

func TestAddToItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawInput(t, "a", drawShape(t)...)
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(Add(in[0], in[0])) }, in: []grad.Input{a}}.
			holds(t, sum(elements(a.Value), elements(a.Value)))
	})
}

func TestNegExp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := drawInput(t, "x", drawShape(t)...)
		var want []float64
		for _, v := range elements(x.Value) {
			want = append(want, -math.Exp(v))
		}
		use{f: func(in G.Nodes) (G.Nodes, error) { return one(NegExp(in[0])) }, in: []grad.Input{x}}.holds(t, want)
	})
}

// Scalars work like other shapes, though Gorgonia has other types of values for them.
func TestElementwiseScalars(t *testing.T) {
	err := everywhere(func(dt tensor.Dtype, lisp bool, tol float64) error {
		g := G.NewGraph()
		values := map[string]any{"a": 0.5, "b": -2.0}
		nodes := map[string]*G.Node{}
		for name, v := range values {
			if dt == tensor.Float32 {
				v = float32(v.(float64))
			}
			nodes[name] = G.NewScalar(g, dt, G.WithName(name), G.WithValue(v))
		}
		n := G.Must(NegExp(G.Must(Add(G.Must(NegExp(nodes["a"])), nodes["b"]))))
		var y G.Value
		G.Read(n, &y)
		grads := map[string]G.Value{}
		if err := runGradients(g, n, nodes, lisp, grads); err != nil {
			return err
		}
		want := -math.Exp(-math.Exp(0.5) - 2)
		return sameResults(
			map[string][]float64{"y": elements(y), "gradient of a": elements(grads["a"]), "gradient of b": elements(grads["b"])},
			map[string][]float64{"y": {want}, "gradient of a": {-want * math.Exp(0.5)}, "gradient of b": {want}}, tol)
	})
	if err != nil {
		t.Error(err)
	}
}
