package op

import (
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// Names and epsilons with equal hashes, found by hashing a million candidates.
const (
	leafOfHash, leafOfSameHash = "x2jb4g8jn", "x55486dtk" // as leaves of float64 and shape (2)
	epsOfHash, epsOfSameHash   = 896.625, 15936.75        // of the RMS norm below
)

func mustContain(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("the error is %v, want one with %q", err, p)
		}
	}
}

// Two operators have one hash: the tape machine computes only one of them, so the other has a wrong value. CheckGraph reports this.
func TestTrapOperatorsOfOneHash(t *testing.T) {
	run := func(eps ...float64) (results [2]G.Value, g *G.ExprGraph) {
		g = G.NewGraph()
		x, weight := leaf(g, "x", tensor.Float64, []int{1, 1, 2}, []float64{30, 40}), leaf(g, "weight", tensor.Float64, []int{2}, []float64{1, 1})
		var hashes [2]uint32
		for i, e := range eps {
			n, err := RMSNorm(x, weight, e)
			if err != nil {
				t.Fatal(err)
			}
			hashes[i] = n.Hashcode()
			G.Read(n, &results[i])
		}
		if (hashes[0] == hashes[1]) != (eps[0] == epsOfHash) {
			t.Fatalf("the hashes are %x", hashes)
		}
		m := G.NewTapeMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		return results, g
	}
	for _, c := range []struct {
		eps   [2]float64
		wrong bool
	}{{[2]float64{epsOfHash, epsOfSameHash}, true}, {[2]float64{epsOfHash + 1, epsOfSameHash}, false}} {
		y, g := run(c.eps[:]...)
		wrong := false
		for i, eps := range c.eps {
			wrong = wrong || math.Abs(elements(y[i])[0]-30/math.Sqrt(1250+eps)) > 1e-12
		}
		if wrong != c.wrong {
			t.Errorf("eps %v: the results are %v and %v", c.eps, elements(y[0]), elements(y[1]))
		}
		err := CheckGraph(g)
		if !c.wrong && err != nil {
			t.Errorf("eps %v: %v", c.eps, err)
		}
		if c.wrong {
			mustContain(t, err, "op: check graph: ", "RMS norm{rows:1, channels:2, eps:896.625}(x, weight)", "RMS norm{rows:1, channels:2, eps:15936.75}(x, weight)", "one 32-bit hash")
		}
	}
}

// Two leaves have one hash: Gorgonia returns the node of the first operator for the second, and every operator of this package reports this.
func TestTrapOperandsOfOneHash(t *testing.T) {
	g := G.NewGraph()
	a := leaf(g, leafOfHash, tensor.Float64, []int{2}, []float64{1, 2})
	b := leaf(g, leafOfSameHash, tensor.Float64, []int{2}, []float64{3, 4})
	if a == b || a.Hashcode() != b.Hashcode() {
		t.Fatalf("the hashes are %x and %x", a.Hashcode(), b.Hashcode())
	}
	if G.Must(G.Exp(a)) != G.Must(G.Exp(b)) {
		t.Error("Gorgonia makes two nodes of leaves with one hash: it no longer merges them")
	}
	mustContain(t, CheckGraph(g), leafOfHash, leafOfSameHash)
	for name, apply := range map[string]func(x *G.Node) (*G.Node, error){
		"negative exponential": NegExp,
		"add":                  func(x *G.Node) (*G.Node, error) { return Add(x, x) },
	} {
		if _, err := apply(a); err != nil {
			t.Fatal(err)
		}
		_, err := apply(b)
		mustContain(t, err, "op: "+name, leafOfSameHash, leafOfHash, "different")
		if again, err := apply(a); err != nil || again == nil {
			t.Errorf("the same operator twice: %v, want no error", err)
		}
	}
	input := func(name string) grad.Input {
		return grad.Input{Name: name, Value: dense(tensor.Float64, []int{2}, []float64{1, 2})}
	}
	_, err := grad.Check(func(in G.Nodes) (G.Nodes, error) { return in, nil }, []grad.Input{input(leafOfHash), input(leafOfSameHash)})
	mustContain(t, err, leafOfHash, leafOfSameHash)
}

func TestCheckGraphErrors(t *testing.T) {
	mustContain(t, CheckGraph(nil), "op: check graph: the graph is missing")
	if err := CheckGraph(G.NewGraph()); err != nil {
		t.Errorf("an empty graph: %v", err)
	}
}
