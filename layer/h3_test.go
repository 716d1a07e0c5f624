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
	size, taps, inner := l.width/l.heads, value(l.Shift.Weight), l.Inner.(*S6)
	width := len(taps) / l.width
	for ; len(x) > 0; x = x[l.width:] {
		now := x[:l.width]
		q, k, v := times(value(l.QProj.Weight), now), times(value(l.KProj.Weight), now), times(value(l.VProj.Weight), now)
		keys = append(keys, k...)
		var products []float64
		for i := range l.width {
			var shifted float64
			for tap := range width {
				shifted += taps[i*width+tap] * keys[tap*l.width+i]
			}
			head := i / size
			for j := range size {
				products = append(products, shifted*v[head*size+j])
			}
		}
		keys = keys[l.width:]
		mixed := s6(inner, products, h)
		o := make([]float64, l.width)
		for i, a := range q {
			for j := range size {
				o[i/size*size+j] += a * mixed[i*size+j]
			}
		}
		y = append(y, times(value(l.OutProj.Weight), o)...)
	}
	return y
}

// The layer is its definition, written out; with any number of heads.
func TestH3(t *testing.T) {
	for _, c := range []struct{ width, heads, shift int }{{3, 3, 4}, {4, 2, 3}, {4, 1, 2}, {6, 2, 1}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			l := NewH3(c.width, NewS6, WithDtype(tensor.Float64), WithHeads(c.heads), WithShift(c.shift), WithStateSize(2), WithSeed(5))
			const batch, length = 2, 6
			g, r := G.NewGraph(), rand.New(rand.NewPCG(6, 6))
			x := random(r, tensor.Float64, batch, length, c.width)
			shift, inner := l.StateShapes(batch)
			keys, h := make([]float64, batch*(c.shift-1)*c.width), random(r, tensor.Float64, inner...)
			before := H3State{Inner: G.NodeFromAny(g, h, G.WithName("inner"))}
			if shift != nil {
				for i := range keys {
					keys[i] = r.NormFloat64()
				}
				before.Shift = leaf(g, "shift", keys, shift...)
			}
			y, next, err := l.ApplyWithState(G.NodeFromAny(g, x, G.WithName("x")), before, nil)
			if err != nil {
				t.Fatal(err)
			}
			if (next.Shift == nil) != (c.shift == 1) {
				t.Fatalf("the state of a shift of %d is %v", c.shift, next.Shift)
			}
			v := run(t, y, next.Inner)
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
	l := NewH3(4, NewS6, WithStateSize(2))
	g := G.NewGraph()
	node := func(shape ...int) *G.Node {
		return G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(shape)))
	}
	for _, c := range []struct {
		x     *G.Node
		state H3State
		start *G.Node
		want  string
	}{
		{node(2, 5, 3), H3State{}, nil, "H3: x has shape (2, 5, 3), want (batch, length, width) = (any, any, 4)"},
		{node(5, 4), H3State{}, nil, "H3: x has shape (5, 4), want (batch, length, width) = (any, any, 4)"},
		{G.NewTensor(g, tensor.Float64, 3, G.WithShape(2, 5, 4), G.WithName("x")), H3State{}, nil,
			"H3: x is of float64, want float32 like the weights"},
		{node(2, 5, 4), H3State{Shift: node(2, 4, 4)}, nil,
			"H3: shift: op: causal convolution: Context has shape (2, 4, 4), want (batch, width-1, channels) = (2, 3, 4)"},
		{node(2, 5, 4), H3State{Inner: node(2, 4, 3)}, nil,
			"H3: inner layer: op: selective scan: InitialState has shape (2, 4, 3), want (batch, channels, state) = (2, 4, 2)"},
		{node(2, 5, 4), H3State{}, node(2, 4),
			"H3: shift: op: causal convolution: Start has shape (2, 4), want (batch, length) = (2, 5)"},
	} {
		y, next, err := l.ApplyWithState(c.x, c.state, c.start)
		if err == nil || err.Error() != c.want || y != nil || next != (H3State{}) {
			t.Errorf("%v, %v, error %v, want %s", y, next, err, c.want)
		}
	}
}
