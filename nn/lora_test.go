package nn

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/layer"
)

// adapted returns a block with LoRA of every projection, whose matrices are not zero.
func adapted(dt tensor.Dtype) *MambaBlock {
	b := NewMambaBlock(Config{DModel: 3, DState: 2, DtRank: 2}, WithDtype(dt))
	scramble(b.Params(), rand.New(rand.NewPCG(1, 1)))
	scramble(must(b.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 3})), rand.New(rand.NewPCG(1, 2)))
	return b
}

// The gradients of LoRA agree with finite differences for both forms of a block, on both machines.
func TestLoRAGradients(t *testing.T) {
	b := adapted(tensor.Float64)
	r := rand.New(rand.NewPCG(1, 3))
	x := tensor.New(tensor.WithShape(2, 4, 3), tensor.WithBacking(normal(r, 24)))
	inputs := []grad.Input{{Name: "x", Value: x}}
	for _, p := range b.Params().Trainable() {
		inputs = append(inputs, grad.Input{Name: p.Name, Value: p.Value, Node: p.Node})
	}
	if len(inputs) != 1+2*4 {
		t.Fatalf("%d inputs, want x, and A and B of four projections", len(inputs))
	}
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			grad.MustCheck(t, grad.Single(func(in G.Nodes) (*G.Node, error) { return b.Apply(in[0], form.opts...) }), inputs, grad.Sample(6, 3))
		})
	}
}

// Both forms of a block use the LoRA of every projection, and give the same results after merging.
func TestLoRAInBothForms(t *testing.T) {
	for _, form := range forms {
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			b := adapted(dt)
			x := normal(rand.New(rand.NewPCG(1, 4)), 24)
			apply := func() []float64 {
				return forward(t, must(b.Apply(leaf(G.NewGraph(), "x", dt, x, 2, 4, 3), form.opts...)))[0]
			}
			want := apply()
			for _, p := range b.Params().Trainable() {
				old := elements(p.Value)
				p.Value.Zero()
				if slices.Equal(apply(), want) {
					t.Errorf("%s, %v: %s does not change the result", form.name, dt, p.Name)
				}
				assign(p.Value, old)
			}
			if n := must(b.Params().MergeLoRA()); n != 4 {
				t.Errorf("%d updates merged, want 4", n)
			}
			if got := apply(); !slices.Equal(got, want) {
				t.Errorf("%s, %v: after merging the result is %v, want %v", form.name, dt, got, want)
			}
		}
	}
}

// Adding LoRA does not change a language model's results. Training changes LoRA and not the base weights, and generation uses it.
func TestLoRALearns(t *testing.T) {
	const batch, length, vocab = 2, 8, 5
	lm := NewLM(LMConfig{Config: Config{DModel: 16, NLayer: 2, DState: 4}, Vocab: vocab})
	base := lm.Params()
	scramble(base, rand.New(rand.NewPCG(1, 5))) // the logits of frozen embeddings of their initial size would be too small to learn
	stepOf := func() []float64 {
		s := must(NewStepper(lm, 1))
		defer s.Close()
		return must(s.Step([]int{1}))[0]
	}
	untouched := stepOf()
	must(base.AddLoRA(layer.LoRAConfig{Rank: 4, Alpha: 8}))
	if !slices.Equal(stepOf(), untouched) {
		t.Error("a new LoRA changes the model's results before training")
	}
	before := snapshot(base)
	ids, targets := counting(batch, length, vocab)
	g := G.NewGraph()
	tr := newTraining(t, must(lm.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length))), base.Trainable())
	solver := G.NewAdamSolver(G.WithLearnRate(0.02))
	first := tr.step(t, solver)
	last := first
	for range 80 {
		last = tr.step(t, solver)
	}
	if !(last < first/2) {
		t.Errorf("the loss goes from %v to %v, want less than half", first, last)
	}
	if !same(before, snapshot(base)) {
		t.Error("a frozen weight has changed")
	}
	adapted := stepOf()
	if slices.Equal(adapted, untouched) {
		t.Error("generation does not use the LoRA")
	}
	must(base.MergeLoRA())
	if !slices.Equal(stepOf(), adapted) {
		t.Error("generation differs after merging")
	}
	for i, p := range base {
		if merged := strings.Contains(p.Name, "_proj.weight"); merged == same(before[i:i+1], [][]float64{elements(p.Value)}) {
			t.Errorf("%s: merged %t", p.Name, merged)
		}
	}
}
