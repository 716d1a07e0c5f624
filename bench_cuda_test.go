package mamba_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/train"
)

// hybrid is a model of 12 layers: two Mamba blocks, attention with a window, and a gated MLP, three times.
var hybrid = nn.LMConfig{
	Config: nn.Config{DModel: 768, NLayer: 12, Pattern: []nn.Kind{nn.Mamba, nn.Mamba, nn.Attention, nn.SwiGLU}, NHead: 12, Window: 512}, Vocab: 50277,
}

// BenchmarkCUDATraining measures a whole training step of a language model on a GPU, run by a Gorgonia graph: uploading the tokens, the forward
// and backward pass, AdamW, and downloading the loss. It reports the median time and the device's memory. The rows "queue" use AdamW.Queue.
func BenchmarkCUDATraining(b *testing.B) {
	for _, m := range []struct {
		name          string
		cfg           nn.LMConfig
		batch, length int
	}{
		{"130M/B8L1024", nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50277}, 8, 1024},
		{"hybrid/B8L1024", hybrid, 8, 1024},
		{"small/B64L256", nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 16}, 64, 256},
		{"small/B64L4096", nn.LMConfig{Config: nn.Config{DModel: 64, NLayer: 2}, Vocab: 16}, 64, 4096},
		{"2.8B/B1L2048", nn.LMConfig{Config: nn.Config{DModel: 2560, NLayer: 64}, Vocab: 50277}, 1, 2048},
	} {
		precisions := []cuda.Precision{cuda.Strict, cuda.FP16x3, cuda.TF32, cuda.BF16}
		if m.name == "2.8B/B1L2048" {
			precisions = precisions[3:] // weights, gradients and moments take 50 GB; the host needs 45 GB
		}
		for _, p := range precisions {
			b.Run(m.name+"/"+p.String(), func(b *testing.B) { benchTraining(b, m.cfg, m.batch, m.length, p, (*train.AdamW).Step) })
			if m.cfg.DModel <= 64 { // steps so short that the device waits for the program
				b.Run(m.name+"/"+p.String()+"/queue", func(b *testing.B) { benchTraining(b, m.cfg, m.batch, m.length, p, (*train.AdamW).Queue) })
			}
		}
	}
}

func benchTraining(b *testing.B, cfg nn.LMConfig, batch, length int, p cuda.Precision, update func(*train.AdamW, []G.ValueGrad) error) {
	d := gputest.Open(b, cuda.Open)
	if testing.Short() && cfg.DModel > 1024 {
		b.Skip("the model has 2.8 billion weights, and -short is set")
	}
	lm := nn.NewLM(cfg, nn.OnDevice(d), nn.WithPrecision(p))
	g := G.NewGraph()
	ints := func(name string, step int) *G.Node {
		v := make([]int, batch*length)
		for i := range v {
			v[i] = i * step % cfg.Vocab
		}
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, length), tensor.WithBacking(v)), G.WithName(name))
	}
	loss, err := lm.Loss(ints("ids", 7919), ints("targets", 104729))
	if err != nil {
		b.Fatal(err)
	}
	nodes := lm.Params().Trainable().Nodes(g)
	if _, err := G.Grad(loss, nodes...); err != nil {
		b.Fatal(err)
	}
	op.FreeAfterUse(g)
	vm := G.NewTapeMachine(g, G.BindDualValues(nodes...))
	defer vm.Close()
	solver, err := train.NewAdamW(lm.Params().Trainable(), train.AdamWConfig{LearnRate: 1e-4, Decay: 0.1})
	if err != nil {
		b.Fatal(err)
	}
	model := G.NodesToValueGrads(nodes)
	step := func() {
		vm.Reset()
		if err := vm.RunAll(); err != nil {
			b.Fatal(err)
		}
		if err := update(solver, model); err != nil {
			b.Fatal(err)
		}
	}
	for range 3 {
		step()
	}
	var times []time.Duration
	benchtest.Processors(b)
	for b.Loop() {
		began := time.Now()
		step()
		times = append(times, time.Since(began))
	}
	if err := solver.Wait(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(times)
	used, held := d.Memory()
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1e3, "ms/step")
	b.ReportMetric(float64(held)/(1<<30), "GiB")
	b.ReportMetric(float64(used)/(1<<30), "GiB-between-steps")
}

// BenchmarkCUDAGenerate measures nn.Generator with a model of 130M random parameters on a GPU, and BenchmarkCUDAGenerateHybrid with a hybrid.
func BenchmarkCUDAGenerate(b *testing.B) {
	benchGenerate(b, nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50277})
}

func BenchmarkCUDAGenerateHybrid(b *testing.B) { benchGenerate(b, hybrid) }

func benchGenerate(b *testing.B, cfg nn.LMConfig) {
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		d := gputest.Open(b, cuda.Open)
		measureOnDevice(b, nn.NewLM(cfg, nn.OnDevice(d), nn.WithPrecision(p)), p.String())
	}
}

// measureOnDevice measures tokens/s for several batches and prompts.
func measureOnDevice(b *testing.B, lm *nn.LM, name string) {
	for _, m := range []struct{ batch, prompt, tokens int }{{1, 1, 200}, {8, 1, 200}, {64, 1, 200}, {256, 1, 100}, {1, 1024, 1}, {1, 16384, 1}} {
		b.Run(fmt.Sprintf("%s/batch=%d/prompt=%d/tokens=%d", name, m.batch, m.prompt, m.tokens), func(b *testing.B) {
			g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: m.tokens})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			prompts := make([][]int, m.batch)
			for i := range prompts {
				for j := range m.prompt {
					prompts[i] = append(prompts[i], 7919*(i+j)%50277)
				}
			}
			run := func() {
				if _, err := g.Generate(b.Context(), prompts, nil); err != nil {
					b.Fatal(err)
				}
			}
			run()
			var times []time.Duration
			benchtest.Processors(b)
			for b.Loop() {
				began := time.Now()
				run()
				times = append(times, time.Since(began))
			}
			slices.Sort(times)
			tokens := m.batch * (m.tokens + m.prompt - 1)
			b.ReportMetric(float64(tokens)/times[len(times)/2].Seconds(), "tokens/s")
		})
	}
}

// BenchmarkCUDAGenerateNarrow is BenchmarkCUDAGenerate for a model loaded with narrow weights (checkpoint.Weights). MB-weights is what the model takes of the
// device's memory after the measurements, and MB-held what the device holds then. Each model has a device of its own.
func BenchmarkCUDAGenerateNarrow(b *testing.B) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50277}
	dir := b.TempDir()
	if err := checkpoint.Save(dir, nn.NewLM(cfg)); err != nil {
		b.Fatal(err)
	}
	for _, types := range []string{"int8", "int8+bf16", "bfloat16", "float16", "float32"} {
		d := gputest.Open(b, cuda.Open)
		narrow, rounded := strings.CutSuffix(types, "+bf16")
		options := []nn.Option{checkpoint.Weights(narrow), nn.OnDevice(d)}
		if rounded {
			options = append(options, nn.WithPrecision(cuda.BF16))
		}
		lm, err := checkpoint.Load(dir, options...)
		if err != nil {
			b.Fatal(err)
		}
		measureOnDevice(b, lm, types)
		b.Run(types+"/memory", func(b *testing.B) {
			used, held := d.Memory()
			b.ReportMetric(float64(used)/1e6, "MB-weights")
			b.ReportMetric(float64(held)/1e6, "MB-held")
		})
	}
}

// BenchmarkCUDAFirstToken measures a fresh process until its first token: opening the device, and from then on, with a model that is on the host, the
// upload of the weights, loading the kernels, and one token. Run it alone, once for each process.
func BenchmarkCUDAFirstToken(b *testing.B) {
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		b.Run(p.String(), func(b *testing.B) {
			began := time.Now()
			d := gputest.Open(b, cuda.Open)
			opened := time.Since(began)
			lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 768, NLayer: 24}, Vocab: 50277}, nn.OnDevice(d), nn.WithPrecision(p))
			benchtest.Processors(b)
			for b.Loop() {
				began = time.Now()
				g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 1})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := g.Generate(b.Context(), [][]int{{7919}}, nil); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(opened.Microseconds())/1e3, "ms-to-open")
				b.ReportMetric(float64(time.Since(began).Microseconds())/1e3, "ms-to-first-token")
				g.Close()
			}
		})
	}
}
