package op

import (
	"fmt"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestCausalConvErrors(t *testing.T) {
	g := G.NewGraph()
	node := func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
	f64, f32 := tensor.Float64, tensor.Float32
	for _, test := range []struct {
		change func(in *CausalConvInputs)
		want   string
	}{
		{func(in *CausalConvInputs) { in.X = nil }, "X is missing"},
		{func(in *CausalConvInputs) { in.X = node(tensor.Int, 2, 5, 3) }, "X is of int, want float32 or float64"},
		{func(in *CausalConvInputs) { in.X = node(f64, 2, 5) }, "X has shape (2, 5), want (batch, length, channels)"},
		{func(in *CausalConvInputs) { in.Weight = nil }, "Weight is missing, want a node of shape (channels, 1, width)"},
		{func(in *CausalConvInputs) { in.Weight = node(f32, 3, 1, 4) }, "Weight is of float32, want float64 like the other operands"},
		{func(in *CausalConvInputs) { in.Weight = node(f64, 4, 1, 4) },
			"Weight has shape (4, 1, 4), want (channels, 1, width) = (3, 1, any)"},
		{func(in *CausalConvInputs) { in.Weight = node(f64, 3, 4) }, "Weight has shape (3, 4), want (channels, 1, width) = (3, 1, any)"},
		{func(in *CausalConvInputs) { in.Weight = node(f64, 3, 3, 4) },
			"Weight has shape (3, 3, 4), want (channels, 1, width) = (3, 1, any)"},
		{func(in *CausalConvInputs) { in.Bias = node(f64, 2) }, "Bias has shape (2), want (channels) = (3)"},
		{func(in *CausalConvInputs) { in.Bias = node(f32, 3) }, "Bias is of float32, want float64 like the other operands"},
		{func(in *CausalConvInputs) { in.Context = node(f64, 2, 4, 3) },
			"Context has shape (2, 4, 3), want (batch, width-1, channels) = (2, 3, 3)"},
		{func(in *CausalConvInputs) { in.Weight, in.Context = node(f64, 3, 1, 1), node(f64, 2, 1, 3) },
			"Context has shape (2, 1, 3), want none: a width of 1 reads no earlier step"},
		{func(in *CausalConvInputs) { in.Start = node(f64, 2, 4) }, "Start has shape (2, 4), want (batch, length) = (2, 5)"},
		{func(in *CausalConvInputs) { in.Start = node(tensor.Bool, 2, 5) }, "Start is of bool, want float32, float64 or int"},
		{func(in *CausalConvInputs) {
			in.Bias = G.NewTensor(G.NewGraph(), f64, 1, G.WithShape(3), G.WithName("elsewhere"))
		}, "Bias belongs to another graph than the other operands"},
	} {
		in := CausalConvInputs{X: node(f64, 2, 5, 3), Weight: node(f64, 3, 1, 4)}
		test.change(&in)
		_, err := CausalConv(in, CausalConvConfig{})
		if want := "op: causal convolution: " + test.want; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
		if _, _, again := CausalConvWithContext(in, CausalConvConfig{}); again == nil || again.Error() != err.Error() {
			t.Errorf("with context: error %v, want %v", again, err)
		}
	}
}
