package op

import (
	"testing"

	G "gorgonia.org/gorgonia"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

func TestLinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length := size(t, "batch", 3), size(t, "length", 4)
		width, out := size(t, "in", 5), size(t, "out", 5)
		x, weight := drawInput(t, "x", batch, length, width), drawInput(t, "weight", out, width)
		u := use{in: []grad.Input{x, weight}}
		u.f = func(in G.Nodes) (G.Nodes, error) { return one(Linear(in[0], in[1], append(in, nil)[2])) }
		bias := make([]float64, out)
		if rapid.Bool().Draw(t, "with bias") {
			b := drawInput(t, "bias", out)
			u.in, bias = append(u.in, b), elements(b.Value)
		}
		var want []float64
		for row := range batch * length {
			for o := range out {
				y := bias[o]
				for i := range width {
					y += elements(x.Value)[row*width+i] * elements(weight.Value)[o*width+i]
				}
				want = append(want, y)
			}
		}
		u.holds(t, want)
	})
}
