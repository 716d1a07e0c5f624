package nn

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/cpu"
	"github.com/gomamba/mamba/layer"
)

// onGraph is an option that changes no result. With any option, a graph reads the tokens.
func onGraph() CallOption { return WithRecompute(RecomputeNone) }

// A step as one job is a step of the graph bit for bit (without assembly, whose sums have another order, within rounding): for any sizes,
// optional weights and batches, for any number of processors, also after the weights have changed. Its states are those of the graph too.
func TestHostDecoder(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(11, 12))
	for _, c := range []struct {
		cfg   LMConfig
		batch int
	}{
		{LMConfig{Config: Config{DModel: 5, NLayer: 2, DState: 3, DConv: 1}, Vocab: 7}, 1},
		{LMConfig{Config: Config{DModel: 6, NLayer: 3, DConv: 2, Bias: true}, Vocab: 33, UntiedHead: true}, 3},
		{LMConfig{Config: Config{DModel: 70, NLayer: 2, DState: 8, NoConvBias: true}, Vocab: 300}, 24},
		{LMConfig{Config: Config{DModel: 40, NLayer: 2, DState: 1, DConv: 5, DtRank: 7}, Vocab: 100}, 2},
	} {
		lm := NewLM(c.cfg)
		scramble(lm.Params(), r)
		graph := must(NewStepper(lm, c.batch, onGraph()))
		for _, processors := range []int{1, 2, 5} {
			runtime.GOMAXPROCS(processors)
			one := must(NewStepper(lm, c.batch))
			if one.r.decoding == nil || graph.r.decoding != nil {
				t.Fatalf("%+v: a decoder reads: %t and %t, want true and false", c.cfg, one.r.decoding != nil, graph.r.decoding != nil)
			}
			graph.Reset()
			for i := range 6 {
				if i == 3 {
					scramble(lm.Params(), r)
				}
				tokens := make([]int, c.batch)
				for j := range tokens {
					tokens[j] = r.IntN(c.cfg.Vocab)
				}
				got, want := must(one.Step(tokens)), must(graph.Step(tokens))
				if err := one.r.bringState(); err != nil {
					t.Fatal(err)
				}
				had, wanted := results{"logits": slices.Concat(got...)}, results{"logits": slices.Concat(want...)}
				for j := range one.r.state {
					name := fmt.Sprintf("state %d", j)
					had[name], wanted[name] = elements(one.r.state[j]), elements(graph.r.state[j])
				}
				tol := 1e-4
				if cpu.Best > cpu.Generic {
					tol = 0
				}
				if err := had.near(wanted, tol); err != nil {
					t.Errorf("%+v, batch %d, %d processors, step %d: %v", c.cfg, c.batch, processors, i, err)
				}
			}
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := graph.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A graph reads the tokens where a step as one job does not compute the model: of another type, with a layer of another kind, with a LoRA, with
// more sequences. A weight of another shape is the graph's error.
func TestHostDecoderLeavesToGraph(t *testing.T) {
	small := LMConfig{Config: Config{DModel: 4, NLayer: 2, DState: 2}, Vocab: 5}
	hybrid, withLoRA := small, NewLM(small)
	hybrid.Pattern = []Kind{Mamba, MinGRU}
	if _, err := withLoRA.Params().AddLoRA(layer.LoRAConfig{Rank: 1, Alpha: 1, Targets: []string{"in_proj"}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lm    *LM
		batch int
	}{
		"float64": {NewLM(small, WithDtype(tensor.Float64)), 1}, "a hybrid": {NewLM(hybrid), 1}, "a LoRA": {withLoRA, 1}, "25 sequences": {NewLM(small), 25},
	} {
		s := must(NewStepper(c.lm, c.batch))
		if s.r.decoding != nil {
			t.Errorf("%s: a decoder reads, want a graph", name)
		}
		must(s.Step(make([]int, c.batch)))
		s.Close()
	}
	lm := NewLM(small)
	lm.Params().ByName("backbone.layers.1.mixer.D").Value = tensor.New(tensor.WithShape(3), tensor.Of(tensor.Float32))
	if _, err := NewStepper(lm, 1); err == nil {
		t.Error("a weight of another shape: no error")
	}
}

// A step as one job allocates nothing that grows with the model.
func TestHostDecoderAllocations(t *testing.T) {
	d := newHostDecoder(NewLM(LMConfig{Config: Config{DModel: 64, NLayer: 4}, Vocab: 256}), 2)
	tokens := []int{1, 2}
	if n := testing.AllocsPerRun(50, func() {
		if err := d.Read(tokens); err != nil {
			t.Fatal(err)
		}
		d.Commit()
	}); n > 4 {
		t.Errorf("%v allocations a step, want at most 4: those of starting helpers", n)
	}
}
