package mamba_test

import (
	"fmt"
	"testing"
	"time"

	gonum "gonum.org/v1/gonum/blas"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// BenchmarkSmall measures a training step of train.Trainer with the model of examples/bytelm, as that program trains it. x-products is the time of a step
// divided by the time that its matrix products would take at the rate of a product of 1024³, with the same number of cores. Both times are medians,
// and are measured in turn, a product after every eighth step: it puts 12 MB in the place of what a step finds in the caches, and a training run has none between its steps. They are measured without the benchmark's timer: StopTimer and StartTimer stop all goroutines, and a step would begin with
// waking them.
func BenchmarkSmall(b *testing.B) {
	const batch, length, width, layers, vocab, n = 8, 128, 64, 2, 256, 1024
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: width, NLayer: layers}, Vocab: vocab})
	flop := 3 * batch * length * (layers*productFlop(lm.Config().Config) + 2*width*vocab)
	document := train.Document{Tokens: make([]int, 16*batch*length)}
	for i := range document.Tokens {
		document.Tokens[i] = i * i % vocab
	}
	x, y := make([]float32, n*n), make([]float32, n*n)
	for i := range x {
		x[i] = 1 // pages that were never written are one and the same page, which a cache of AMD's finds by one address at a time
	}
	b.Run(fmt.Sprintf("M=%d/L=%d/B=%d/layers=%d", width, length, batch, layers), func(b *testing.B) {
		var steps, products []time.Duration
		var begin time.Time
		b.ReportAllocs()
		benchtest.Processors(b)
		trainer, err := train.New(lm, train.Config{
			Batch: batch, Length: length, Steps: 1 + b.N, Data: []train.Document{document}, AdamW: train.AdamWConfig{LearnRate: 1e-3},
			Report: func(*train.Curve) {
				if !begin.IsZero() { // the first step does more and is not measured
					steps = append(steps, time.Since(begin))
				}
				if len(steps)%8 == 0 {
					start := time.Now()
					blas.Implementation{}.Sgemm(gonum.NoTrans, gonum.NoTrans, n, n, n, 1, x, n, x, n, 0, y, n)
					products = append(products, time.Since(start))
				}
				if begin.IsZero() {
					b.ResetTimer()
				}
				begin = time.Now()
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := trainer.Run(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		step, rate := benchtest.Median(steps), 2*n*n*n/benchtest.Median(products)
		b.ReportMetric(step, "ns/op")
		b.ReportMetric(batch*length*1e9/step, "tokens/s")
		b.ReportMetric(flop/step, "GFLOP/s")
		b.ReportMetric(step/(flop/rate), "x-products")
		b.ReportMetric(rate, "product-GFLOP/s")
		if err := trainer.Close(); err != nil {
			b.Fatal(err)
		}
	})
}
