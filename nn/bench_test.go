package nn

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/benchtest"
)

// forms lists the ways to compute a block.
var forms = []struct {
	name string
	opts []CallOption
}{
	{"fused", nil},
	{"fused,recompute=none", []CallOption{WithRecompute(RecomputeNone)}},
	{"fused,recompute=all", []CallOption{WithRecompute(RecomputeAll)}},
	{"composed", []CallOption{WithComposed()}},
}

// BenchmarkBlock compares the forms of a block, forward and in training, for one block and for a stack, in which the values kept for the
// backward pass add up. MB-held is the memory that the graph, the machine and the workspace hold at the end. Run one form at a time to measure
// it, since the workspace is not freed at once.
func BenchmarkBlock(b *testing.B) {
	for _, size := range []struct{ batch, length, width, layers int }{{1, 512, 768, 1}, {8, 512, 256, 4}, {1, 1, 768, 1}} {
		stack := NewMambaStack(Config{DModel: size.width, NLayer: size.layers})
		r := rand.New(rand.NewPCG(1, 1))
		x := normal(r, size.batch*size.length*size.width)
		for _, train := range []bool{false, true} {
			what := "forward"
			if train {
				what = "train"
			}
			for _, form := range forms {
				if !train && len(form.opts) > 0 && form.name != "composed" {
					continue
				}
				name := fmt.Sprintf("B=%d,L=%d,d_model=%d,layers=%d/%s/%s", size.batch, size.length, size.width, size.layers, what, form.name)
				b.Run(name, func(b *testing.B) {
					before := live()
					g := G.NewGraph()
					in := leaf(g, "x", tensor.Float32, x, size.batch, size.length, size.width)
					y := G.Must(stack.Apply(in, form.opts...))
					if train {
						if _, err := G.Grad(G.Must(G.Sum(y)), stack.Params().Nodes(g)...); err != nil {
							b.Fatal(err)
						}
					}
					m := G.NewTapeMachine(g)
					defer m.Close()
					b.ReportAllocs()
					benchtest.Processors(b)
					for b.Loop() {
						if err := m.RunAll(); err != nil {
							b.Fatal(err)
						}
						m.Reset()
					}
					b.ReportMetric(float64(live()-before)/1e6, "MB-held")
				})
			}
		}
	}
}

// live returns the number of bytes in use on the heap.
func live() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// BenchmarkSample is the choice of a token among 50,280, on one processor, from logits of a normal distribution with this deviation.
func BenchmarkSample(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	logits, seen, chosen := make([]float32, 50280), tokenSet{}, map[int]int{}
	for range 1000 {
		token := r.IntN(len(logits))
		seen.add(token)
		chosen[token]++
	}
	for _, deviation := range []float64{1, 4} {
		for i := range logits {
			logits[i] = float32(deviation * r.NormFloat64())
		}
		for _, c := range []struct {
			name string
			Sampling
		}{
			{"temperature", Sampling{}}, {"top-p", Sampling{TopP: 0.9}}, {"top-k", Sampling{TopK: 50}}, {"min-p", Sampling{MinP: 0.05}},
			{"penalties", Sampling{RepetitionPenalty: 1.1, PresencePenalty: 0.5, FrequencyPenalty: 0.1}},
		} {
			b.Run(fmt.Sprintf("%s/deviation=%v", c.name, deviation), func(b *testing.B) {
				s, random := &sampler{Sampling: c.Sampling}, rand.NewPCG(3, 4)
				s.Temperature = 0.8
				b.ReportAllocs()
				benchtest.Processors(b)
				for b.Loop() {
					if _, err := choose(s, logits, seen, chosen, random); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
