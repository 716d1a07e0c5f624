package vision_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

// images returns a node with a batch of images, or volumes, at a place.
func images(tb testing.TB, g *G.ExprGraph, at op.Place, shape ...int) *G.Node {
	tb.Helper()
	p := layer.Params{layer.NewParam("images", tensor.New(tensor.WithShape(shape...), tensor.WithBacking(G.Gaussian(0, 1)(tensor.Float32, shape...))), false)}
	if !at.OnHost() {
		if err := p.ToDevice(at); err != nil {
			tb.Fatal(err)
		}
	}
	return p[0].Node(g)
}

// BenchmarkCUDATraining measures a whole training step on a GPU (forward and backward pass, AdamW, the loss on the host), and BenchmarkCUDAInference a
// forward pass. The images are on the GPU. BenchmarkCUDAVision in the root measures VMamba-T. They report the median of images per second and the device's memory.
func BenchmarkCUDATraining(b *testing.B) { benchDevice(b, true) }

func BenchmarkCUDAInference(b *testing.B) { benchDevice(b, false) }

func benchDevice(b *testing.B, training bool) {
	unet := func(opts ...layer.Option) network {
		cfg := vision.MambaUNet3DBase(4)
		cfg.Channels = 4
		return vision.NewMambaUNet(cfg, opts...)
	}
	for _, m := range []struct {
		name  string
		make  func(opts ...layer.Option) network
		shape []int
	}{
		{"Vim-Ti/224/B128", func(opts ...layer.Option) network { return vision.NewVim(vision.VimTiny(), opts...) }, []int{128, 224, 224, 3}},
		{"VM-UNet/256/B32", func(opts ...layer.Option) network { return vision.NewMambaUNet(vision.MambaUNetTiny(9), opts...) }, []int{32, 256, 256, 3}},
		{"SegMamba/128/B1", unet, []int{1, 128, 128, 128, 4}},
	} {
		b.Run(m.name, func(b *testing.B) {
			if testing.Short() {
				b.Skip("the model needs a large GPU, and -short is set")
			}
			d := gputest.Open(b, cuda.Open)
			model := m.make(layer.OnDevice(d), layer.WithPrecision(cuda.BF16), layer.WithSeed(1))
			if err := model.Err(); err != nil {
				b.Fatal(err)
			}
			g := G.NewGraph()
			y, err := model.Apply(images(b, g, model.Params().Place(), m.shape...))
			if err != nil {
				b.Fatal(err)
			}
			params := model.Params()
			step := func(vm G.VM) error { return vm.RunAll() }
			var options []G.VMOpt
			if training {
				targets := make([]int, y.Shape().TotalSize()/y.Shape()[y.Dims()-1])
				n := G.NodeFromAny(g, tensor.New(tensor.WithShape(y.Shape()[:y.Dims()-1]...), tensor.WithBacking(targets)), G.WithName("targets"))
				loss, err := op.CrossEntropy(y, n, -100)
				if err != nil {
					b.Fatal(err)
				}
				nodes := params.Nodes(g)
				if _, err := G.Grad(loss, nodes...); err != nil {
					b.Fatal(err)
				}
				solver, err := train.NewAdamW(params, train.AdamWConfig{LearnRate: 1e-4, Decay: 0.05})
				if err != nil {
					b.Fatal(err)
				}
				options = []G.VMOpt{G.BindDualValues(nodes...)}
				gradients := G.NodesToValueGrads(nodes)
				step = func(vm G.VM) error {
					if err := vm.RunAll(); err != nil {
						return err
					}
					return solver.Step(gradients)
				}
			}
			op.FreeAfterUse(g)
			vm := G.NewTapeMachine(g, options...)
			defer vm.Close()
			run := func() time.Duration {
				vm.Reset()
				began := time.Now()
				err := step(vm)
				if err == nil {
					err = params.Place().Do((*cuda.Stream).Synchronize)
				}
				if err != nil {
					b.Fatal(err)
				}
				return time.Since(began)
			}
			for range 3 {
				run()
			}
			var times []time.Duration
			benchtest.Processors(b)
			for b.Loop() {
				times = append(times, run())
			}
			slices.Sort(times)
			_, held := d.Memory()
			median := times[len(times)/2].Seconds()
			b.ReportMetric(1e3*median, "ms/step")
			b.ReportMetric(float64(m.shape[0])/median, "images/s")
			b.ReportMetric(float64(held)/(1<<30), "GiB")
		})
	}
}

// BenchmarkVim measures the forward pass of a Vim of Vim-Ti's size on one image of 224 by 224 on the host, and, as "products", that of its matrix products
// alone: in_proj, x_proj, dt_proj and out_proj of both directions of 24 layers on 197 tokens, and the patch embedding.
func BenchmarkVim(b *testing.B) {
	run := func(b *testing.B, g *G.ExprGraph) {
		op.ReuseResults(g)
		vm := G.NewTapeMachine(g)
		defer vm.Close()
		benchtest.Processors(b)
		for b.Loop() {
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("model", func(b *testing.B) {
		m := vision.NewVim(vision.VimTiny(), layer.WithSeed(1))
		g := G.NewGraph()
		if _, err := m.Apply(images(b, g, op.Place{}, 1, 224, 224, 3)); err != nil {
			b.Fatal(err)
		}
		run(b, g)
	})
	b.Run("products", func(b *testing.B) {
		g := G.NewGraph()
		product := func(name string, x *G.Node, out int) *G.Node {
			in := x.Shape()[x.Dims()-1]
			w := layer.NewLinear(layer.LinearConfig{In: in, Out: out}, layer.WithName(name))
			y, err := w.Apply(x)
			if err != nil {
				b.Fatal(err)
			}
			return y
		}
		const tokens, dim, inner, rank, state = 197, 192, 384, 12, 16
		product("patches", images(b, g, op.Place{}, 1, 196, 768), dim)
		stream, wide, low := images(b, g, op.Place{}, 1, tokens, dim), images(b, g, op.Place{}, 1, tokens, inner), images(b, g, op.Place{}, 1, tokens, rank)
		for i := range 24 {
			product(fmt.Sprint("in_proj", i), stream, 2*inner)
			for d := range 2 {
				product(fmt.Sprint("x_proj", i, d), wide, rank+2*state)
				product(fmt.Sprint("dt_proj", i, d), low, inner)
			}
			product(fmt.Sprint("out_proj", i), wide, dim)
		}
		run(b, g)
	})
}
