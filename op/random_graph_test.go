package op

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// In random graphs, whose nodes have any number of readers, the gradients agree with a difference of the loss, on the host and on a device, by
// gorgonia.Grad alone and with BindDualValues, which adds up the gradients of all runs.
func TestRandomGraphs(t *testing.T) {
	t.Run("host", func(t *testing.T) {
		randomGraphs(t, func(n *G.Node) (*G.Node, error) { return n, nil })
	})
	t.Run("device", func(t *testing.T) {
		p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		randomGraphs(t, func(n *G.Node) (*G.Node, error) {
			w, err := p.NewWeight(n.Value().(*tensor.Dense))
			if err != nil {
				return nil, err
			}
			return G.NodeFromAny(n.Graph(), w, G.WithName("weight "+n.Name())), nil
		})
	})
}

func randomGraphs(t *testing.T, place func(*G.Node) (*G.Node, error)) {
	shapes := []tensor.Shape{{2, 3, 4}, {2, 3, 4}, {4}, {4, 4}, {2, 4}, {4, 2}}
	graphs := uint64(30)
	if testing.Short() {
		graphs = 10
	}
	for seed := range graphs {
		var direction [][]float64
		// cost returns the loss of the values plus shift times direction.
		cost := func(dt tensor.Dtype, shift float64, place func(*G.Node) (*G.Node, error)) (leaves G.Nodes, loss *G.Node) {
			r, g := rand.New(rand.NewPCG(seed, 1)), G.NewGraph()
			direction = nil
			for i, s := range shapes {
				v, d := normal(r, s.TotalSize()), normal(r, s.TotalSize())
				for j := range v {
					v[j] += shift * d[j]
				}
				n, err := place(leaf(g, fmt.Sprint("leaf ", i), dt, s, v))
				if err != nil {
					t.Fatal(err)
				}
				leaves, direction = append(leaves, n), append(direction, d)
			}
			xs, weights := leaves[:2:2], G.Nodes{leaves[3], G.Must(LowRank(leaves[3], leaves[4], leaves[5], 0.5))}
			xs = append(xs, G.Must(Linear(G.Must(Add(xs[0], xs[1])), weights[1], leaves[2]))) // uses all leaves
			for range 2 + r.IntN(9) {
				a, b, w := xs[r.IntN(len(xs))], xs[r.IntN(len(xs))], weights[r.IntN(len(weights))]
				switch r.IntN(8) {
				case 0, 1:
					a = G.Must(Add(a, b))
				case 2:
					a = G.Must(RMSNorm(a, leaves[2], 1e-5))
				case 3:
					a = G.Must(Linear(a, w, leaves[2]))
				case 4:
					a = G.Must(Reverse(a, nil))
				case 5:
					weights = append(weights, G.Must(LowRank(w, leaves[4], leaves[5], 0.5)))
				case 6:
					weights = append(weights, G.Must(Add(w, weights[r.IntN(len(weights))])))
				case 7:
					parts, err := Split(a, 2, 2)
					if err != nil {
						t.Fatal(err)
					}
					a = G.Must(Linear(G.Must(Add(parts[0], parts[r.IntN(2)])), leaves[5], nil))
				}
				xs = append(xs, a)
			}
			for i, n := range xs[2:] {
				if i > 0 && r.IntN(2) == 0 {
					continue
				}
				n = G.Must(RMSNorm(n, leaves[2], 1e-5))
				if !PlaceOf(n).OnHost() {
					n = G.Must(Download(n))
				}
				loss = plus(loss, G.Must(G.Sum(G.Must(G.Square(n)))))
			}
			return leaves, loss
		}
		at := func(shift float64) float64 {
			_, loss := cost(f64, shift, func(n *G.Node) (*G.Node, error) { return n, nil })
			m := G.NewTapeMachine(loss.Graph())
			defer m.Close()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			return elements(loss.Value())[0]
		}
		const step = 1e-5
		want := (at(step) - at(-step)) / (2 * step)
		for _, bound := range []bool{false, true} {
			leaves, loss := cost(f32, 0, place)
			grads, err := G.Grad(loss, leaves...)
			if err != nil {
				t.Fatal(err)
			}
			if seed%3 != 0 { // on a device; on the host nothing changes
				FreeAfterUse(loss.Graph())
			}
			var options []G.VMOpt
			read := make([]G.Value, len(grads))
			if bound {
				options = append(options, G.BindDualValues(leaves...))
			} else {
				for i, n := range grads {
					G.Read(n, &read[i])
				}
			}
			m := G.NewTapeMachine(loss.Graph(), options...)
			defer m.Close()
			for run := range 3 {
				m.Reset()
				if err := m.RunAll(); err != nil {
					t.Fatalf("graph %d, bound %v: %v", seed, bound, err)
				}
				slope, size := 0.0, 0.0
				for i, n := range leaves {
					v := read[i]
					if bound {
						if v, err = n.Grad(); err != nil {
							t.Fatal(err)
						}
					}
					for j, x := range elements(v) {
						slope += x * direction[i][j]
						size += math.Abs(x * direction[i][j])
					}
				}
				if bound {
					slope, size = slope/float64(run+1), size/float64(run+1)
				}
				if !(math.Abs(slope-want) <= 1e-4*max(1, size)) {
					t.Errorf("graph %d, bound %v, run %d: the derivative is %v, want %v", seed, bound, run, slope, want)
				}
			}
		}
	}
}
