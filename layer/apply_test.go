package layer

import (
	"fmt"
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func leaf(g *G.ExprGraph, name string, v []float64, shape ...int) *G.Node {
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
}

// run returns the values of nodes.
func run(t *testing.T, nodes ...*G.Node) []G.Value {
	t.Helper()
	values := make([]G.Value, len(nodes))
	for i, n := range nodes {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(nodes[0].Graph())
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	return values
}

func silu(x float64) float64 { return x / (1 + math.Exp(-x)) }

func TestLinear(t *testing.T) {
	l := NewLinear(LinearConfig{In: 2, Out: 3, Bias: true}, WithDtype(tensor.Float64))
	copy(l.Weight.Value.Data().([]float64), []float64{1, 2, 3, 4, 5, 6})
	copy(l.Bias.Value.Data().([]float64), []float64{10, 20, 30})
	x := leaf(G.NewGraph(), "x", []float64{1, 1, 2, -1}, 1, 2, 2)
	y, err := l.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	sameElements(t, "x·Wᵀ + bias", run(t, y)[0], 13, 27, 41, 10, 22, 34)
}

func TestRMSNorm(t *testing.T) {
	l := NewRMSNorm(RMSNormConfig{Channels: 2, Eps: 5.5}, WithDtype(tensor.Float64))
	copy(l.Weight.Value.Data().([]float64), []float64{1, 10})
	x := leaf(G.NewGraph(), "x", []float64{3, 4, 0, 0}, 1, 2, 2) // the mean of squares is 12.5
	y, err := l.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	sameElements(t, "the norm", run(t, y)[0], 3/math.Sqrt(18), 40/math.Sqrt(18), 0, 0)
}

func TestEmbedding(t *testing.T) {
	l := NewEmbedding(EmbeddingConfig{Vocabulary: 3, Channels: 2}, WithDtype(tensor.Float64))
	copy(l.Weight.Value.Data().([]float64), []float64{1, 2, 3, 4, 5, 6})
	g := G.NewGraph()
	ids := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 3), tensor.WithBacking([]int{2, 0, 2})), G.WithName("ids"))
	y, err := l.Apply(ids)
	if err != nil {
		t.Fatal(err)
	}
	sameElements(t, "the rows", run(t, y)[0], 5, 6, 1, 2, 5, 6)
}

// A convolution with and without context, and what it hands on.
func TestConv1D(t *testing.T) {
	l := NewConv1D(Conv1DConfig{Channels: 1, Width: 3}, WithDtype(tensor.Float64))
	copy(l.Parts.Weight.Value.Data().([]float64), []float64{0.25, 0.5, 2})
	copy(l.Parts.Bias.Value.Data().([]float64), []float64{-1})
	g := G.NewGraph()
	x := leaf(g, "x", []float64{1, 2, 3}, 1, 3, 1)
	y, err := l.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	cut, err := l.Apply(x, WithStart(leaf(g, "start", []float64{0, 0, 1}, 1, 3)))
	if err != nil {
		t.Fatal(err)
	}
	context := leaf(g, "context", []float64{4, 5}, 1, 2, 1)
	after, next, err := l.ApplyWithState(x, State{context})
	if err != nil {
		t.Fatal(err)
	}
	v := run(t, y, cut, after, next[0])
	sameElements(t, "from nothing", v[0], silu(2-1), silu(4.5-1), silu(7.25-1))
	sameElements(t, "with a start at the last step", v[1], silu(2-1), silu(4.5-1), silu(6-1))
	sameElements(t, "after 4, 5", v[2], silu(5.5-1), silu(5.75-1), silu(7.25-1))
	sameElements(t, "the next context", v[3], 2, 3)
}

// A convolution of width 1 remembers nothing.
func TestConv1DOfWidthOne(t *testing.T) {
	l := NewConv1D(Conv1DConfig{Channels: 2, Width: 1, NoBias: true}, WithDtype(tensor.Float64))
	copy(l.Parts.Weight.Value.Data().([]float64), []float64{2, 3})
	x := leaf(G.NewGraph(), "x", []float64{1, 1}, 1, 1, 2)
	y, next, err := l.ApplyWithState(x, nil)
	if err != nil {
		t.Fatal(err)
	}
	if next != nil {
		t.Errorf("the context is %v, want none", next)
	}
	sameElements(t, "two channels", run(t, y)[0], silu(2), silu(3))
}

// Two layers of one name in one graph have their own weights; one layer used twice has one set.
func TestLayersOfOneName(t *testing.T) {
	a := NewLinear(LinearConfig{In: 2, Out: 1}, WithName("same"), WithDtype(tensor.Float64), WithSeed(1))
	b := NewLinear(LinearConfig{In: 2, Out: 1}, WithName("same"), WithDtype(tensor.Float64), WithSeed(2))
	copy(a.Weight.Value.Data().([]float64), []float64{1, 2})
	copy(b.Weight.Value.Data().([]float64), []float64{3, 4})
	g := G.NewGraph()
	x := leaf(g, "x", []float64{1, 10}, 1, 1, 2)
	var nodes []*G.Node
	for _, l := range []*Linear{a, b, a} {
		y, err := l.Apply(x)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, y)
	}
	sum := G.Must(G.Sum(G.Must(G.Add(G.Must(G.Add(nodes[0], nodes[1])), nodes[2]))))
	grads, err := G.Grad(sum, a.Weight.Node(g), b.Weight.Node(g))
	if err != nil {
		t.Fatal(err)
	}
	v := run(t, append(nodes, grads...)...)
	for i, want := range [][]float64{{21}, {43}, {21}, {2, 20}, {1, 10}} {
		sameElements(t, fmt.Sprint("value ", i), v[i], want...)
	}
}
