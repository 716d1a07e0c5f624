package layer

import (
	"fmt"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// h3 is the layer written out as loops over one sequence x (length, width): keys is the shift's state, the oldest first, and h
// that of the S6 inside.
func h3(l *H3, x, keys, h []float64) (y []float64) {
	value := func(p *Param) []float64 { return p.Value.Data().([]float64) }
	size, taps, inner := l.Parts.channels/l.Parts.heads, value(l.Parts.Shift.Parts.Weight), l.Parts.Inner.(*S6)
	width := len(taps) / l.Parts.channels
	for ; len(x) > 0; x = x[l.Parts.channels:] {
		now := x[:l.Parts.channels]
		q, k, v := times(value(l.Parts.QProj.Weight), now), times(value(l.Parts.KProj.Weight), now), times(value(l.Parts.VProj.Weight), now)
		keys = append(keys, k...)
		var products []float64
		for i := range l.Parts.channels {
			var shifted float64
			for tap := range width {
				shifted += taps[i*width+tap] * keys[tap*l.Parts.channels+i]
			}
			head := i / size
			for j := range size {
				products = append(products, shifted*v[head*size+j])
			}
		}
		keys = keys[l.Parts.channels:]
		mixed := s6(inner, products, h)
		o := make([]float64, l.Parts.channels)
		for i, a := range q {
			for j := range size {
				o[i/size*size+j] += a * mixed[i*size+j]
			}
		}
		y = append(y, times(value(l.Parts.OutProj.Weight), o)...)
	}
	return y
}

// The layer is its definition, written out; with any number of heads.
func TestH3(t *testing.T) {
	for _, c := range []struct{ width, heads, shift int }{{3, 3, 4}, {4, 2, 3}, {4, 1, 2}, {6, 2, 1}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			l := NewH3(H3Config{Channels: c.width, Inner: S6Config{State: 2}, Heads: c.heads, Shift: c.shift}, WithDtype(tensor.Float64), WithSeed(5))
			const batch, length = 2, 6
			g, r := G.NewGraph(), rand.New(rand.NewPCG(6, 6))
			x := random(r, tensor.Float64, batch, length, c.width)
			keys, h := make([]float64, batch*(c.shift-1)*c.width), random(r, tensor.Float64, append([]int{batch}, l.Parts.Inner.Slots()[0].Shape...)...)
			var before State
			if c.shift > 1 {
				for i := range keys {
					keys[i] = r.NormFloat64()
				}
				before = State{leaf(g, "shift", keys, batch, c.shift-1, c.width)}
			}
			before = append(before, G.NodeFromAny(g, h, G.WithName("inner")))
			y, next, err := l.ApplyWithState(G.NodeFromAny(g, x, G.WithName("x")), before)
			if err != nil {
				t.Fatal(err)
			}
			if len(next) != len(l.Slots()) || (len(next) == 1) != (c.shift == 1) {
				t.Fatalf("the state of a shift of %d has %d nodes, and the slots are %v", c.shift, len(next), l.Slots())
			}
			v := run(t, y, next[len(next)-1])
			for b := range batch {
				part := func(s []float64) []float64 { n := len(s) / batch; return append([]float64(nil), s[b*n:(b+1)*n]...) }
				state := part(asFloat64(h))
				want := h3(l, part(asFloat64(x)), part(keys), state)
				if d := apart(part(asFloat64(v[0])), want); !(d <= 1e-12) {
					t.Errorf("sequence %d is %v apart from the loops", b, d)
				}
				if d := apart(part(asFloat64(v[1])), state); !(d <= 1e-12) {
					t.Errorf("state %d is %v apart from that of the loops", b, d)
				}
			}
		})
	}
}

// What does not fit is an error that names it.
func TestH3Errors(t *testing.T) {
	l := NewH3(H3Config{Channels: 4, Inner: S6Config{State: 2}})
	g := G.NewGraph()
	node := func(shape ...int) *G.Node {
		return G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(shape)))
	}
	for _, c := range []struct {
		x     *G.Node
		state State
		start *G.Node
		want  string
	}{
		{node(2, 5, 3), nil, nil, "H3: x has shape (2, 5, 3), want (batch, length, channels) = (any, any, 4)"},
		{node(5, 4), nil, nil, "H3: x has shape (5, 4), want (batch, length, channels) = (any, any, 4)"},
		{G.NewTensor(g, tensor.Float64, 3, G.WithShape(2, 5, 4), G.WithName("x")), nil, nil,
			"H3: x is of float64, want float32 like the weights"},
		{node(2, 5, 4), State{node(2, 4, 4), nil}, nil,
			"H3: the state shift has shape (2, 4, 4), want (2, 3, 4)"},
		{node(2, 5, 4), State{nil, node(2, 4, 3)}, nil,
			"H3: the state inner.scan has shape (2, 4, 3), want (2, 4, 2)"},
		{node(2, 5, 4), nil, node(2, 4),
			"H3: start has shape (2, 4), want (batch, length) = (2, 5)"},
		{node(2, 5, 4), State{nil}, nil, "H3: the state has 1 nodes, want 2, for shift, inner.scan"},
		{node(2, 5, 4), State{nil, G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(2, 4, 2), G.WithName("h"))}, nil,
			"H3: the state inner.scan belongs to another graph than x"},
		{node(2, 5, 4), State{G.NewTensor(g, tensor.Float64, 3, G.WithShape(2, 3, 4), G.WithName("k")), nil}, nil,
			"H3: the state shift is of float64, want float32 like x"},
	} {
		y, next, err := l.ApplyWithState(c.x, c.state, WithStart(c.start))
		if err == nil || err.Error() != c.want || y != nil || next != nil {
			t.Errorf("%v, %v, error %v, want %s", y, next, err, c.want)
		}
	}
}
