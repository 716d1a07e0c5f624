package op

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
)

// keptBlock is a block in a graph with gradients: its operator, the operator of its gradients, and values for their operands.
type keptBlock struct {
	node     *G.Node
	forward  *operator.Operator
	backward *operator.Gradients
	in       []G.Value
	grad     G.Value
}

func newKeptBlock(t *testing.T, level Recompute, withState, withGradients bool) *keptBlock {
	t.Helper()
	p := &blockProblem{batch: 2, length: 6, model: 3, channels: 4, state: 2, width: 3, rank: 2, withState: withState,
		cfg: BlockConfig{Eps: 0.1, Recompute: level}}
	p.fill(60, blockOptional...)
	g := G.NewGraph()
	nodes, _, loss, err := p.use(false).build(g, f64, nil)
	if err == nil && withGradients {
		_, err = G.Grad(loss, nodes["X"])
	}
	if err != nil {
		t.Fatal(err)
	}
	b := &keptBlock{}
	for _, n := range g.AllNodes() {
		switch o := n.Op().(type) {
		case *operator.Operator:
			if _, ok := o.Function().(*mambaBlock[float64]); ok {
				b.node, b.forward = n, o
			}
		case *operator.Gradients:
			b.backward = o
		}
	}
	r := rand.New(rand.NewPCG(62, 1))
	for _, n := range node.Operands(b.node) {
		b.in = append(b.in, valueFor(r, n))
	}
	shape := b.node.Shape()
	b.grad = dense(f64, shape, normal(r, shape.TotalSize()))
	return b
}

func (b *keptBlock) keeps() int { return b.forward.Function().(*mambaBlock[float64]).Keeps() }

func (b *keptBlock) run(t testing.TB) G.Value {
	t.Helper()
	v, err := b.forward.Do(b.in...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (b *keptBlock) gradients(t testing.TB, result G.Value) []float64 {
	t.Helper()
	operands := append(slices.Clone(b.in), b.grad)
	if b.keeps() > 0 {
		operands = append(operands, result)
	}
	v, err := b.backward.Do(operands...)
	if err != nil {
		t.Fatal(err)
	}
	return elements(v)
}

// The kept values travel only from an operator to the operator of its gradients. An operator that overwrites the results does not reach
// them, and they are gone after they have been read.
func TestTrapKeptValues(t *testing.T) {
	for _, withState := range []bool{false, true} {
		want := newKeptBlock(t, RecomputeAll, withState, true)
		gradients := want.gradients(t, want.run(t))
		for _, level := range []Recompute{RecomputeCheap, RecomputeNone} {
			b := newKeptBlock(t, level, withState, true)
			v, ok := b.run(t).(*operator.Keeping[float64])
			if !ok {
				t.Fatalf("recompute %v: nothing is kept", level)
			}
			if n := len(v.Kept()); n != b.keeps() {
				t.Errorf("recompute %v: %d numbers are kept, want %d", level, n, b.keeps())
			}
			// Overwrite the result, as an operator of Gorgonia can.
			if err := v.Memset(math.NaN()); err != nil {
				t.Fatal(err)
			}
			if got := b.gradients(t, v); !slices.Equal(got, gradients) {
				t.Errorf("recompute %v: an overwritten result changes the gradients", level)
			}
			if v.Kept() != nil {
				t.Errorf("recompute %v: the kept values are still in the result after the only reader", level)
			}
			if got := b.gradients(t, v); !slices.Equal(got, gradients) {
				t.Errorf("recompute %v: the gradients differ after the kept values are gone", level)
			}
			if got := b.gradients(t, v.Dense.Clone().(*tensor.Dense)); !slices.Equal(got, gradients) {
				t.Errorf("recompute %v: gradients differ for a copy of the result", level)
			}
			// The kept values are read: other values give other gradients.
			v = b.run(t).(*operator.Keeping[float64])
			kept := v.Kept()
			for i := range kept {
				kept[i] /= 2
			}
			if slices.Equal(b.gradients(t, v), gradients) {
				t.Errorf("recompute %v: the kept values are not read", level)
			}
		}
	}
}

// If there are two readers, both find the kept values. (Gorgonia differentiates a node once, even for two losses.)
func TestTrapKeptForTwoReaders(t *testing.T) {
	b := newKeptBlock(t, RecomputeCheap, true, true)
	another := leaf(b.node.Graph(), "another gradient", f64, b.grad.Shape(), elements(b.grad))
	var children G.Nodes
	children = append(children, node.Operands(b.node)...)
	if _, err := b.forward.SymDiff(children, b.node, another); err != nil {
		t.Fatal(err)
	}
	v := b.run(t)
	first := b.gradients(t, v)
	if v.(*operator.Keeping[float64]).Kept() == nil {
		t.Error("the first of two readers has taken the kept values")
	}
	if second := b.gradients(t, v); !slices.Equal(first, second) {
		t.Error("the second reader has other gradients")
	}
}

// Without gradients nothing is kept. With RecomputeAll a result is a plain tensor.
func TestNothingKept(t *testing.T) {
	for _, level := range levels {
		b := newKeptBlock(t, level, true, level == RecomputeAll)
		if _, ok := b.run(t).(*tensor.Dense); !ok {
			t.Errorf("recompute %v: the result is not a plain tensor", level)
		}
	}
}

// One operator runs in several goroutines at once, as in several machines. Each run has its own kept values.
func TestKeptByConcurrentRuns(t *testing.T) {
	b := newKeptBlock(t, RecomputeCheap, true, true)
	var others []*keptBlock
	var want [][]float64
	for i := range 4 {
		o := *b
		o.in = slices.Clone(b.in)
		x := o.in[blockX].(*tensor.Dense).Clone().(*tensor.Dense)
		for k, v := range x.Data().([]float64) {
			x.Data().([]float64)[k] = v * float64(i+1)
		}
		o.in[blockX] = x
		others = append(others, &o)
		want = append(want, o.gradients(t, o.run(t)))
	}
	var wait sync.WaitGroup
	for i, o := range others {
		wait.Go(func() {
			for range 50 {
				if !slices.Equal(o.gradients(t, o.run(t)), want[i]) {
					t.Errorf("run %d has the gradients of another", i)
					return
				}
			}
		})
	}
	wait.Wait()
}

// Elementwise operators that overwrite results in place before the backward pass do not change the gradients. Neither do machines that watch
// or trace.
func TestTrapOverwrittenBlock(t *testing.T) {
	for _, level := range levels {
		for _, withState := range []bool{false, true} {
			p := &blockProblem{batch: 2, length: 5, model: 3, channels: 4, state: 2, width: 3, rank: 2, withState: withState,
				cfg: BlockConfig{Eps: 0.1, Recompute: level}}
			p.fill(63, blockOptional...)
			for name, options := range map[string][]G.VMOpt{
				"plain": nil, "watching": {G.WithNaNWatch(), G.WithInfWatch()}, "tracing": {G.TraceExec()},
			} {
				var want map[string][]float64
				for _, composed := range []bool{true, false} {
					g := G.NewGraph()
					nodes, out, _, err := p.use(composed).build(g, f64, nil)
					if err != nil {
						t.Fatal(err)
					}
					var loss *G.Node
					r := rand.New(rand.NewPCG(64, 1))
					for _, n := range out {
						n = G.Must(G.Neg(G.Must(G.Neg(G.Must(G.Tanh(n))))))
						loss = plus(loss, dot(n, normal(r, n.Shape().TotalSize())))
					}
					got, err := tapeGradients(g, loss, nodes, options...)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if want == nil {
						want = got
					}
					if err := sameResults(got, want, 1e-12); err != nil {
						t.Errorf("%s, recompute %v: %v", name, level, err)
					}
				}
			}
		}
	}
}

func tapeGradients(g *G.ExprGraph, loss *G.Node, nodes map[string]*G.Node, options ...G.VMOpt) (map[string][]float64, error) {
	names := slices.Collect(maps.Keys(nodes))
	var with G.Nodes
	for _, name := range names {
		with = append(with, nodes[name])
	}
	grads, err := G.Grad(loss, with...)
	if err != nil {
		return nil, err
	}
	values := make([]G.Value, len(grads))
	for i, n := range grads {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g, options...)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return nil, err
	}
	got := map[string][]float64{}
	for i, v := range values {
		got[names[i]] = elements(v)
	}
	return got, nil
}

// Machines of several graphs run at the same time. They borrow workspace from the same pool.
func TestMachinesAtTheSameTime(t *testing.T) {
	var wait sync.WaitGroup
	for i := range 4 {
		p := &blockProblem{batch: 1 + i%2, length: 40, model: 8, channels: 16, state: 4, width: 4, rank: 2, withState: i > 1,
			cfg: BlockConfig{Eps: 0.1, Recompute: levels[i%3]}}
		u := p.fill(uint64(70+i), "Start").use(false)
		want, err := u.run(f32, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		wait.Go(func() {
			for range 10 {
				got, err := u.run(f32, false, nil)
				if err == nil {
					err = sameResults(got, want, 0)
				}
				if err != nil {
					t.Error(fmt.Errorf("machine %d: %w", i, err))
					return
				}
			}
		})
	}
	wait.Wait()
}
