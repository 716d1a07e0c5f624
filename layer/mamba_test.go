package layer

import (
	"math/rand/v2"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// A layer that reads from the end is the same layer between two reverses, of packed sequences too. One in both directions is the sum of one
// in each direction that share in_proj and out_proj.
func TestReversedLayers(t *testing.T) {
	const batch, length, channels = 2, 6, 4
	o := []Option{WithDtype(tensor.Float64), WithSeed(1)}
	mamba := MambaConfig{Channels: channels, State: 2, Width: 3}
	for name, make := range map[string]func(reverse bool) Mixer{
		"convolution": func(r bool) Mixer { return NewConv1D(Conv1DConfig{Channels: channels, Width: 3, Reverse: r}, o...) },
		"S6":          func(r bool) Mixer { return NewS6(S6Config{Channels: channels, State: 2, Reverse: r}, o...) },
		"Mamba":       func(r bool) Mixer { m := mamba; m.Reverse = r; return NewMamba(m, o...) },
	} {
		for _, starts := range [][]int{nil, {0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1}} {
			layers, g := [2]Mixer{make(false), make(true)}, G.NewGraph()
			x := G.NodeFromAny(g, random(rand.New(rand.NewPCG(1, 2)), tensor.Float64, batch, length, channels), G.WithName("x"))
			start := startNode(g, starts, batch, 0, length)
			must := func(n *G.Node, err error) *G.Node {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			forward := must(layers[0].Apply(must(op.Reverse(x, start)), WithStart(start)))
			v := run(t, must(layers[1].Apply(x, WithStart(start))), must(op.Reverse(forward, start)), must(layers[0].Apply(x, WithStart(start))))
			if d := apart(asFloat64(v[0]), asFloat64(v[1])); !(d <= 1e-12) {
				t.Errorf("%s, starts %v: %v apart from the layer between two reverses", name, starts, d)
			}
			if d := apart(asFloat64(v[0]), asFloat64(v[2])); d < 1e-3 {
				t.Errorf("%s, starts %v: the direction makes no difference", name, starts)
			}
			if name != "Mamba" {
				continue
			}
			both := mamba
			both.Bidirectional = true
			b, f, r := NewMamba(both, o...), layers[0].(*Mamba), layers[1].(*Mamba)
			f.Parts.InProj, f.Parts.OutProj, r.Parts.InProj, r.Parts.OutProj = b.Parts.InProj, b.Parts.OutProj, b.Parts.InProj, b.Parts.OutProj
			f.Parts.Conv, f.Parts.S6 = b.Parts.Conv, b.Parts.S6
			for i, p := range append(b.Parts.ConvB.Params(), b.Parts.S6B.Params()...) {
				if err := tensor.Copy(append(r.Parts.Conv.Params(), r.Parts.S6.Params()...)[i].Value, p.Value); err != nil {
					t.Fatal(err)
				}
			}
			sum := must(op.Add(must(f.Apply(x, WithStart(start))), must(r.Apply(x, WithStart(start)))))
			v = run(t, must(b.Apply(x, WithStart(start))), sum)
			if d := apart(asFloat64(v[0]), asFloat64(v[1])); !(d <= 1e-12) {
				t.Errorf("both directions, starts %v: %v apart from the sum of each", starts, d)
			}
		}
	}
	for _, l := range []Mixer{NewMamba(MambaConfig{Channels: 2, Reverse: true}), NewMamba(MambaConfig{Channels: 2, Bidirectional: true})} {
		x := G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(1, 2, 2), G.WithName("x"))
		if _, _, err := l.ApplyWithState(x, nil); err == nil || !strings.Contains(err.Error(), "reads a sequence from its end has no state") || l.Slots() != nil {
			t.Errorf("with a state: error %v, slots %v", err, l.Slots())
		}
	}
}
