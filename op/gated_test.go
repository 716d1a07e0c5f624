package op

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestGateErrors(t *testing.T) {
	g := G.NewGraph()
	node, good := unbound(g), unbound(g)(f64, 2, 5, 6)
	for _, test := range []struct {
		gate, x *G.Node
		f       Activation
		want    string
	}{
		{nil, good, SiLU, "gate is missing"},
		{node(f64, 6), good, SiLU, "gate has shape (6), want (batch, …, channels)"},
		{node(tensor.Int, 2, 5, 6), good, SiLU, "gate is of int, want float32 or float64"},
		{good, nil, SiLU, "x is missing"},
		{good, node(f64, 2, 5, 7), SiLU, "x has shape (2, 5, 7), want (batch, …, channels) = (2, 5, 6)"},
		{good, node(f64, 5, 6), GELU, "x has shape (5, 6), want (batch, …, channels) = (2, 5, 6)"},
		{good, node(f64, 1, 5, 6), GELU, "x has shape (1, 5, 6), want (batch, …, channels) = (2, 5, 6)"},
		{good, node(f32, 2, 5, 6), GELU, "x is of float32, want float64 like the other operands"},
		{good, unbound(G.NewGraph())(f64, 2, 5, 6), SiLU, "x belongs to another graph than the other operands"},
		{good, node(f64, 2, 5, 6), 5, "the activation is 5, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU"},
		{good, node(f64, 2, 5, 6), -1, "the activation is -1, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU"},
	} {
		y, err := Gate(test.gate, test.x, test.f)
		if want := "op: gate: " + test.want; y != nil || err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	for _, f := range []Activation{SiLU, GELU, ReLU, Sigmoid, LeakyReLU} {
		if _, err := Gate(good, node(f64, 2, 5, 6), f); err != nil {
			t.Errorf("%v: %v", f, err)
		}
	}
}

func TestActivateErrors(t *testing.T) {
	node := unbound(G.NewGraph())
	for _, test := range []struct {
		x    *G.Node
		f    Activation
		want string
	}{
		{nil, SiLU, "x is missing"},
		{node(f64, 6), SiLU, "x has shape (6), want (batch, …, channels)"},
		{node(f64, 2, 5, 6), 5, "the activation is 5, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU"},
		{node(f64, 2, 5, 6), -1, "the activation is -1, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU"},
	} {
		y, err := Activate(test.x, test.f)
		if want := "op: activation: " + test.want; y != nil || err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
