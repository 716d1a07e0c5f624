package layer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/benchtest"
)

// everyS4 are the kinds of S4.
var everyS4 = map[string]S4Config{
	"S4D-Lin": {State: 8}, "S4D-Inv": {State: 8, A: S4DInv}, "S4D-Real": {State: 5, A: S4DReal},
	"S4D-LegS": {State: 8, A: S4DLegS}, "bilinear": {State: 8, Bilinear: true},
}

func normals(seed uint64, n int) []float64 {
	r, v := rand.New(rand.NewPCG(seed, 1)), make([]float64, n)
	for i := range v {
		v[i] = r.NormFloat64()
	}
	return v
}

// results returns y and the gradients by x and by all weights of the sum of dy·y.
func s4Results(t *testing.T, l *S4, x, dy []float64, batch int, apply func(x *G.Node) (*G.Node, error)) map[string][]float64 {
	t.Helper()
	g := G.NewGraph()
	length := len(x) / batch / l.Parts.channels
	in := leaf(g, "x", x, batch, length, l.Parts.channels)
	y, err := apply(in)
	if err != nil {
		t.Fatal(err)
	}
	loss := G.Must(G.Sum(G.Must(G.HadamardProd(y, leaf(g, "dy", dy, batch, length, l.Parts.channels)))))
	grads, err := G.Grad(loss, append(G.Nodes{in}, l.Params().Nodes(g)...)...)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"y", "x"}
	for _, p := range l.Params() {
		names = append(names, p.Name)
	}
	all := make(map[string][]float64)
	for i, v := range run(t, append(G.Nodes{y}, grads...)...) {
		all[names[i]] = slices.Clone(v.Data().([]float64))
	}
	return all
}

// The convolution of a layer and its recurrence are one function, gradients included.
func TestS4ConvolutionIsRecurrence(t *testing.T) {
	for name, cfg := range everyS4 {
		for _, length := range []int{1, 2, 255, 4096} {
			const batch = 2
			cfg.Channels = 2
			l := NewS4(cfg, WithDtype(tensor.Float64), WithSeed(3))
			x, dy := normals(1, batch*length*2), normals(2, batch*length*2)
			want := s4Results(t, l, x, dy, batch, func(x *G.Node) (*G.Node, error) { return l.Apply(x) })
			got := s4Results(t, l, x, dy, batch, func(x *G.Node) (*G.Node, error) {
				y, _, err := l.ApplyWithState(x, nil)
				return y, err
			})
			for of, w := range want {
				if d := apart(got[of], w); !(d <= 1e-9) {
					t.Errorf("%s, %d steps: %s by recurrence is %g apart", name, length, of, d)
				}
			}
		}
	}
}

func TestS4Weights(t *testing.T) {
	l := NewS4(S4Config{Channels: 3}, WithName("s4"))
	var s []string
	for _, p := range l.Params() {
		s = append(s, fmt.Sprintf("%s%v%t", p.Name, p.Value.Shape(), p.Decay))
	}
	want := "s4.log_dt(3)false s4.log_A_real(3, 32)false s4.A_imag(3, 32)false s4.C(3, 64)false s4.D(3)false"
	if got := strings.Join(s, " "); got != want {
		t.Errorf("weights are %s, want %s", got, want)
	}
	l = NewS4(S4Config{Channels: 3, A: S4DReal, State: 5})
	if l.Parts.Frequency != nil || l.Parts.C.Value.Shape()[1] != 5 || len(l.Params()) != 4 {
		t.Errorf("real modes have weights %v", l.Params())
	}
}

func TestS4Errors(t *testing.T) {
	l := NewS4(S4Config{Channels: 2, State: 4}, WithDtype(tensor.Float64))
	g := G.NewGraph()
	x := leaf(g, "x", make([]float64, 6), 1, 3, 2)
	for _, c := range []struct {
		x     *G.Node
		state State
		start *G.Node
		want  string
	}{
		{nil, nil, nil, "S4: the input is missing, want a node"},
		{leaf(g, "wide", make([]float64, 9), 1, 3, 3), nil, nil,
			"S4: x has shape (1, 3, 3), want (batch, length, channels) = (any, any, 2)"},
		{x, State{leaf(g, "state", make([]float64, 4), 1, 2, 2)}, nil,
			"S4: the state scan has shape (1, 2, 2), want (1, 2, 4)"},
		{x, nil, leaf(g, "start", make([]float64, 4), 1, 4), "S4: start has shape (1, 4), want (batch, length) = (1, 3)"},
	} {
		if _, _, err := l.ApplyWithState(c.x, c.state, WithStart(c.start)); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
	}
}

// A training step's two passes by either way, against the length.
func BenchmarkS4(b *testing.B) {
	const batch, channels = 4, 64
	for _, length := range []int{256, 1024, 4096} {
		if testing.Short() && length > 256 {
			continue
		}
		for _, way := range []string{"convolution", "recurrence"} {
			b.Run(fmt.Sprintf("%s/B=%d/L=%d/D=%d/N=64", way, batch, length, channels), func(b *testing.B) {
				l, g := NewS4(S4Config{Channels: channels}), G.NewGraph()
				x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(batch, length, channels), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
				y, err := l.Apply(x)
				if way == "recurrence" {
					y, _, err = l.ApplyWithState(x, nil)
				}
				if err != nil {
					b.Fatal(err)
				}
				if _, err := G.Grad(G.Must(G.Sum(y)), append(G.Nodes{x}, l.Params().Nodes(g)...)...); err != nil {
					b.Fatal(err)
				}
				m := G.NewTapeMachine(g)
				defer m.Close()
				b.ReportAllocs()
				benchtest.Processors(b)
				for b.Loop() {
					m.Reset()
					if err := m.RunAll(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch*length*channels), "ns/td")
			})
		}
	}
}
