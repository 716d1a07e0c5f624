package nn

import (
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"
)

// in returns the model with options that are used at every application.
func (m model) in(opts ...CallOption) model {
	apply, plain := m.apply, m.plain
	m.apply = func(x *G.Node, state State, more ...CallOption) (*G.Node, State, error) {
		return apply(x, state, slices.Concat(opts, more)...)
	}
	m.plain = func(x *G.Node, more ...CallOption) (*G.Node, error) { return plain(x, slices.Concat(opts, more)...) }
	return m
}

// Blocks of one operator and blocks composed of separate operators have the same outputs, states and gradients, as a whole and in pieces, on
// both machines.
func TestFusedIsComposed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		if p.cfg.DModel == 1 {
			// The norm of a single number is its sign, so the gradients are only rounding errors.
			t.Skip("d_model is 1: the gradients are only rounding errors")
		}
		composed := *p
		composed.model = p.model.in(WithComposed())
		want, err := composed.run(false, p.length)
		if err != nil {
			t.Fatal(err)
		}
		level := rapid.SampledFrom([]Recompute{RecomputeCheap, RecomputeNone, RecomputeAll}).Draw(t, "recompute")
		fused := *p
		fused.model = p.model.in(WithRecompute(level))
		lisp := rapid.Bool().Draw(t, "lisp machine")
		for _, q := range []*problem{&composed, &fused} {
			for _, ends := range [][]int{{p.length}, drawEnds(t, p.length)} {
				got, err := q.run(lisp, ends...)
				if err == nil {
					err = got.near(want, 1e-10)
				}
				if err != nil {
					t.Fatalf("composed %t, pieces that end at %v: %v", q == &composed, ends, err)
				}
			}
		}
	})
}

// The options reach every block: a composed model has many operators per block, a fused model one.
func TestOptionsReachBlocks(t *testing.T) {
	count := func(opts ...CallOption) (nodes int) {
		lm := NewLM(LMConfig{Config: Config{DModel: 4, NLayer: 3}, Vocab: 5})
		g := G.NewGraph()
		must(lm.Loss(intLeaf(g, "ids", []int{1, 2}, 1, 2), intLeaf(g, "targets", []int{2, 3}, 1, 2), opts...))
		for _, n := range g.AllNodes() {
			if n.Op() != nil {
				nodes++
			}
		}
		return nodes
	}
	// Embedding, blocks, a view for each block that keeps values, norm, head, loss.
	if n := count(); n != 1+2*3+3 {
		t.Errorf("a fused model has %d operators, want %d", n, 1+2*3+3)
	}
	if n := count(WithRecompute(RecomputeAll)); n != 1+3+3 {
		t.Errorf("a fused model that keeps nothing has %d operators, want %d", n, 1+3+3)
	}
	if n := count(WithComposed()); n < 10*3 {
		t.Errorf("a composed model has %d operators, want at least 10 for each block", n)
	}
}

// An unknown Recompute is an error of every use.
func TestInvalidRecompute(t *testing.T) {
	const want = "MambaBlock: Recompute is 9, want RecomputeCheap, RecomputeNone or RecomputeAll"
	x := leaf(G.NewGraph(), "x", tensor.Float32, make([]float64, 8), 1, 2, 4)
	if _, err := NewMambaBlock(Config{DModel: 4}).Apply(x, WithRecompute(9)); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// The steps of a Stepper are the same in both forms.
func TestStepperForms(t *testing.T) {
	lm := NewLM(LMConfig{Config: Config{DModel: 5, NLayer: 2, DState: 3}, Vocab: 7}, WithDtype(tensor.Float64))
	scramble(lm.Params(), rand.New(rand.NewPCG(1, 2)))
	fused, composed := must(NewStepper(lm, 2)), must(NewStepper(lm, 2, WithComposed()))
	defer fused.Close()
	defer composed.Close()
	for _, ids := range [][]int{{1, 2}, {0, 6}, {3, 3}, {5, 1}} {
		got, want := must(fused.Step(ids)), must(composed.Step(ids))
		if err := (results{"logits": slices.Concat(got...)}).near(results{"logits": slices.Concat(want...)}, 1e-12); err != nil {
			t.Error(err)
		}
	}
}

// If some weights are frozen, the gradients of the others do not change.
func TestGradientsOfSomeWeights(t *testing.T) {
	stack := NewMambaStack(Config{DModel: 4, NLayer: 2, DState: 3, Bias: true}, WithDtype(tensor.Float64))
	r := rand.New(rand.NewPCG(3, 3))
	scramble(stack.Params(), r)
	x, dy := normal(r, 2*5*4), normal(r, 2*5*4)
	gradientsOf := func(names ...string) results {
		g := G.NewGraph()
		y := must(stack.Apply(leaf(g, "x", tensor.Float64, x, 2, 5, 4)))
		var with G.Nodes
		for _, name := range names {
			with = append(with, stack.Params().ByName(name).Node(g))
		}
		got := results{}
		for i, v := range must(gradients(g, dot(y, dy), with, false)) {
			got[names[i]] = elements(v)
		}
		return got
	}
	var all []string
	for _, p := range stack.Params() {
		all = append(all, p.Name)
	}
	want := gradientsOf(all...)
	for _, some := range [][]string{
		{"layers.1.mixer.D"}, {"layers.0.mixer.A_log"}, {"layers.0.norm.weight", "layers.1.mixer.in_proj.bias"},
		{"norm_f.weight"}, {"layers.0.mixer.conv1d.weight", "layers.1.mixer.out_proj.weight"},
	} {
		for name, v := range gradientsOf(some...) {
			if !slices.Equal(v, want[name]) {
				t.Errorf("with gradients of only %v, the gradient of %s differs", some, name)
			}
		}
	}
}

// The gradient of a weight that blocks share is the sum of the blocks' gradients, in both forms.
func TestTiedBlocks(t *testing.T) {
	stack := NewMambaStack(Config{DModel: 3, NLayer: 2, DState: 2}, WithDtype(tensor.Float64))
	r := rand.New(rand.NewPCG(4, 4))
	scramble(stack.Params(), r)
	first, second := stack.Blocks()[0], stack.Blocks()[1]
	second.mixer.Parts.InProj.Weight, second.mixer.Parts.S6.Parts.ALog = first.mixer.Parts.InProj.Weight, first.mixer.Parts.S6.Parts.ALog
	x, dy := normal(r, 2*4*3), normal(r, 2*4*3)
	run := func(lisp bool, opts ...CallOption) results {
		g := G.NewGraph()
		y := must(stack.Apply(leaf(g, "x", tensor.Float64, x, 2, 4, 3), opts...))
		names := []string{"layers.0.mixer.in_proj.weight", "layers.0.mixer.A_log", "layers.1.mixer.D"}
		var with G.Nodes
		for _, name := range names {
			with = append(with, stack.Params().ByName(name).Node(g))
		}
		got := results{}
		for i, v := range must(gradients(g, dot(y, dy), with, lisp)) {
			got[names[i]] = elements(v)
		}
		return got
	}
	want := run(false, WithComposed())
	for _, lisp := range []bool{false, true} {
		if err := run(lisp).near(want, 1e-12); err != nil {
			t.Errorf("lisp machine %t: %v", lisp, err)
		}
	}
}
