package nn

import (
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// learned checks the losses of a model that is trained to count.
func learned(t *testing.T, losses []float64) {
	t.Helper()
	if first := losses[0]; math.Abs(first-math.Log(5)) > 0.3 {
		t.Errorf("the first loss is %v, want about that of guessing, %v", first, math.Log(5))
	}
	if last := losses[len(losses)-1]; !(last < 0.1) {
		t.Errorf("the last of %d losses is %v, want less than 0.1", len(losses), last)
	}
}

// A language model learns to count on the tape machine, with tied and untied heads, in both types. On the lisp machine, which is made anew for
// each step, it has the same losses.
func TestTraining(t *testing.T) {
	for _, c := range []struct {
		dt     tensor.Dtype
		untied bool
	}{{tensor.Float32, false}, {tensor.Float64, true}} {
		const batch, length, vocab, steps = 2, 8, 5, 40
		cfg := LMConfig{Config: Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab, UntiedHead: c.untied}
		ids, targets := counting(batch, length, vocab)
		targets[length-1] = Ignore

		tape := NewLM(cfg, WithDtype(c.dt))
		g := G.NewGraph()
		tr := newTraining(t, must(tape.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length))), tape.Params())
		solver := G.NewAdamSolver(G.WithLearnRate(0.02))
		var losses []float64
		for range steps {
			losses = append(losses, tr.step(t, solver))
		}
		learned(t, losses)

		lisp := NewLM(cfg, WithDtype(c.dt))
		solver = G.NewAdamSolver(G.WithLearnRate(0.02))
		for i := range 10 {
			g := G.NewGraph()
			loss := must(lisp.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length)))
			m := G.NewLispMachine(g)
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			if got := elements(loss.Value())[0]; math.Abs(got-losses[i]) > 1e-3 {
				t.Errorf("%v: loss %d on the lisp machine is %v, want %v as on the tape machine", c.dt, i, got, losses[i])
			}
			if err := solver.Step(G.NodesToValueGrads(lisp.Params().Nodes(g))); err != nil {
				t.Fatal(err)
			}
			m.Close()
		}
	}
}

// A user's own Gorgonia model with a MambaBlock between its own weights learns to return the sum of all inputs so far. Only the block's state
// can hold this sum.
func TestOwnModel(t *testing.T) {
	const batch, length, width = 4, 12, 6
	block := NewMambaBlock(Config{DModel: width})
	g := G.NewGraph()
	r := rand.New(rand.NewPCG(1, 1))
	x, sums := normal(r, batch*length), make([]float64, batch*length)
	for i := range x {
		sums[i] = x[i] / 4
		if i%length > 0 {
			sums[i] += sums[i-1]
		}
	}
	in := leaf(g, "in", tensor.Float32, x, batch*length, 1)
	want := leaf(g, "want", tensor.Float32, sums, batch*length, 1)
	up := G.NewMatrix(g, tensor.Float32, G.WithShape(1, width), G.WithName("up"), G.WithInit(G.GlorotN(1)))
	down := G.NewMatrix(g, tensor.Float32, G.WithShape(width, 1), G.WithName("down"), G.WithInit(G.GlorotN(1)))

	h := G.Must(G.Mul(in, up))
	y := must(block.Apply(G.Must(G.Reshape(h, tensor.Shape{batch, length, width}))))
	out := G.Must(G.Mul(G.Must(G.Reshape(y, tensor.Shape{batch * length, width})), down))
	loss := G.Must(G.Mean(G.Must(G.Square(G.Must(G.Sub(out, want))))))
	var value G.Value
	G.Read(loss, &value)

	nodes := append(G.Nodes{up, down}, block.Model()...)
	if _, err := G.Grad(loss, nodes...); err != nil {
		t.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(nodes...))
	defer m.Close()
	solver := G.NewAdamSolver(G.WithLearnRate(0.02))
	before := snapshot(block.Params())
	var losses []float64
	for range 150 {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		losses = append(losses, elements(value)[0])
		if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
			t.Fatal(err)
		}
		m.Reset()
	}
	first, last := losses[0], losses[len(losses)-1]
	if !(last < first/20) {
		t.Errorf("the loss goes from %v to %v, want a twentieth", first, last)
	}
	for i, p := range block.Params() {
		if same(before[i:i+1], [][]float64{elements(p.Value)}) {
			t.Errorf("%s has not changed", p.Name)
		}
	}
}
