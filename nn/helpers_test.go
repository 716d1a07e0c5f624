package nn

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// leaf returns an input node of floats.
func leaf(g *G.ExprGraph, name string, dt tensor.Dtype, v []float64, shape ...int) *G.Node {
	value := tensor.New(tensor.WithShape(shape...), tensor.Of(dt))
	assign(value, v)
	return G.NodeFromAny(g, value, G.WithName(name))
}

func normal(r *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = r.NormFloat64()
	}
	return v
}

// dot returns the sum of x's elements times weights, a scalar. As a loss its gradient is the weights.
func dot(x *G.Node, weights []float64) *G.Node {
	w := leaf(x.Graph(), fmt.Sprintf("weights of node %d", x.ID()), x.Dtype(), weights, x.Shape()...)
	return G.Must(G.Sum(G.Must(G.HadamardProd(x, w))))
}

func sum(parts ...*G.Node) *G.Node {
	total := parts[0]
	for _, n := range parts[1:] {
		total = G.Must(G.Add(total, n))
	}
	return total
}

// scramble changes all weights. Their initial values (ones, equal rows, small step sizes) could hide mistakes.
func scramble(params layer.Params, r *rand.Rand) {
	for _, p := range params {
		v := elements(p.Value)
		for i := range v {
			v[i] += 0.3 * r.NormFloat64()
			if strings.HasSuffix(p.Name, "dt_proj.bias") {
				v[i] += 4 // makes Δ about 0.5 instead of 0.01
			}
		}
		assign(p.Value, v)
	}
}

// snapshot returns a copy of the elements of all weights.
func snapshot(params layer.Params) [][]float64 {
	s := make([][]float64, len(params))
	for i, p := range params {
		s[i] = elements(p.Value)
	}
	return s
}

func same(a, b [][]float64) bool {
	return slices.EqualFunc(a, b, func(a, b []float64) bool { return slices.Equal(a, b) })
}

// gradients runs a graph on the tape or the lisp machine and returns the gradient of each of the nodes.
func gradients(g *G.ExprGraph, loss *G.Node, nodes G.Nodes, lisp bool) ([]G.Value, error) {
	values := make([]G.Value, len(nodes))
	if lisp {
		m := G.NewLispMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			return nil, err
		}
		for i, n := range nodes {
			var err error
			if values[i], err = n.Grad(); err != nil {
				return nil, err
			}
		}
		return values, nil
	}
	grads, err := G.Grad(loss, nodes...)
	if err != nil {
		return nil, err
	}
	for i, n := range grads {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	return values, m.RunAll()
}

// forward runs a graph and returns the elements of nodes.
func forward(t testing.TB, nodes ...*G.Node) [][]float64 {
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
	result := make([][]float64, len(nodes))
	for i, v := range values {
		result[i] = elements(v)
	}
	return result
}

// results holds the values that a run computed, by name.
type results map[string][]float64

// near returns an error if a result differs from want by more than tol times its largest magnitude.
func (r results) near(want results, tol float64) error {
	names := slices.Sorted(maps.Keys(want))
	if got := slices.Sorted(maps.Keys(r)); !slices.Equal(got, names) {
		return fmt.Errorf("results %v, want %v", got, names)
	}
	for _, name := range names {
		if len(r[name]) != len(want[name]) {
			return fmt.Errorf("%s has %d elements, want %d", name, len(r[name]), len(want[name]))
		}
		scale := 1e-4 // the tests' numbers are around 1, and much smaller results are rounding errors of zero
		for _, v := range want[name] {
			scale = max(scale, math.Abs(v))
		}
		for i, v := range want[name] {
			if d := math.Abs(r[name][i] - v); !(d <= tol*scale) {
				return fmt.Errorf("%s: element %d is %v, want %v (largest magnitude %g)", name, i, r[name][i], v, scale)
			}
		}
	}
	return nil
}

// steps returns steps [from, to) of v, (batch, length, size).
func steps[T any](v []T, batch, length, from, to, size int) (s []T) {
	for b := range batch {
		s = append(s, v[(b*length+from)*size:(b*length+to)*size]...)
	}
	return s
}

// join concatenates, along the length, pieces that end at the given steps. It is the inverse of steps.
func join(pieces [][]float64, batch, size int, ends []int) (v []float64) {
	for b := range batch {
		for i, from := 0, 0; i < len(ends); i++ {
			n := (ends[i] - from) * size
			v, from = append(v, pieces[i][b*n:(b+1)*n]...), ends[i]
		}
	}
	return v
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
