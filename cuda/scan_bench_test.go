package cuda

import (
	"fmt"
	"testing"
)

func BenchmarkScanForward(b *testing.B)          { benchScan[float32](b) }
func BenchmarkScanForwardBFloat16(b *testing.B)  { benchScan[BFloat16](b) }
func BenchmarkScanBackward(b *testing.B)         { benchScanBackward[float32](b) }
func BenchmarkScanBackwardBFloat16(b *testing.B) { benchScanBackward[BFloat16](b) }

// benchScans runs f for the scans of a Mamba block, with the sizes in docs/cuda.md. wide makes an array like U, narrow one like B, and each one
// with a given number of elements per channel.
func benchScans[T Activation](b *testing.B, f func(b *testing.B, s *Stream, scan *Scan[T], wide, narrow func() Array[T], each func(int) Array[float32])) {
	s := open(b)
	const state = 16
	for _, n := range []struct{ batch, channels, length, each int }{ // each: steps of a sequence, or 0 if starts are absent
		{8, 2048, 512, 0}, {8, 2048, 2048, 0}, {8, 2048, 2048, 2048}, {8, 2048, 2048, 300}, {8, 2048, 2048, 40}, {8, 2048, 8192, 0}, {1, 2048, 32768, 0},
		{1, 1536, 2048, 0}, {1, 1536, 2048, 300}, {64, 1536, 512, 0}, {2, 64, 128, 0}, {64, 128, 256, 0}, {64, 128, 4096, 0}, {8, 1536, 1024, 0},
		{1, 768, 2048, 0}, {2, 1536, 2048, 0}, {1, 5120, 2048, 0},
	} {
		name := fmt.Sprintf("B%dD%dL%d", n.batch, n.channels, n.length)
		if n.each > 0 {
			name += fmt.Sprintf("/starts=%d", n.each)
		}
		b.Run(name, func(b *testing.B) {
			rows := n.batch * n.length
			wide := func() Array[T] { return zeros[T](b, s, rows*n.channels) }
			narrow := func() Array[T] { return zeros[T](b, s, rows*state) }
			each := func(count int) Array[float32] { return zeros[float32](b, s, count*n.channels) }
			var start Array[uint8]
			if n.each > 0 {
				start = startsEvery(b, s, rows, n.each)
			}
			f(b, s, &Scan[T]{
				Batch: n.batch, Length: n.length, Channels: n.channels, State: state, U: wide(), Delta: wide(), A: each(state), ALog: true,
				B: Projection[T]{Data: narrow(), Groups: 1}, C: Projection[T]{Data: narrow(), Groups: 1},
				D: each(1), Z: wide(), DeltaBias: each(1), Softplus: true, Start: start,
			}, wide, narrow, each)
		})
	}
}

// startsEvery returns starts of sequences of each steps.
func startsEvery(b *testing.B, s *Stream, rows, each int) Array[uint8] {
	marks := make([]uint8, rows)
	for i := 0; i < rows; i += each {
		marks[i] = 1
	}
	return putInts(b, s, marks)
}

// benchScan measures the scan of a Mamba block without checkpoints, and compares it with a copy of as many bytes.
func benchScan[T Activation](b *testing.B) {
	benchScans(b, func(b *testing.B, s *Stream, scan *Scan[T], wide, _ func() Array[T], _ func(int) Array[float32]) {
		y := wide()
		forward := func() error { return scan.Forward(s, y, Array[float32]{}, Array[float32]{}) }
		measure(b, s, (4*scan.U.n+2*scan.B.Data.n)*int(size[T]()), forward)
		measureQueued(b, s, forward)
	})
}

// benchScanBackward measures the gradients of the scan of a Mamba block, with the sums over batch and channels, and compares them with a copy
// of as many bytes.
func benchScanBackward[T Activation](b *testing.B) {
	benchScans(b, func(b *testing.B, s *Stream, scan *Scan[T], wide, narrow func() Array[T], each func(int) Array[float32]) {
		grad := ScanGrad[T]{
			U: wide(), Delta: wide(), B: narrow(), C: narrow(), Z: wide(), A: each(scan.State), D: each(1), DeltaBias: each(1),
		}
		dy, checkpoints := wide(), zeros[float32](b, s, scan.CheckpointLen())
		do(b, scan.Forward(s, wide(), Array[float32]{}, checkpoints))
		backward := func() error { return scan.Backward(s, checkpoints, dy, Array[float32]{}, &grad) }
		measure(b, s, (7*scan.U.n+4*scan.B.Data.n)*int(size[T]())+4*scan.CheckpointLen(), backward)
		measureQueued(b, s, backward)
	})
}
