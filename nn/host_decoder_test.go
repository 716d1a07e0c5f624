package nn

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
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
		{LMConfig{Config: Config{DModel: 200, NLayer: 2}, Vocab: 301}, 1}, // large enough for several processors
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
				best := make([]int, c.batch)
				if err := one.r.decoding.Best(best, false); err != nil {
					t.Fatal(err)
				}
				for row, v := range got {
					if v[best[row]] != slices.Max(v) {
						t.Errorf("%+v, %d processors: the best token has the logit %v, want %v", c.cfg, processors, v[best[row]], slices.Max(v))
					}
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

// Pieces of any lengths that are read together leave the states that a graph leaves that reads each alone, bit for bit (without assembly within
// rounding): for any sizes, optional weights and weights of fewer bits, from the beginning and from a state, for any number of processors.
func TestReadOnHost(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(5, 12))
	for i, cfg := range []LMConfig{
		{Config: Config{DModel: 5, NLayer: 2, DState: 3, DConv: 1}, Vocab: 7},
		{Config: Config{DModel: 6, NLayer: 3, DConv: 2, Bias: true}, Vocab: 33, UntiedHead: true},
		{Config: Config{DModel: 70, NLayer: 2, DState: 8, NoConvBias: true}, Vocab: 300},
		{Config: Config{DModel: 64, NLayer: 2}, Vocab: 64}, // in int8
	} {
		lm := NewLM(cfg)
		scramble(lm.Params(), r)
		if i == 3 {
			for _, p := range lm.Params() {
				if shape := p.Value.Shape(); len(shape) == 2 && shape[1]%32 == 0 {
					w := must(blas.Quantize(blas.Q8_0, shape[0], shape[1], p.Value.Data().([]float32)))
					if err := p.SetNarrow(w); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		runtime.GOMAXPROCS([]int{1, 2, 5}[i%3])
		apart, together := []*Sequence{}, []*Sequence{}
		for range 7 {
			tokens := make([]int, 1+r.IntN(140))
			for j := range tokens {
				tokens[j] = r.IntN(cfg.Vocab)
			}
			apart, together = append(apart, NewSequence(1, tokens...)), append(together, NewSequence(1, tokens...))
		}
		for piece := 70; piece > 0; piece -= 55 { // of more rows than a product for few has, and of fewer
			if !readOnHost(lm, together, piece) {
				t.Fatalf("%+v: a graph has to read", cfg)
			}
			for j, s := range apart {
				n := min(len(s.pending)-1, piece)
				if n == 0 {
					continue
				}
				graph := must(newReader(lm, 1, n, false))
				if err := errors.Join(s.load(graph, 0), graph.read(s.pending[:n])); err != nil || graph.decoding != nil {
					t.Fatalf("a graph reads: %t, %v", graph.decoding == nil, err)
				}
				graph.commit()
				s.store(graph, 0, n)
				tol := 1e-4
				if cpu.Best > cpu.Generic {
					tol = 0
				}
				if err := values(together[j]).near(values(s), tol); err != nil || !slices.Equal(together[j].pending, s.pending) {
					t.Errorf("%+v, pieces of %d, sequence %d: %v", cfg, piece, j, err)
				}
				if err := graph.close(); err != nil {
					t.Error(err)
				}
			}
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
