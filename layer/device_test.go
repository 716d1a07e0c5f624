package layer

import (
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// Every layer over time on a device has the results, states and gradients of the host. A layer with a state gives the same for a whole sequence
// with starts as for single steps.
func TestSequenceOnDevice(t *testing.T) {
	const batch, length = 2, 9
	d := gputest.Open(t, cuda.Open)
	host := sequences(tensor.Float32)
	for i, s := range sequences(tensor.Float32, OnDevice(d)) {
		t.Run(s.name, func(t *testing.T) {
			got, want := runBoth(t, s, batch, length), runBoth(t, host[i], batch, length)
			for j := range want {
				if d := apart(got[j], want[j]); !(d <= 1e-4) {
					t.Errorf("value %d is %v apart from the host's", j, d)
				}
			}
			if s.whole {
				return
			}
			starts := []int{0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}
			x := random(rand.New(rand.NewPCG(1, 1)), tensor.Float32, batch, length, s.width)
			g := G.NewGraph()
			in := G.NodeFromAny(g, x, G.WithName("x"))
			y, err := s.apply(in, startNode(g, starts, batch, 0, length))
			if err != nil {
				t.Fatal(err)
			}
			whole := asFloat64(run(t, y)[0])
			each := make([]float64, len(whole))
			states := make(G.Nodes, len(s.shapes(batch)))
			for step := range length {
				g := G.NewGraph()
				for j, n := range states {
					if n != nil {
						states[j] = G.NodeFromAny(g, n.Value(), G.WithName(n.Name()))
					}
				}
				row := make([]float32, 0, batch*s.width)
				for b := range batch {
					row = append(row, x.Data().([]float32)[(b*length+step)*s.width:][:s.width]...)
				}
				piece := G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, 1, s.width), tensor.WithBacking(row)), G.WithName("x"))
				y, next, err := s.step(piece, states, startNode(g, starts, batch, step, step+1))
				if err != nil {
					t.Fatal(err)
				}
				v := run(t, append(G.Nodes{y}, next...)...)
				for b := range batch {
					copy(each[(b*length+step)*s.width:], asFloat64(v[0])[b*s.width:][:s.width])
				}
				g = G.NewGraph()
				for j := range states {
					states[j] = G.NodeFromAny(g, v[1+j], G.WithName("state "+string(rune('a'+j))))
				}
			}
			if d := apart(each, whole); !(d <= 1e-5) {
				t.Errorf("single steps are %v apart from the whole sequence", d)
			}
		})
	}
}

// Layers that are not over time, on a device.
func TestPlainLayersOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for name, build := range map[string]func(opts ...Option) (Params, func(*G.Node) (*G.Node, error)){
		"linear": func(opts ...Option) (Params, func(*G.Node) (*G.Node, error)) {
			l := NewLinear(LinearConfig{In: 6, Out: 5, Bias: true}, opts...)
			return l.Params(), l.Apply
		},
		"convolution": func(opts ...Option) (Params, func(*G.Node) (*G.Node, error)) {
			l := NewConv(ConvConfig{In: 6, Out: 5, Kernel: []int{3}, Padding: []int{1}}, opts...)
			return l.Params(), l.Apply
		},
		"transposed convolution": func(opts ...Option) (Params, func(*G.Node) (*G.Node, error)) {
			l := NewConvTranspose(ConvTransposeConfig{In: 6, Out: 5, Kernel: []int{2}, Stride: []int{2}}, opts...)
			return l.Params(), l.Apply
		},
		"RMS norm": func(opts ...Option) (Params, func(*G.Node) (*G.Node, error)) {
			l := NewRMSNorm(RMSNormConfig{Channels: 6}, opts...)
			return l.Params(), l.Apply
		},
	} {
		var results [2][][]float64
		for i, opts := range [][]Option{{WithSeed(2)}, {WithSeed(2), OnDevice(d)}} {
			params, apply := build(opts...)
			g := G.NewGraph()
			x := G.NodeFromAny(g, random(rand.New(rand.NewPCG(5, 1)), tensor.Float32, 2, 40, 6), G.WithName("x"))
			y, err := apply(x)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			grads, err := G.Grad(G.Must(G.Sum(G.Must(G.HadamardProd(G.Must(G.Square(y)), y)))), append(params.Nodes(g), x)...)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, v := range run(t, append(grads, y)...) {
				results[i] = append(results[i], asFloat64(v))
			}
		}
		for j, want := range results[0] {
			if d := apart(results[1][j], want); !(d <= 1e-5) {
				t.Errorf("%s: value %d is %v apart from the host's", name, j, d)
			}
		}
	}
}
