package cuda

import (
	"fmt"
	"slices"
	"testing"
)

func BenchmarkGridScan(b *testing.B)         { benchGridScan[float32](b) }
func BenchmarkGridScanBFloat16(b *testing.B) { benchGridScan[BFloat16](b) }

// benchGridScan measures the scans of VMamba-T at 224², batch 128, and at 1024², batch 8, and of SegMamba at 128³, and compares them with copies
// of as many bytes as the operands and the results of a direction have.
func benchGridScan[T Activation](b *testing.B) {
	s := open(b)
	for _, n := range []struct{ batch, height, width, channels, state, directions int }{
		{128, 56, 56, 96, 1, 4}, {128, 28, 28, 192, 1, 4}, {128, 14, 14, 384, 1, 4}, {128, 7, 7, 768, 1, 4}, {8, 256, 256, 96, 1, 4}, {1, 512, 512, 96, 16, 3},
	} {
		name := fmt.Sprintf("B%dH%dW%dC%dN%dK%d", n.batch, n.height, n.width, n.channels, n.state, n.directions)
		cells := n.height * n.width
		var host [][]int32
		for k := range n.directions {
			order := make([]int32, cells)
			for i := range order {
				t := i
				if k >= 2 {
					t = cells - 1 - i
				}
				order[i] = int32(t)
				if k%2 == 1 {
					order[i] = int32(t%n.height*n.width + t/n.height)
				}
			}
			host = append(host, order)
		}
		order := putInts(b, s, slices.Concat(host...))
		rows, all := n.batch*cells, n.directions*n.channels
		b.Run(name, func(b *testing.B) {
			wide := func(n int) Array[T] { return zeros[T](b, s, rows*n) }
			each := func(n int) Array[float32] { return zeros[float32](b, s, n*all) }
			narrow := func() GridProjection[T] { return GridProjection[T]{wide(n.directions * n.state), n.state} }
			g := &GridScan[T]{
				Batch: n.batch, Cells: cells, Channels: n.channels, State: n.state, Directions: n.directions, Order: order, U: wide(n.channels), OneU: true, Merge: true,
				Delta: wide(all), A: each(n.state), ALog: true, B: narrow(), C: narrow(), D: each(1), DeltaBias: each(1), Softplus: true,
			}
			y, checkpoints := zeros[float32](b, s, rows*n.channels), zeros[float32](b, s, g.CheckpointLen())
			b.Run("forward", func(b *testing.B) {
				measure(b, s, 3*rows*all*int(size[T]()), func() error { return g.Forward(s, y, checkpoints) })
			})
			grad := &GridGrad[T]{U: y, Delta: wide(all), B: narrow(), C: narrow(), A: each(n.state), D: each(1), DeltaBias: each(1)}
			dy := wide(n.channels)
			b.Run("backward", func(b *testing.B) {
				measure(b, s, 5*rows*all*int(size[T]()), func() error { return g.Backward(s, checkpoints, dy, grad) })
			})
		})
	}
}
