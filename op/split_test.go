package op

import (
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length := size(t, "batch", 3), size(t, "length", 4)
		sizes := rapid.SliceOfN(rapid.IntRange(1, 4), 1, 4).Draw(t, "sizes")
		width := 0
		for _, n := range sizes {
			width += n
		}
		x := drawInput(t, "x", batch, length, width)
		want := make([][]float64, len(sizes))
		for row := range batch * length {
			from := row * width
			for i, n := range sizes {
				want[i] = append(want[i], elements(x.Value)[from:from+n]...)
				from += n
			}
		}
		use{f: func(in G.Nodes) (G.Nodes, error) { return Split(in[0], sizes...) }, in: []grad.Input{x}}.holds(t, want...)
	})
}

// A part that is not used has no gradient, and the gradients of the other parts are in the right columns.
func TestSplitUnusedPart(t *testing.T) {
	for _, lisp := range []bool{false, true} {
		g := G.NewGraph()
		x := leaf(g, "x", tensor.Float64, []int{1, 2, 3}, make([]float64, 6))
		parts, err := Split(x, 1, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		loss := plus(dot(parts[0], []float64{1, 2}), dot(parts[2], []float64{3, 4}))
		got := map[string]G.Value{}
		if lisp { // the lisp machine runs every root of a graph, so the unused part must not be a root
			loss = plus(loss, dot(parts[1], []float64{0, 0}))
		}
		if err := runGradients(g, loss, map[string]*G.Node{"x": x}, lisp, got); err != nil {
			t.Fatal(err)
		}
		if e := elements(got["x"]); !slices.Equal(e, []float64{1, 0, 3, 2, 0, 4}) {
			t.Errorf("lisp machine %t: gradient %v", lisp, e)
		}
	}
}
