package layer

import (
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func vector(v ...float64) *tensor.Dense {
	return tensor.New(tensor.WithShape(len(v)), tensor.WithBacking(v))
}

// A weight has one node in a graph, and its values are not copied into any.
func TestParamNode(t *testing.T) {
	p := NewParam("weight", vector(1, 2, 3), true)
	g1, g2 := G.NewGraph(), G.NewGraph()
	n1, n2 := p.Node(g1), p.Node(g2)
	if again := p.Node(g1); again != n1 {
		t.Error("the second use in a graph made another node")
	}
	if n1 == n2 {
		t.Error("two graphs share a node")
	}
	if n1.Graph() != g1 || n2.Graph() != g2 {
		t.Error("a node is in the wrong graph")
	}
	for _, n := range []*G.Node{n1, n2} {
		if n.Value().Uintptr() != p.Value.Uintptr() {
			t.Error("a node has a value of its own")
		}
	}
	if len(g1.AllNodes()) != 1 {
		t.Errorf("%d nodes in the graph, want 1", len(g1.AllNodes()))
	}
	if !strings.HasPrefix(n1.Name(), "weight") {
		t.Errorf("the node of weight is called %s", n1.Name())
	}
}

// Two weights of one name, type and shape stay two: Gorgonia alone would merge their nodes.
func TestParamsOfOneName(t *testing.T) {
	p, q := NewParam("weight", vector(1, 2), true), NewParam("weight", vector(3, 5), true)
	g := G.NewGraph()
	a, b := p.Node(g), q.Node(g)
	if a == b {
		t.Fatal("one node for two weights")
	}
	loss := G.Must(G.Sum(G.Must(G.HadamardProd(a, G.Must(G.Square(b))))))
	grads, err := G.Grad(loss, a, b)
	if err != nil {
		t.Fatal(err)
	}
	var da, db G.Value
	G.Read(grads[0], &da)
	G.Read(grads[1], &db)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	sameElements(t, "gradient of the first", da, 9, 25)
	sameElements(t, "gradient of the second", db, 6, 20)
}

func TestParams(t *testing.T) {
	a := NewParam("a", vector(1, 2), true)
	b := NewParam("b", vector(1, 2, 3), false)
	c := NewParam("c", vector(1), true)
	p := Params{a, b, c}
	if got := p.ByName("b"); got != b {
		t.Errorf("ByName(b) is %v", got)
	}
	if got := p.ByName("d"); got != nil {
		t.Errorf("ByName(d) is %v, want nil", got)
	}
	if got := p.Count(); got != 6 {
		t.Errorf("Count is %d, want 6", got)
	}
	if got := Params(nil).Count(); got != 0 {
		t.Errorf("Count of none is %d", got)
	}
	g := G.NewGraph()
	nodes := p.Nodes(g)
	for i, w := range p {
		if nodes[i] != w.Node(g) {
			t.Errorf("node %d is %v, want that of %s", i, nodes[i], w.Name)
		}
	}
}

func sameElements(t *testing.T, what string, v G.Value, want ...float64) {
	t.Helper()
	var got []float64
	switch d := v.Data().(type) {
	case []float64:
		got = d
	case []float32:
		for _, x := range d {
			got = append(got, float64(x))
		}
	default:
		t.Fatalf("%s is of %T", what, d)
	}
	if len(got) != len(want) {
		t.Fatalf("%s has %d elements, want %d", what, len(got), len(want))
	}
	for i, x := range want {
		if d := got[i] - x; !(d <= 1e-6 && d >= -1e-6) {
			t.Errorf("%s: element %d is %v, want %v", what, i, got[i], x)
		}
	}
}

// What is frozen is left out of Trainable and keeps its value; the rest trains as before.
func TestFreeze(t *testing.T) {
	a, b := NewLinear(LinearConfig{In: 2, Out: 2, Bias: true}, WithName("a")), NewLinear(LinearConfig{In: 2, Out: 1}, WithName("b"))
	all := append(append(Params{}, a.Params()...), b.Params()...)
	a.Params().Freeze()
	if got := all.Trainable(); len(got) != 1 || got[0] != b.Weight {
		t.Fatalf("Trainable is %v, want b.weight alone", got)
	}
	g := G.NewGraph()
	x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 1, 2), tensor.WithBacking([]float32{1, 2})), G.WithName("x"))
	h, err := a.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Apply(h)
	if err != nil {
		t.Fatal(err)
	}
	nodes := all.Trainable().Nodes(g)
	if _, err := G.Grad(G.Must(G.Sum(G.Must(G.Square(y)))), nodes...); err != nil {
		t.Fatal(err)
	}
	before := make([][]float32, len(all))
	for i, p := range all {
		before[i] = slices.Clone(p.Value.Data().([]float32))
	}
	m := G.NewTapeMachine(g, G.BindDualValues(nodes...))
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if err := G.NewVanillaSolver(G.WithLearnRate(1)).Step(G.NodesToValueGrads(nodes)); err != nil {
		t.Fatal(err)
	}
	for i, p := range all {
		if same := slices.Equal(before[i], p.Value.Data().([]float32)); same != p.Frozen {
			t.Errorf("%s: frozen %t, unchanged %t", p.Name, p.Frozen, same)
		}
	}
	a.Params().Unfreeze()
	if got := all.Trainable(); len(got) != len(all) {
		t.Errorf("after Unfreeze Trainable is %v, want all", got)
	}
}

func TestDescribeFrozen(t *testing.T) {
	l := NewLinear(LinearConfig{In: 3, Out: 2}, WithName("head"))
	l.Params().Freeze()
	if got, want := stdout(t, l.Describe), "frozen\n"; !strings.HasSuffix(got, want) {
		t.Errorf("Describe prints %q, want %q at the end", got, want)
	}
}
