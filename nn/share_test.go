package nn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// training is a graph with a loss, and a tape machine for it.
type training struct {
	nodes   G.Nodes
	machine G.VM
	loss    G.Value
}

func newTraining(t *testing.T, loss *G.Node, params layer.Params) *training {
	t.Helper()
	tr := &training{nodes: params.Nodes(loss.Graph())}
	G.Read(loss, &tr.loss)
	if _, err := G.Grad(loss, tr.nodes...); err != nil {
		t.Fatal(err)
	}
	tr.machine = G.NewTapeMachine(loss.Graph(), G.BindDualValues(tr.nodes...))
	t.Cleanup(func() { tr.machine.Close() })
	return tr
}

// step trains one step and returns the loss before it.
func (tr *training) step(t *testing.T, solver G.Solver) float64 {
	t.Helper()
	tr.machine.Reset()
	if err := tr.machine.RunAll(); err != nil {
		t.Fatal(err)
	}
	loss := elements(tr.loss)[0]
	if err := solver.Step(G.NodesToValueGrads(tr.nodes)); err != nil {
		t.Fatal(err)
	}
	return loss
}

// sameMemory reports whether two values begin at the same address.
func sameMemory(a, b G.Value) bool { return a.Uintptr() == b.Uintptr() }

// counting returns a batch of sequences in which each token is the token before plus one.
func counting(batch, length, vocab int) (ids, targets []int) {
	for b := range batch {
		for t := range length {
			ids = append(ids, (b+t)%vocab)
			targets = append(targets, (b+t+1)%vocab)
		}
	}
	return ids, targets
}

// A training graph, an evaluation graph of another batch and length, and a Stepper share one set of weights. After a step of the solver all
// use the new weights.
func TestGraphsShareWeights(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		const vocab = 4
		lm := NewLM(LMConfig{Config: Config{DModel: 6, NLayer: 2, DState: 3}, Vocab: vocab}, WithDtype(dt))
		ids, targets := counting(2, 6, vocab)

		train := G.NewGraph()
		loss := must(lm.Loss(intLeaf(train, "ids", ids, 2, 6), intLeaf(train, "targets", targets, 2, 6)))
		tr := newTraining(t, loss, lm.Params())

		eval := G.NewGraph()
		var logits G.Value
		G.Read(must(lm.Apply(intLeaf(eval, "ids", ids[:3], 1, 3))), &logits)
		evaluate := G.NewTapeMachine(eval)
		defer evaluate.Close()
		run := func() []float64 {
			evaluate.Reset()
			if err := evaluate.RunAll(); err != nil {
				t.Fatal(err)
			}
			return elements(logits)
		}
		stepper := must(NewStepper(lm, 1))
		defer stepper.Close()
		step := func() (rows []float64) {
			stepper.Reset()
			for _, id := range ids[:3] {
				rows = append(rows, must(stepper.Step([]int{id}))[0]...)
			}
			return rows
		}

		for _, p := range lm.Params() {
			for _, g := range []*G.ExprGraph{train, eval} {
				if !sameMemory(p.Node(g).Value(), p.Value) {
					t.Errorf("a graph has a copy of %s", p.Name)
				}
			}
		}
		solver := G.NewAdamSolver(G.WithLearnRate(0.1))
		before := run()
		for range 2 {
			tr.step(t, solver)
			after := run()
			if (results{"logits": after}).near(results{"logits": before}, 0.01) == nil {
				t.Errorf("%v: the evaluation graph does not use the new weights", dt)
			}
			// The result of a new model with the same weights.
			fresh := NewLM(lm.Config(), WithDtype(dt), WithSeed(99))
			for i, p := range fresh.Params() {
				assign(p.Value, elements(lm.Params()[i].Value))
			}
			want := results{"logits": forward(t, must(fresh.Apply(intLeaf(G.NewGraph(), "ids", ids[:3], 1, 3))))[0]}
			if err := (results{"logits": after}).near(want, 1e-5); err != nil {
				t.Errorf("%v: the evaluation graph: %v", dt, err)
			}
			if err := (results{"logits": step()}).near(want, 1e-5); err != nil {
				t.Errorf("%v: the stepper: %v", dt, err)
			}
			before = after
		}
		for _, p := range lm.Params() {
			if !sameMemory(p.Node(train).Value(), p.Value) {
				t.Errorf("training has replaced the value of %s", p.Name)
			}
		}
	}
}

// Two stacks of one configuration and without names are in one graph. Each has the outputs and gradients that it has alone in a graph.
func TestTwoStacksInOneGraph(t *testing.T) {
	cfg := Config{DModel: 3, NLayer: 2, DState: 2}
	a := NewMambaStack(cfg, WithDtype(tensor.Float64), WithSeed(1))
	b := NewMambaStack(cfg, WithDtype(tensor.Float64), WithSeed(2))
	r := rand.New(rand.NewPCG(1, 1))
	x, dy := normal(r, 2*4*3), normal(r, 2*4*3)

	run := func(lisp bool, stacks ...*MambaStack) results {
		g := G.NewGraph()
		in := leaf(g, "x", tensor.Float64, x, 2, 4, 3)
		var losses []*G.Node
		var nodes G.Nodes
		ys := make([]G.Value, len(stacks))
		for i, s := range stacks {
			y := must(s.Apply(in))
			G.Read(y, &ys[i])
			losses = append(losses, dot(y, dy))
			nodes = append(nodes, s.Params().Nodes(g)...)
		}
		grads := must(gradients(g, sum(losses...), nodes, lisp))
		got := results{}
		for i, s := range stacks {
			which := fmt.Sprintf("%d ", map[*MambaStack]int{a: 0, b: 1}[s])
			got[which+"y"] = elements(ys[i])
			for j, p := range s.Params() {
				got[which+p.Name] = elements(grads[i*len(s.Params())+j])
			}
		}
		return got
	}
	want := run(false, a)
	for name, v := range run(false, b) {
		want[name] = v
	}
	if (results{"y": want["0 y"]}).near(results{"y": want["1 y"]}, 1e-3) == nil {
		t.Fatal("the two stacks have the same results")
	}
	for _, lisp := range []bool{false, true} {
		if err := run(lisp, a, b).near(want, 1e-12); err != nil {
			t.Errorf("together, lisp machine %t: %v", lisp, err)
		}
	}
}

// A stack that is used twice in a graph has one set of weights. Their gradients are the sums over both uses.
func TestOneStackTwiceInAGraph(t *testing.T) {
	s := NewMambaStack(Config{DModel: 3, NLayer: 1, DState: 2}, WithDtype(tensor.Float64))
	r := rand.New(rand.NewPCG(1, 1))
	x := [][]float64{normal(r, 4*3), normal(r, 4*3)}
	run := func(which ...int) results {
		g := G.NewGraph()
		var losses []*G.Node
		for _, i := range which {
			losses = append(losses, G.Must(G.Sum(G.Must(G.Square(must(s.Apply(leaf(g, fmt.Sprint("x", i), tensor.Float64, x[i], 1, 4, 3))))))))
		}
		got := results{}
		for i, v := range must(gradients(g, sum(losses...), s.Params().Nodes(g), false)) {
			got[s.Params()[i].Name] = elements(v)
		}
		return got
	}
	want := run(0)
	for name, v := range run(1) {
		for i := range v {
			want[name][i] += v[i]
		}
	}
	if err := run(0, 1).near(want, 1e-12); err != nil {
		t.Error(err)
	}
}

// A forward run, and a run with gradients, do not change the weights and the inputs.
func TestRunsChangeNoWeight(t *testing.T) {
	for _, kind := range kinds {
		m := newModel(kind, Config{DModel: 3, NLayer: 2, DState: 2, Bias: true}, 4, true)
		p := (&problem{model: m, batch: 2, length: 5}).fill(rand.New(rand.NewPCG(1, 1)), true)
		before := snapshot(m.params)
		for _, lisp := range []bool{false, true} {
			if _, err := p.run(lisp, 2, 5); err != nil {
				t.Fatal(err)
			}
			if !same(before, snapshot(m.params)) {
				t.Errorf("%s, lisp machine %t: a run with gradients has changed a weight", kind, lisp)
			}
		}
		g := G.NewGraph()
		state := m.zero(g, 2)
		for i, n := range state.Nodes() {
			assign(n.Value().(*tensor.Dense), p.state[i])
		}
		x := leaf(g, "x", tensor.Float64, p.x, 2, 5, 3)
		if m.vocab > 0 {
			x = intLeaf(g, "ids", p.ids, 2, 5)
		}
		y, next, err := m.apply(x, state)
		if err != nil {
			t.Fatal(err)
		}
		forward(t, append(G.Nodes{y}, next.Nodes()...)...)
		if !same(before, snapshot(m.params)) {
			t.Errorf("%s: a forward run has changed a weight", kind)
		}
		for i, n := range state.Nodes() {
			if !same([][]float64{elements(n.Value())}, p.state[i:i+1]) {
				t.Errorf("%s: a forward run has changed the initial state", kind)
			}
		}
		if m.vocab == 0 && !same([][]float64{elements(x.Value())}, [][]float64{p.x}) {
			t.Errorf("%s: a forward run has changed its input", kind)
		}
	}
}

// The second run of a machine gives the same loss and the same gradients, bit for bit.
func TestSecondRun(t *testing.T) {
	lm := NewLM(LMConfig{Config: Config{DModel: 4, NLayer: 2, DState: 3}, Vocab: 5})
	ids, targets := counting(2, 7, 5)
	g := G.NewGraph()
	loss := must(lm.Loss(intLeaf(g, "ids", ids, 2, 7), intLeaf(g, "targets", targets, 2, 7)))
	grads := must(G.Grad(loss, lm.Params().Nodes(g)...))
	values := make([]G.Value, len(grads)+1)
	for i, n := range append(grads, loss) {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	var first [][]float64
	for i := range 3 {
		m.Reset()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		var got [][]float64
		for _, v := range values {
			got = append(got, elements(v))
		}
		if i == 0 {
			first = got
		} else if !same(got, first) {
			t.Errorf("run %d gives other gradients than the first", i)
		}
	}
	for i, p := range lm.Params() {
		if largest := maxAbs(first[i]); !(largest > 0) {
			t.Errorf("the largest gradient of %s is %v", p.Name, largest)
		}
	}
}

func maxAbs(v []float64) (m float64) {
	for _, x := range v {
		m = max(m, math.Abs(x))
	}
	return m
}
