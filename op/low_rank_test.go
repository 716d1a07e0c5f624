package op

import (
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

func TestLowRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		out, in, rank := size(t, "out", 5), size(t, "in", 5), size(t, "rank", 4)
		scale := rapid.Float64Range(-3, 3).Draw(t, "scale")
		weight, a, b := drawInput(t, "weight", out, in), drawInput(t, "a", rank, in), drawInput(t, "b", out, rank)
		var want []float64
		for o := range out {
			for i := range in {
				y := elements(weight.Value)[o*in+i]
				for r := range rank {
					y += scale * elements(b.Value)[o*rank+r] * elements(a.Value)[r*in+i]
				}
				want = append(want, y)
			}
		}
		u := use{in: []grad.Input{weight, a, b}}
		u.f = func(in G.Nodes) (G.Nodes, error) { return one(LowRank(in[0], in[1], in[2], scale)) }
		u.holds(t, want)
	})
}

// Two updates of one weight that differ only in their scale are two nodes.
func TestLowRankScales(t *testing.T) {
	g := G.NewGraph()
	w, a, b := leaf(g, "w", f64, []int{1, 1}, []float64{1}), leaf(g, "a", f64, []int{1, 1}, []float64{1}), leaf(g, "b", f64, []int{1, 1}, []float64{1})
	one, two := G.Must(LowRank(w, a, b, 1)), G.Must(LowRank(w, a, b, math.Nextafter(1, 2)))
	if one == two {
		t.Error("scales that differ in the last place give one node")
	}
	if again := G.Must(LowRank(w, a, b, 1)); again != one {
		t.Error("the same update twice is two nodes, want one")
	}
}

func TestLowRankErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	w, a, b := node(f64, 4, 3), node(f64, 2, 3), node(f64, 4, 2)
	for _, test := range []struct {
		w, a, b *G.Node
		scale   float64
		want    string
	}{
		{nil, a, b, 1, "op: low rank: weight is missing"},
		{node(tensor.Int, 4, 3), a, b, 1, "weight is of int, want float32 or float64"},
		{node(f64, 4), a, b, 1, "weight has shape (4), want (out, in)"},
		{w, nil, b, 1, "a is missing, want a node of shape (rank, in)"},
		{w, node(f64, 2, 4), b, 1, "a has shape (2, 4), want (rank, in) = (any, 3)"},
		{w, node(f32, 2, 3), b, 1, "a is of float32, want float64 like the other operands"},
		{w, a, node(f64, 4, 3), 1, "b has shape (4, 3), want (out, rank) = (4, 2)"},
		{w, a, nil, 1, "b is missing, want a node of shape (out, rank)"},
		{w, a, b, math.NaN(), "scale is NaN, want a finite number"},
		{w, a, b, math.Inf(-1), "scale is -Inf, want a finite number"},
	} {
		if _, err := LowRank(test.w, test.a, test.b, test.scale); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
}
