package nn

import (
	"fmt"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/layer"
)

// TestGradients compares gradients of whole blocks, stacks and language models with finite differences, on both machines: the gradients of
// the input, every weight and the initial state. The loss includes the final state.
func TestGradients(t *testing.T) {
	base := Config{DModel: 3, NLayer: 2, DState: 2, DtRank: 2}
	with := func(f func(*Config)) Config {
		c := base
		f(&c)
		return c
	}
	for _, c := range []struct {
		name, kind   string
		cfg          Config
		state, start bool
	}{
		{"block", "block", base, true, false},
		{"block with starts", "block", base, true, true},
		{"block without state", "block", base, false, false},
		{"block with all biases", "block", with(func(c *Config) { c.Bias = true }), true, false},
		{"block without biases, d_conv 1", "block", with(func(c *Config) { c.NoConvBias, c.DConv = true, 1 }), true, false},
		{"stack", "stack", base, true, false},
		{"stack with starts", "stack", base, true, true},
		{"language model", "LM", base, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkGradients(t, newModel(c.kind, c.cfg, 5, true), c.state, c.start)
		})
	}
}

// The same for stacks of each kind and of several kinds, of which the first has heads.
func TestGradientsOfKinds(t *testing.T) {
	base := Config{DModel: 4, NLayer: 1, DState: 2, DtRank: 2, DConv: 3, Window: 3, DHidden: 3}
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			cfg := base
			cfg.Pattern = []Kind{kind}
			mixesTime := kind != SwiGLU && kind != GeGLU
			checkGradients(t, newModel("stack", cfg, 0, false), mixesTime, mixesTime)
		})
	}
	base.NLayer, base.NHead, base.Pattern = 3, 2, []Kind{H3, Attention, SwiGLU}
	t.Run("several", func(t *testing.T) { checkGradients(t, newModel("LM", base, 5, true), true, false) })
}

func checkGradients(t *testing.T, m model, state, start bool) {
	const batch, length = 2, 5
	r := rand.New(rand.NewPCG(1, 2))
	scramble(m.params, r)
	random := func(shape ...int) *tensor.Dense {
		return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(normal(r, tensor.Shape(shape).TotalSize())))
	}
	var inputs []grad.Input
	if m.vocab > 0 {
		ids := tensor.New(tensor.WithShape(batch, length), tensor.WithBacking([]int{0, 4, 1, 2, 1, 3, 3, 0, 2, 4}))
		inputs = append(inputs, grad.Input{Name: "ids", Value: ids, Constant: true})
	} else {
		inputs = append(inputs, grad.Input{Name: "x", Value: random(batch, length, m.cfg.DModel)})
	}
	if start {
		starts := tensor.New(tensor.WithShape(batch, length), tensor.WithBacking([]int{0, 0, 1, 0, 0, 1, 0, 0, 0, 1}))
		inputs = append(inputs, grad.Input{Name: "start", Value: starts, Constant: true})
	}
	first := len(inputs) // index of the first part of the state
	if state {
		for i, n := range m.zero(G.NewGraph(), batch).Nodes() {
			inputs = append(inputs, grad.Input{Name: fmt.Sprint("state ", i), Value: random(n.Shape()...)})
		}
	}
	for _, p := range m.params {
		inputs = append(inputs, grad.Input{Name: p.Name, Value: p.Value, Node: p.Node})
	}
	f := func(in G.Nodes) (G.Nodes, error) {
		var before State
		if state {
			nodes := in[first:]
			for _, zero := range m.zero(G.NewGraph(), batch) {
				n := len(zero)
				before, nodes = append(before, layer.State(nodes[:n])), nodes[n:]
			}
		}
		var opts []CallOption
		if start {
			opts = append(opts, WithStart(in[1]))
		}
		y, after, err := m.apply(in[0], before, opts...)
		return append(G.Nodes{y}, after.Nodes()...), err
	}
	report := grad.MustCheck(t, f, inputs, grad.Sample(6, 3))
	t.Log(report)
}
