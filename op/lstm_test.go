package op

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestLSTMErrors(t *testing.T) {
	g := G.NewGraph()
	node := func(name string, shape ...int) *G.Node {
		return leaf(g, name, tensor.Float64, shape, make([]float64, tensor.Shape(shape).TotalSize()))
	}
	z, weight := node("Z", 2, 3, 8), node("Weight", 8, 2)
	for want, in := range map[string]LSTMInputs{
		"Z":          {Weight: weight},
		"Z has 7":    {Z: node("odd", 2, 3, 7), Weight: weight},
		"Weight":     {Z: z},
		"Weight has": {Z: z, Weight: node("long", 8, 3)},
		"H has":      {Z: z, Weight: weight, H: node("H", 2, 3), C: node("C", 2, 2)},
		"C has":      {Z: z, Weight: weight, H: node("H", 2, 2), C: node("long C", 1, 2)},
		"Start":      {Z: z, Weight: weight, Start: node("start", 2, 4)},
	} {
		if _, _, _, err := LSTM(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
	if _, _, _, err := LSTM(LSTMInputs{Z: z, Weight: weight}); err != nil {
		t.Error(err)
	}
}
