package op

import (
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
)

// headProblem is the loss factor · head · head, whose gradient reads the head twice.
type headProblem struct {
	batch, length, in, vocabulary, ignore int
	x, weight, targets                    []float64
	factor                                float64
}

func (p *headProblem) fill(r *rand.Rand) {
	p.x, p.weight, p.targets = normal(r, p.batch*p.length*p.in), normal(r, p.vocabulary*p.in), nil
	for range p.batch * p.length {
		target := r.IntN(p.vocabulary)
		if r.IntN(3) == 0 {
			target = p.ignore
		}
		p.targets = append(p.targets, float64(target))
	}
}

func (p *headProblem) build(dt tensor.Dtype, composed bool) (g *G.ExprGraph, head, x, weight *G.Node, err error) {
	g = G.NewGraph()
	x, weight = leaf(g, "x", dt, []int{p.batch, p.length, p.in}, p.x), leaf(g, "weight", dt, []int{p.vocabulary, p.in}, p.weight)
	targets := leaf(g, "targets", tensor.Int, []int{p.batch, p.length}, p.targets)
	if composed {
		head, err = CrossEntropy(G.Must(Linear(x, weight, nil)), targets, p.ignore)
	} else {
		head, err = LinearCrossEntropy(x, weight, targets, p.ignore)
	}
	return g, head, x, weight, err
}

func (p *headProblem) run(dt tensor.Dtype, composed, lisp bool) (map[string][]float64, error) {
	g, head, x, weight, err := p.build(dt, composed)
	if err != nil {
		return nil, err
	}
	var value G.Value
	G.Read(head, &value)
	factor := G.NewConstant(p.factor)
	if dt == tensor.Float32 {
		factor = G.NewConstant(float32(p.factor))
	}
	values := map[string]G.Value{}
	if err := runGradients(g, G.Must(G.Mul(G.Must(G.Mul(head, head)), factor)), map[string]*G.Node{"x": x, "weight": weight}, lisp, values); err != nil {
		return nil, err
	}
	return map[string][]float64{"loss": elements(value), "x": elements(values["x"]), "weight": elements(values["weight"])}, nil
}

// The operator is Linear and CrossEntropy, also where the loss is scaled and read twice, and where all targets are ignored, on both machines and in both types.
func TestLinearCrossEntropy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &headProblem{
			batch: rapid.IntRange(1, 3).Draw(t, "batch"), length: rapid.IntRange(1, 40).Draw(t, "length"), in: rapid.IntRange(1, 9).Draw(t, "in"),
			vocabulary: rapid.SampledFrom([]int{1, 2, 7, 300}).Draw(t, "vocabulary"), ignore: rapid.SampledFrom([]int{-100, 0, 1000}).Draw(t, "ignore"),
			factor: rapid.SampledFrom([]float64{1, -2.5, 0, 65536}).Draw(t, "factor"),
		}
		p.fill(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 9)))
		want, err := p.run(tensor.Float64, true, false)
		for _, lisp := range []bool{false, true} {
			for dt, tol := range map[tensor.Dtype]float64{tensor.Float64: 1e-13, tensor.Float32: 1e-5} {
				var got map[string][]float64
				if err == nil {
					got, err = p.run(dt, false, lisp)
				}
				if err == nil {
					err = sameResults(got, want, tol)
				}
				if err != nil {
					t.Fatalf("%v, lisp machine %t: %v", dt, lisp, err)
				}
			}
		}
	})
}

// The gradients that the forward pass has computed travel only to the operator of the gradients, once. An operator that overwrites the loss does not reach them, and without them they are computed
// again, to the same bits. Two readers get the same, and a run that reuses memory as well.
func TestTrapEagerGradients(t *testing.T) {
	p := &headProblem{batch: 2, length: 40, in: 5, vocabulary: 300, ignore: -1}
	p.fill(rand.New(rand.NewPCG(71, 1)))
	g, loss, x, weight, err := p.build(f64, false)
	if err == nil {
		_, err = G.Grad(loss, x, weight)
	}
	if err != nil {
		t.Fatal(err)
	}
	var forward *operator.Operator
	var backward *operator.Gradients
	var head *G.Node
	for _, n := range g.AllNodes() {
		switch o := n.Op().(type) {
		case *operator.Operator:
			head, forward = n, o
		case *operator.Gradients:
			backward = o
		}
	}
	in := []G.Value{dense(f64, x.Shape(), p.x), dense(f64, weight.Shape(), p.weight), dense(tensor.Int, []int{2, 40}, p.targets)}
	run := func() *operator.Keeping[float64] {
		v, err := forward.Do(in...)
		if err != nil {
			t.Fatal(err)
		}
		return v.(*operator.Keeping[float64])
	}
	gradients := func(by float64, result G.Value) []float64 {
		v, err := backward.Do(append(slices.Clone(in), G.NewF64(by), result)...)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Clone(elements(v))
	}
	for _, by := range []float64{1, -0.3} {
		v := run()
		want := gradients(by, G.NewF64(0)) // a plain result carries nothing
		if err := v.Memset(7.5); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(gradients(by, v), want) || v.Kept() != nil {
			t.Errorf("times %v: the gradients of the forward pass differ from those of the backward pass, or were not taken", by)
		}
		if !slices.Equal(gradients(by, v), want) {
			t.Errorf("times %v: other gradients after they were taken", by)
		}
	}
	operator.ReuseResults(g, 1<<20)
	for range 2 {
		v := run()
		if !slices.Equal(gradients(2, v), gradients(2, G.NewF64(0))) {
			t.Error("other gradients in reused memory")
		}
	}
	if _, err := forward.SymDiff(node.Operands(head), head, G.NewScalar(g, f64, G.WithName("another"), G.WithValue(1.0))); err != nil {
		t.Fatal(err)
	}
	v := run()
	first := gradients(3, v)
	if !slices.Equal(gradients(3, v), first) || v.Kept() == nil {
		t.Error("the second of two readers has other gradients")
	}
}

// The lisp machine runs the part of a graph that has no gradients of gorgonia.Grad: the forward pass has computed gradients that no operator takes.
func TestTrapEagerLisp(t *testing.T) {
	p := &headProblem{batch: 1, length: 9, in: 3, vocabulary: 7, ignore: -1}
	p.fill(rand.New(rand.NewPCG(71, 3)))
	var both [2][]float64
	for i := range both {
		g, loss, x, weight, err := p.build(f64, false)
		if err == nil && i == 1 {
			_, err = G.Grad(loss, x, weight)
		}
		if err == nil {
			m := G.NewLispMachine(g.SubgraphRoots(loss))
			defer m.Close()
			err = m.RunAll()
		}
		for _, n := range []*G.Node{x, weight} {
			var v G.Value
			if err == nil {
				v, err = n.Grad()
			}
			if err != nil {
				t.Fatal(err)
			}
			both[i] = append(both[i], elements(v)...)
		}
	}
	if !slices.Equal(both[0], both[1]) || slices.Max(both[0]) == 0 {
		t.Errorf("the gradients are %v, and %v in a graph without others", both[1], both[0])
	}
}

// A step with gradients allocates far less than the logits, which take 156 MiB here.
func TestLinearCrossEntropyMemory(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // each worker has a workspace of its own
	p := &headProblem{batch: 4, length: 1024, in: 7, vocabulary: 10000, ignore: -1}
	p.fill(rand.New(rand.NewPCG(71, 2)))
	g, loss, x, weight, err := p.build(f32, false)
	if err == nil {
		_, err = G.Grad(loss, x, weight)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a garbage collection would empty the pools
	bytes := allocated(func() {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
	})
	if logits := 4 * p.batch * p.length * p.vocabulary; bytes > logits/4 {
		t.Errorf("a step allocates %d bytes, want at most a quarter of the logits' %d", bytes, logits)
	}
}
