package layer

import (
	"math/rand/v2"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
)

// stateful is a layer over time with any number of states, for what holds of all of them.
type stateful struct {
	name   string
	params Params
	width  int
	whole  bool // it takes whole sequences only
	shapes func(batch int) []tensor.Shape
	apply  func(x, start *G.Node) (*G.Node, error)
	// step continues from states, nil for zeros.
	step func(x *G.Node, states G.Nodes, start *G.Node) (*G.Node, G.Nodes, error)
}

func statefulOf(name string, width int, l Mixer) stateful {
	return stateful{
		name: name, params: l.Params(), width: width,
		shapes: func(batch int) (shapes []tensor.Shape) {
			for _, slot := range l.Slots() {
				shapes = append(shapes, append(tensor.Shape{batch}, slot.Shape...))
			}
			return shapes
		},
		apply: func(x, start *G.Node) (*G.Node, error) { return l.Apply(x, WithStart(start)) },
		step: func(x *G.Node, states G.Nodes, start *G.Node) (*G.Node, G.Nodes, error) {
			y, next, err := l.ApplyWithState(x, State(states), WithStart(start))
			return y, G.Nodes(next), err
		},
	}
}

// sequences are the layers over time, in every form.
func sequences(dt tensor.Dtype, more ...Option) []stateful {
	o := append([]Option{WithDtype(dt), WithSeed(3)}, more...)
	s6 := S6Config{State: 2}
	all := []stateful{
		statefulOf("S6", 4, NewS6(S6Config{Channels: 4, State: 2}, o...)),
		statefulOf("S6 of rank 2", 3, NewS6(S6Config{Channels: 3, State: 2, Rank: 2}, o...)),
		statefulOf("S4", 3, NewS4(S4Config{Channels: 3, State: 4}, o...)),
		statefulOf("S4, real and bilinear", 2, NewS4(S4Config{Channels: 2, State: 2, A: S4DReal, Bilinear: true}, o...)),
		statefulOf("LSTM", 3, NewLSTM(LSTMConfig{Channels: 3}, o...)),
		statefulOf("attention", 8, NewAttention(AttentionConfig{Channels: 8, Heads: 2, Window: 4}, o...)),
		statefulOf("attention to the step before", 3, NewAttention(AttentionConfig{Channels: 3, Heads: 3, Window: 2, NoRotary: true, Bias: true}, o...)),
		statefulOf("convolution", 3, NewConv1D(Conv1DConfig{Channels: 3, Width: 3}, o...)),
		statefulOf("convolution of width 1", 3, NewConv1D(Conv1DConfig{Channels: 3, Width: 1, NoSiLU: true}, o...)),
		statefulOf("gated MLP", 3, NewGatedMLP(GatedMLPConfig{Channels: 3, Hidden: 4, Bias: true}, o...)),
		statefulOf("H3", 3, NewH3(H3Config{Channels: 3, Inner: s6}, o...)),
		statefulOf("H3 of S4", 3, NewH3(H3Config{Channels: 3, Inner: S4Config{State: 2}}, o...)),
		statefulOf("H3 of two heads", 4, NewH3(H3Config{Channels: 4, Inner: s6, Heads: 2, Bias: true}, o...)),
		statefulOf("H3 of one head, no shift", 2, NewH3(H3Config{Channels: 2, Inner: s6, Heads: 1, Shift: 1}, o...)),
		statefulOf("H3 of an LSTM", 2, NewH3(H3Config{Channels: 2, Inner: LSTMConfig{}}, o...)),
		statefulOf("Mamba", 3, NewMamba(MambaConfig{Channels: 3, State: 2, Width: 3, Bias: true}, o...)),
		statefulOf("Mamba of S4, no width", 2, NewMamba(MambaConfig{Channels: 2, Inner: 3, State: 2, Width: 1, NoConvBias: true, S4: true}, o...)),
	}
	all = append(all, reversed(o)...)
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
		s.params.ValuesChanged()
	}
	return all
}

// reversed are the layers that read a sequence from its end. They have no state, and take whole sequences only.
func reversed(o []Option) []stateful {
	all := []stateful{
		statefulOf("S6 from the end", 4, NewS6(S6Config{Channels: 4, State: 2, Reverse: true}, o...)),
		statefulOf("convolution from the end", 3, NewConv1D(Conv1DConfig{Channels: 3, Width: 3, Reverse: true}, o...)),
		statefulOf("Mamba from the end", 3, NewMamba(MambaConfig{Channels: 3, State: 2, Width: 3, Reverse: true}, o...)),
		statefulOf("Mamba in both directions", 3, NewMamba(MambaConfig{Channels: 3, State: 2, Width: 3, Bidirectional: true}, o...)),
		statefulOf("Mamba in both directions with a scale", 3, NewMamba(MambaConfig{Channels: 3, State: 2, Width: 2, Bidirectional: true, Average: true, LayerScale: 0.7}, o...)),
	}
	for i, s := range all {
		all[i].whole = true
		all[i].step = func(x *G.Node, _ G.Nodes, start *G.Node) (*G.Node, G.Nodes, error) {
			y, err := s.apply(x, start)
			return y, nil, err
		}
	}
	return all
}

func random(r *rand.Rand, dt tensor.Dtype, shape ...int) *tensor.Dense {
	return build.Options{Dtype: dt}.New(r.NormFloat64, shape...)
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
