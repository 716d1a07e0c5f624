package nn

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// trainSteps trains a new language model for a few steps and returns the losses and the weights. The model is so large that its work is
// divided among several cores.
func trainSteps(t *testing.T, steps int) [][]float64 {
	t.Helper()
	const batch, length, vocab = 3, 90, 70
	lm := NewLM(LMConfig{Config: Config{DModel: 40, NLayer: 2}, Vocab: vocab}, WithSeed(5))
	g := G.NewGraph()
	ids, targets := make([]int, batch*length), make([]int, batch*length)
	r := rand.New(rand.NewPCG(6, 7))
	for i := range ids {
		ids[i], targets[i] = r.IntN(vocab), r.IntN(vocab)
	}
	loss, err := lm.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length))
	if err != nil {
		t.Fatal(err)
	}
	var value G.Value
	G.Read(loss, &value)
	nodes := lm.Params().Nodes(g)
	if _, err := G.Grad(loss, nodes...); err != nil {
		t.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(nodes...))
	defer m.Close()
	solver := G.NewAdamSolver(G.WithLearnRate(0.01))
	var losses []float64
	for range steps {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		losses = append(losses, elements(value)...)
		if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
			t.Fatal(err)
		}
		m.Reset()
	}
	return append(snapshot(lm.Params()), losses)
}

// Training gives the same bits for any number of processors, and in every run.
func TestTrainingIsDeterministic(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := trainSteps(t, 3)
	if losses := want[len(want)-1]; !(losses[2] < losses[0]) {
		t.Fatalf("the model has not been trained: the losses are %v", losses)
	}
	runs := 3
	if testing.Short() {
		runs = 1
	}
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for i := range runs {
			if got := trainSteps(t, 3); !same(got, want) {
				t.Errorf("run %d on %d processors differs: losses %v, want %v", i, procs, got[len(got)-1], want[len(want)-1])
			}
		}
	}
}

// A model's initial weights depend only on its seed, and each weight's initial values on its name and shape.
func TestSeed(t *testing.T) {
	start := func(layers int, opts ...Option) map[string]string {
		m := map[string]string{}
		for _, p := range NewLM(LMConfig{Config: Config{DModel: 4, NLayer: layers}, Vocab: 5}, opts...).Params() {
			m[p.Name] = fmt.Sprint(elements(p.Value))
		}
		return m
	}
	random := []string{"backbone.embeddings.weight", "backbone.layers.0.mixer.in_proj.weight", "backbone.layers.0.mixer.conv1d.weight",
		"backbone.layers.0.mixer.conv1d.bias", "backbone.layers.0.mixer.x_proj.weight", "backbone.layers.0.mixer.dt_proj.weight",
		"backbone.layers.0.mixer.dt_proj.bias", "backbone.layers.0.mixer.out_proj.weight"}
	first, again, other := start(2, WithSeed(1)), start(2, WithSeed(1)), start(2, WithSeed(2))
	for name, v := range first {
		if again[name] != v {
			t.Errorf("the same seed gives another %s", name)
		}
	}
	for _, name := range random {
		if other[name] == first[name] {
			t.Errorf("another seed gives the same %s", name)
		}
	}
	if a, b := first["backbone.layers.0.mixer.x_proj.weight"], first["backbone.layers.1.mixer.x_proj.weight"]; a == b {
		t.Error("two layers have the same initial weights")
	}
	if a, b := start(3, WithSeed(1))["backbone.layers.1.mixer.x_proj.weight"], first["backbone.layers.1.mixer.x_proj.weight"]; a != b {
		t.Error("a third layer changes the initial weights of the second")
	}
	lm := NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: 5}, WithDtype(tensor.Float64))
	for _, p := range lm.Params() {
		if p.Value.Dtype() != tensor.Float64 {
			t.Errorf("%s is of %v, want float64", p.Name, p.Value.Dtype())
		}
	}
}
