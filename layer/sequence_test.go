package layer

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// Whole sequences, pieces, and steps one at a time are one function; also where sequences start on the way.
func TestSequencePieces(t *testing.T) {
	const batch, length = 2, 7
	for _, s := range sequences(tensor.Float64) {
		t.Run(s.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 1))
			x := random(r, tensor.Float64, batch, length, s.width)
			for _, starts := range [][]int{nil, {0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0}} {
				g := G.NewGraph()
				y, err := s.apply(G.NodeFromAny(g, x, G.WithName("x")), startNode(g, starts, batch, 0, length))
				if err != nil {
					t.Fatal(err)
				}
				want := run(t, y)[0].Data().([]float64)
				for _, cuts := range [][]int{{0, length}, {0, 1, 3, length}, {0, 1, 2, 3, 4, 5, 6, length}} {
					if s.whole && len(cuts) > 2 {
						continue
					}
					got := pieces(t, s, x, starts, cuts)
					if d := apart(got, want); !(d <= 1e-12) {
						t.Errorf("pieces at %v, starts %v: %v apart", cuts, starts, d)
					}
				}
			}
		})
	}
}

// pieces applies a layer to pieces of x, each from the state after the one before.
func pieces(t *testing.T, s stateful, x *tensor.Dense, starts, cuts []int) []float64 {
	t.Helper()
	batch, length := x.Shape()[0], x.Shape()[1]
	y := make([]float64, x.Shape().TotalSize())
	g := G.NewGraph()
	states := make(G.Nodes, len(s.shapes(batch)))
	for i, from := range cuts[:len(cuts)-1] {
		to := cuts[i+1]
		piece := make([]float64, 0, batch*(to-from)*s.width)
		for b := range batch {
			piece = append(piece, x.Data().([]float64)[(b*length+from)*s.width:(b*length+to)*s.width]...)
		}
		out, next, err := s.step(leaf(g, "piece", piece, batch, to-from, s.width), states, startNode(g, starts, batch, from, to))
		if err != nil {
			t.Fatal(err)
		}
		v := run(t, append(G.Nodes{out}, next...)...)
		for b := range batch {
			n := (to - from) * s.width
			copy(y[(b*length+from)*s.width:], v[0].Data().([]float64)[b*n:(b+1)*n])
		}
		g = G.NewGraph()
		for j, shape := range s.shapes(batch) {
			if !v[1+j].Shape().Eq(shape) {
				t.Fatalf("state %d has shape %v, want %v", j, v[1+j].Shape(), shape)
			}
			states[j] = G.NodeFromAny(g, v[1+j], G.WithName(fmt.Sprint("state ", j)))
		}
	}
	return y
}

// startNode returns the steps [from, to) of starts (batch, length), nil for nil.
func startNode(g *G.ExprGraph, starts []int, batch, from, to int) *G.Node {
	if starts == nil {
		return nil
	}
	var v []int
	for b := range batch {
		row := starts[b*len(starts)/batch:]
		v = append(v, row[from:to]...)
	}
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, to-from), tensor.WithBacking(v)), G.WithName("start"))
}

// What starts on the way sees nothing of what came before, not even of the state that comes in.
func TestSequenceStarts(t *testing.T) {
	const batch, length = 2, 6
	starts := []int{1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1}
	for _, s := range sequences(tensor.Float64) {
		g, r := G.NewGraph(), rand.New(rand.NewPCG(3, 3))
		x := random(r, tensor.Float64, batch, length, s.width)
		var states G.Nodes
		for i, shape := range s.shapes(batch) {
			states = append(states, G.NodeFromAny(g, random(r, tensor.Float64, shape...), G.WithName(fmt.Sprint("state ", i))))
		}
		y, _, err := s.step(G.NodeFromAny(g, x, G.WithName("x")), states, startNode(g, starts, batch, 0, length))
		if err != nil {
			t.Fatal(err)
		}
		packed := asFloat64(run(t, y)[0])
		for from := 0; from < batch*length; {
			to := from + 1
			for to < batch*length && starts[to] == 0 {
				to++
			}
			part := x.Data().([]float64)[from*s.width : to*s.width]
			y, err := s.apply(leaf(G.NewGraph(), "x", part, 1, to-from, s.width), nil)
			if err != nil {
				t.Fatal(err)
			}
			if d := apart(packed[from*s.width:to*s.width], asFloat64(run(t, y)[0])); !(d <= 1e-12) {
				t.Errorf("%s: steps %d to %d are %v apart from the same alone", s.name, from, to, d)
			}
			from = to
		}
	}
}

// The gradients of the input, the states and all weights, with the states after in the loss.
func TestSequenceGradients(t *testing.T) {
	const batch, length = 2, 4
	for _, s := range sequences(tensor.Float64) {
		t.Run(s.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(2, 2))
			start := tensor.New(tensor.WithShape(batch, length), tensor.WithBacking([]int{0, 0, 1, 0, 0, 0, 0, 0}))
			inputs := []grad.Input{
				{Name: "x", Value: random(r, tensor.Float64, batch, length, s.width)},
				{Name: "start", Value: start, Constant: true},
			}
			for i, shape := range s.shapes(batch) {
				inputs = append(inputs, grad.Input{Name: fmt.Sprint("state ", i), Value: random(r, tensor.Float64, shape...)})
			}
			states := len(inputs)
			for _, p := range s.params {
				inputs = append(inputs, grad.Input{Name: p.Name, Value: p.Value, Node: p.Node})
			}
			f := func(in G.Nodes) (G.Nodes, error) {
				y, next, err := s.step(in[0], in[2:states], in[1])
				return append(G.Nodes{y}, next...), err
			}
			if _, err := grad.Check(f, inputs); err != nil {
				t.Error(err)
			}
		})
	}
}

// float32 is float64 to within its rounding.
func TestSequenceTypes(t *testing.T) {
	const batch, length = 2, 9
	wide := sequences(tensor.Float64)
	for i, narrow := range sequences(tensor.Float32) {
		y, exact := runBoth(t, narrow, batch, length), runBoth(t, wide[i], batch, length)
		for j := range exact {
			if d := apart(y[j], exact[j]); !(d <= 1e-5) {
				t.Errorf("%s: value %d is %v apart", narrow.name, j, d)
			}
		}
	}
}

// runBoth returns the result, the states, and the gradients of the weights, of random values that do not depend on the type.
func runBoth(t *testing.T, s stateful, batch, length int) (all [][]float64) {
	t.Helper()
	g, dt, r := G.NewGraph(), s.params[0].Value.Dtype(), rand.New(rand.NewPCG(4, 4))
	x := G.NodeFromAny(g, random(r, dt, batch, length, s.width), G.WithName("x"))
	var states G.Nodes
	for i, shape := range s.shapes(batch) {
		states = append(states, G.NodeFromAny(g, random(r, dt, shape...), G.WithName(fmt.Sprint("state ", i))))
	}
	y, next, err := s.step(x, states, nil)
	if err != nil {
		t.Fatal(err)
	}
	nodes := append(G.Nodes{y}, next...)
	loss := G.Must(G.Sum(G.Must(G.Square(y))))
	for _, n := range next {
		loss = G.Must(G.Add(loss, G.Must(G.Sum(G.Must(G.Square(n))))))
	}
	grads, err := G.Grad(loss, append(append(G.Nodes{x}, states...), s.params.Nodes(g)...)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range run(t, append(nodes, grads...)...) {
		all = append(all, asFloat64(v))
	}
	return all
}

func asFloat64(v G.Value) []float64 {
	if d, ok := v.Data().([]float64); ok {
		return slices.Clone(d)
	}
	var s []float64
	for _, x := range v.Data().([]float32) {
		s = append(s, float64(x))
	}
	return s
}

// Results and gradients are the same bit for bit for any number of processors.
func TestSequenceProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, s := range []stateful{
		statefulOf("S6", 48, NewS6(S6Config{Channels: 48})),
		statefulOf("S4", 48, NewS4(S4Config{Channels: 48})),
		statefulOf("H3", 48, NewH3(H3Config{Channels: 48, Inner: S6Config{}})),
		statefulOf("H3 of twelve heads", 48, NewH3(H3Config{Channels: 48, Inner: S6Config{State: 4}, Heads: 12})),
	} {
		var one [][]float64
		for _, n := range []int{1, 2, 5} {
			runtime.GOMAXPROCS(n)
			all := runBoth(t, s, 3, 130)
			if one == nil {
				one = all
			}
			for i := range all {
				if !slices.Equal(all[i], one[i]) {
					t.Errorf("%s: value %d on %d processors is another than on one", s.name, i, n)
				}
			}
		}
	}
}
