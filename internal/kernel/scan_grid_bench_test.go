package kernel

import (
	"fmt"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/work"
)

// BenchmarkGridScan measures a scan over an image in the four directions of VMamba, at the sizes of the first stage of VMamba-T. ns/tdn is the
// least time per cell, direction's channel and state. x-read is that time divided by the least time in which the same number of cores reads as
// many bytes as all operands and results have, which is the floor. The image is small, so that the least time is that of a run that no other
// program interrupts.
func BenchmarkGridScan(b *testing.B) {
	const side, directions = 56, 4
	for _, state := range []int{1, 2, 4, 8, 16} {
		c := scanCase{batch: 1, length: side * side, channels: directions * 96, state: state, bGroups: directions, cGroups: directions,
			directions: directions, oneU: true, merge: true, d: true, bias: true, softplus: true}
		s := convert[float32](c.make64(1))
		for k, order := range s.Orders {
			for i := range order {
				at := i
				if k >= 2 { // backward
					at = len(order) - 1 - i
				}
				if k%2 == 1 { // by columns
					at = at%side*side + at/side
				}
				order[i] = int32(at)
			}
		}
		y, g := make([]float32, len(s.U)), s.newGrad()
		once := len(s.U) + len(s.Delta) + len(s.B.Data) + len(s.C.Data)
		for _, pass := range []struct {
			name    string
			numbers int // of all operands and results
			run     func()
		}{
			{"forward", once + len(y), func() { s.Forward(y, nil) }},
			{"backward", 2*once + len(y), func() { s.Backward(y, nil, g) }},
		} {
			b.Run(fmt.Sprintf("N=%d/%s", state, pass.name), func(b *testing.B) {
				benchtest.Processors(b)
				memory := make([]float32, pass.numbers)
				for i := range memory { // memory that was never written is one page
					memory[i] = 1
				}
				least := func(d *float64, f func()) {
					from := time.Now()
					f()
					if took := float64(time.Since(from)); *d == 0 || took < *d {
						*d = took
					}
				}
				var took, reading float64
				benchtest.Processors(b)
				for b.Loop() {
					least(&took, pass.run)
					least(&reading, func() {
						work.ParallelRange(len(memory), 1<<16, func(from, to int) { squares(memory[from:to]) })
					})
				}
				b.ReportMetric(took/float64(len(s.Delta)*state), "ns/tdn")
				b.ReportMetric(took/reading, "x-read")
				b.ReportMetric(4*float64(len(memory))/reading, "read-GB/s")
			})
		}
	}
}
