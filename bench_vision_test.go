package mamba_test

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

// BenchmarkCUDAVision measures VMamba-T on a GPU: inference, and whole training steps with the forward and the backward pass and AdamW. The images
// are on the GPU. It reports the median time, images per second and the device's memory.
func BenchmarkCUDAVision(b *testing.B) {
	for _, n := range []struct{ size, batch int }{{224, 128}, {1024, 8}} {
		for _, training := range []bool{false, true} {
			for _, p := range []cuda.Precision{cuda.BF16, cuda.TF32} {
				b.Run(fmt.Sprintf("VMamba-T/%d/B%d/training=%t/%v", n.size, n.batch, training, p), func(b *testing.B) {
					benchVision(b, n.size, n.batch, training, p)
				})
			}
		}
	}
}

func benchVision(b *testing.B, size, batch int, training bool, p cuda.Precision) {
	d := gputest.Open(b, cuda.Open)
	m := vision.NewVMamba(vision.VMambaTiny(), layer.OnDevice(d), layer.WithPrecision(p))
	if err := m.Err(); err != nil {
		b.Fatal(err)
	}
	pixels := make([]float32, batch*size*size*3)
	for i := range pixels {
		pixels[i] = float32(i%255)/255 - 0.5
	}
	images := layer.NewParam("images", tensor.New(tensor.WithShape(batch, size, size, 3), tensor.WithBacking(pixels)), false)
	if err := (layer.Params{images}).ToDevice(m.Params().Place()); err != nil {
		b.Fatal(err)
	}
	g := G.NewGraph()
	logits, err := m.Apply(images.Node(g))
	if err != nil {
		b.Fatal(err)
	}
	targets := make([]int, batch)
	for i := range targets {
		targets[i] = i * 7919 % 1000
	}
	loss, err := op.CrossEntropy(logits, G.NodeFromAny(g, tensor.New(tensor.WithShape(batch), tensor.WithBacking(targets)), G.WithName("targets")), -1)
	if err != nil {
		b.Fatal(err)
	}
	var value G.Value
	G.Read(loss, &value)
	nodes := m.Params().Nodes(g)
	var options []G.VMOpt
	if training {
		if _, err := G.Grad(loss, nodes...); err != nil {
			b.Fatal(err)
		}
		options = append(options, G.BindDualValues(nodes...))
	}
	op.FreeAfterUse(g)
	vm := G.NewTapeMachine(g, options...)
	defer vm.Close()
	solver, err := train.NewAdamW(m.Params(), train.AdamWConfig{LearnRate: 1e-4, Decay: 0.1})
	if err != nil {
		b.Fatal(err)
	}
	step := func() {
		vm.Reset()
		if err := vm.RunAll(); err != nil {
			b.Fatal(err)
		}
		if training {
			if err := solver.Step(G.NodesToValueGrads(nodes)); err != nil {
				b.Fatal(err)
			}
		}
	}
	for range 4 {
		step()
	}
	var times []time.Duration
	benchtest.Processors(b)
	for b.Loop() {
		began := time.Now()
		step()
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	median := times[len(times)/2].Seconds()
	used, held := d.Memory()
	b.ReportMetric(median*1e3, "ms/step")
	b.ReportMetric(float64(batch)/median, "images/s")
	b.ReportMetric(float64(held)/(1<<30), "GiB")
	b.ReportMetric(float64(used)/(1<<30), "GiB-between-steps")
	b.Logf("loss %v, launches %+v", value, d.Launches())
}
