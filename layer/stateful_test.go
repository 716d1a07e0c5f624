package layer

import (
	"math/rand/v2"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// stateful is a layer over time with any number of states, for what holds of all of them.
type stateful struct {
	name   string
	params Params
	width  int
	shapes func(batch int) []tensor.Shape
	apply  func(x, start *G.Node) (*G.Node, error)
	// step continues from states, nil for zeros.
	step func(x *G.Node, states G.Nodes, start *G.Node) (*G.Node, G.Nodes, error)
}

func statefulSequence(name string, width int, l Sequence) stateful {
	return stateful{
		name: name, params: l.Params(), width: width,
		shapes: func(batch int) []tensor.Shape { return []tensor.Shape{l.StateShape(batch)} },
		apply:  l.ApplyStart,
		step: func(x *G.Node, states G.Nodes, start *G.Node) (*G.Node, G.Nodes, error) {
			y, next, err := l.ApplyWithState(x, states[0], start)
			return y, G.Nodes{next}, err
		},
	}
}

func statefulH3(name string, l *H3) stateful {
	pack := func(shift, inner *G.Node) G.Nodes {
		if l.Shift.width == 1 {
			return G.Nodes{inner}
		}
		return G.Nodes{shift, inner}
	}
	return stateful{
		name: name, params: l.Params(), width: l.width,
		shapes: func(batch int) []tensor.Shape {
			shift, inner := l.StateShapes(batch)
			if shift == nil {
				return []tensor.Shape{inner}
			}
			return []tensor.Shape{shift, inner}
		},
		apply: l.ApplyStart,
		step: func(x *G.Node, states G.Nodes, start *G.Node) (*G.Node, G.Nodes, error) {
			before := H3State{Inner: states[len(states)-1]}
			if len(states) == 2 {
				before.Shift = states[0]
			}
			y, next, err := l.ApplyWithState(x, before, start)
			return y, pack(next.Shift, next.Inner), err
		},
	}
}

// sequences are the layers over time, in every form.
func sequences(dt tensor.Dtype) []stateful {
	o := []Option{WithDtype(dt), WithSeed(3), WithStateSize(2)}
	with := func(more ...Option) []Option { return append(slices.Clip(o), more...) }
	all := []stateful{
		statefulSequence("S6", 4, NewS6(4, o...)),
		statefulSequence("S6 of rank 2", 3, NewS6(3, with(WithDtRank(2))...)),
		statefulSequence("S4", 3, NewS4(3, with(WithStateSize(4))...)),
		statefulSequence("S4, real and bilinear", 2, NewS4(2, with(WithA(S4DReal), WithBilinear())...)),
		statefulSequence("LSTM", 3, NewLSTM(3, o...)),
		statefulSequence("attention", 8, NewAttention(8, with(WithHeads(2), WithWindow(4))...)),
		statefulSequence("attention to the step before", 3, NewAttention(3, with(WithHeads(3), WithWindow(2), WithRotary(0), WithBias(true))...)),
		statefulH3("H3", NewH3(3, NewS6, o...)),
		statefulH3("H3 of S4", NewH3(3, NewS4, o...)),
		statefulH3("H3 of two heads", NewH3(4, NewS6, with(WithHeads(2), WithBias(true))...)),
		statefulH3("H3 of one head, no shift", NewH3(2, NewS6, with(WithHeads(1), WithShift(1))...)),
	}
	r := rand.New(rand.NewPCG(7, 8))
	for _, s := range all {
		for _, p := range s.params { // all weights count: D and biases are not special values
			for i := range p.Value.Shape().TotalSize() {
				v := r.NormFloat64() / 2
				if d, ok := p.Value.Data().([]float32); ok {
					d[i] += float32(v)
				} else {
					p.Value.Data().([]float64)[i] += v
				}
			}
		}
	}
	return all
}

func random(r *rand.Rand, dt tensor.Dtype, shape ...int) *tensor.Dense {
	return Options{Dtype: dt}.New(r.NormFloat64, shape...)
}

// apart returns the largest difference, measured against the largest value.
func apart(a, b []float64) float64 {
	if len(a) != len(b) {
		return 1
	}
	var d, size float64
	for i, v := range b {
		d, size = max(d, a[i]-v, v-a[i]), max(size, v, -v)
	}
	if size == 0 {
		return 1
	}
	return d / size
}
