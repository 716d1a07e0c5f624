package mamba_test

import (
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// The benchmarks that a user would run: go test -bench . -benchmem . (docs/benchmarks.md). Everything is float32.

func random(g *G.ExprGraph, name string, shape ...int) *G.Node {
	r := rand.New(rand.NewPCG(1, uint64(len(name))))
	v := make([]float32, tensor.Shape(shape).TotalSize())
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
}

// run measures whole runs of a graph, for a loss with its gradients.
func run(b *testing.B, g *G.ExprGraph, loss *G.Node, with G.Nodes, unit string, perRun int) {
	b.Helper()
	if loss != nil {
		if _, err := G.Grad(loss, with...); err != nil {
			b.Fatal(err)
		}
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := m.RunAll(); err != nil {
			b.Fatal(err)
		}
		m.Reset()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(perRun), unit)
}

func total(n *G.Node) *G.Node { return G.Must(G.Sum(n)) }

// BenchmarkScan is the operator at the size of a 130M model's layer, with D, z, delta_bias and softplus; ns/tdn is the time
// per step, channel and state.
func BenchmarkScan(b *testing.B) {
	const batch, length, channels, state = 1, 1024, 1536, 16
	build := func() (*G.ExprGraph, *G.Node, G.Nodes) {
		g := G.NewGraph()
		in := op.ScanInputs{
			U: random(g, "u", batch, length, channels), Delta: random(g, "delta", batch, length, channels),
			B: random(g, "B", batch, length, state), C: random(g, "C", batch, length, state),
			D: random(g, "D", channels), Z: random(g, "z", batch, length, channels), DeltaBias: random(g, "bias", channels),
		}
		a := random(g, "A_log", channels, state)
		in.A = G.Must(op.NegExp(a))
		return g, G.Must(op.SelectiveScan(in, op.ScanConfig{DeltaSoftplus: true})),
			G.Nodes{in.U, in.Delta, a, in.B, in.C, in.D, in.Z, in.DeltaBias}
	}
	const tdn = batch * length * channels * state
	b.Run("forward", func(b *testing.B) {
		g, _, _ := build()
		run(b, g, nil, nil, "ns/tdn", tdn)
	})
	b.Run("forward+backward", func(b *testing.B) {
		g, y, with := build()
		run(b, g, total(y), with, "ns/tdn", tdn)
	})
}

// BenchmarkBlock is one block of a 130M model; ns/step is the time per token.
func BenchmarkBlock(b *testing.B) {
	const batch, length, width = 1, 512, 768
	build := func() (*G.ExprGraph, *G.Node, G.Nodes) {
		g := G.NewGraph()
		block := nn.NewMambaBlock(nn.Config{DModel: width})
		y := G.Must(block.Apply(random(g, "x", batch, length, width)))
		return g, y, block.Params().Nodes(g)
	}
	b.Run("forward", func(b *testing.B) {
		g, _, _ := build()
		run(b, g, nil, nil, "ns/step", batch*length)
	})
	b.Run("forward+backward", func(b *testing.B) {
		g, y, with := build()
		run(b, g, total(y), with, "ns/step", batch*length)
	})
}

// BenchmarkTrain is a training step of examples/bytelm's model, the solver's step included.
func BenchmarkTrain(b *testing.B) {
	const batch, length = 8, 128
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 256})
	g := G.NewGraph()
	tokens := make([]int, batch*length)
	for i := range tokens {
		tokens[i] = i * i % 256
	}
	leaf := func(name string) *G.Node {
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, length), tensor.WithBacking(tokens)), G.WithName(name))
	}
	loss := G.Must(lm.Loss(leaf("ids"), leaf("targets")))
	weights := lm.Params().Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		b.Fatal(err)
	}
	m, solver := G.NewTapeMachine(g, G.BindDualValues(weights...)), G.NewAdamSolver()
	defer m.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := m.RunAll(); err != nil {
			b.Fatal(err)
		}
		if err := solver.Step(G.NodesToValueGrads(weights)); err != nil {
			b.Fatal(err)
		}
		m.Reset()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(batch*length), "ns/token")
}

// BenchmarkStep is one token of that model's generation.
func BenchmarkStep(b *testing.B) {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 256})
	s, err := nn.NewStepper(lm, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := s.Step([]int{i % 256}); err != nil {
			b.Fatal(err)
		}
	}
}
