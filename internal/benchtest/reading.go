package benchtest

import (
	"slices"
	"sync/atomic"
	"time"
	"unsafe"
)

// sink uses the sums, so that the compiler does not remove the reads.
var sink atomic.Uint64

// Read returns how long it takes to read arrays from memory, on all processors: parallel is work.Parallel, whose tests import this package.
func Read(arrays [][]float32, parallel func(n int, task func(i int))) time.Duration {
	const piece = 1 << 17 // words, one megabyte
	var pieces [][]uint64
	for _, v := range arrays {
		if len(v) < 2 {
			continue
		}
		pieces = slices.AppendSeq(pieces, slices.Chunk(unsafe.Slice((*uint64)(unsafe.Pointer(&v[0])), len(v)/2), piece))
	}
	sums := make([]uint64, len(pieces))
	start := time.Now()
	parallel(len(pieces), func(i int) { sums[i] = sum(pieces[i]) })
	took := time.Since(start)
	for _, s := range sums {
		sink.Add(s)
	}
	return took
}

// sum adds a word of each cache line, of eight parts in turn. So it waits only for the memory, and the processor has more lines on the way than in one part: a
// server read about 1.5 times as fast.
func sum(v []uint64) (sum uint64) {
	const line, parts = 8, 8
	n := len(v) / parts
	for i := 0; i < n; i += line {
		sum += v[i] + v[i+n] + v[i+2*n] + v[i+3*n] + v[i+4*n] + v[i+5*n] + v[i+6*n] + v[i+7*n]
	}
	return sum
}

// Median returns the median in nanoseconds.
func Median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds())
}
