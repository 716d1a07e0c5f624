package step

import (
	"fmt"
	"testing"
	"time"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/work"
)

// BenchmarkStep measures a step at batch 1, with a model of the shape of examples/bytelm's, and with one of the shape of the published 130M model, beside the
// time to read all weights once with the same number of processors, in turn. x-stream is the ratio of the medians. The weights are any numbers.
func BenchmarkStep(b *testing.B) {
	for _, m := range []struct{ model, blocks, vocab int }{{64, 2, 256}, {768, 24, 50280}} {
		name := fmt.Sprintf("M=%d/layers=%d/vocab=%d", m.model, m.blocks, m.vocab)
		if m.blocks > 2 && testing.Short() {
			b.Run(name, func(b *testing.B) { b.Skip("its weights are half a gigabyte, and -short is set") })
			continue
		}
		var s *Step // made once for all runs of -count
		var weights [][]float32
		b.Run(name, func(b *testing.B) {
			if s == nil {
				s, weights = anyModel(m.model, m.blocks, m.vocab)
			}
			var steps, readings []time.Duration
			benchtest.Processors(b)
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				s.Read([]int{i % m.vocab})
				s.Commit()
				steps = append(steps, time.Since(start))
				readings = append(readings, benchtest.Read(weights, work.Parallel))
			}
			step, reading := benchtest.Median(steps), benchtest.Median(readings)
			b.ReportMetric(step, "ns/step")
			b.ReportMetric(reading, "ns/reading")
			b.ReportMetric(step/reading, "x-stream")
		})
	}
}

// anyModel returns a step of a model of some sizes, and its weights.
func anyModel(model, blocks, vocab int) (*Step, [][]float32) {
	var all [][]float32
	bits := uint32(1)
	floats := func(n int) []float32 {
		v := make([]float32, n)
		size.HugePages(v) // as the weights of a model have them
		for i := range v {
			bits = bits*1664525 + 1013904223
			v[i] = (float32(bits>>8)/(1<<24) - 0.5) / 16
		}
		all = append(all, v)
		return v
	}
	matrix := func(outputs, inputs int) *blas.Weights {
		w, err := blas.WeightsOf(outputs, inputs, floats(outputs*inputs))
		if err != nil {
			panic(err)
		}
		return w
	}
	c := Config{Batch: 1, Model: model, Channels: 2 * model, State: 16, Width: 4, Rank: (model + 15) / 16, Eps: 1e-5}
	for range blocks {
		c.Blocks = append(c.Blocks, Block{
			InProj: matrix(2*c.Channels, model), XProj: matrix(c.columns(), c.Channels), DtProj: matrix(c.Channels, c.Rank), OutProj: matrix(model, c.Channels),
			Norm: floats(model), ALog: floats(c.Channels * c.State), D: floats(c.Channels), DtBias: floats(c.Channels),
			Conv: floats(c.Channels * c.Width), ConvBias: floats(c.Channels),
		})
	}
	c.Head, c.Norm = matrix(vocab, model), floats(model)
	c.Embedding = c.Head
	return New(c), all
}
