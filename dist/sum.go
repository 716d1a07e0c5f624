package dist

import (
	"unsafe"

	"github.com/gomamba/mamba/cuda"
)

// Number of bytes that reduceScatter receives from all ranks together in a round: enough that the time of a message does not count, and little enough to stay in
// a cache of the second or third level.
const roundBytes = 4 << 20

// reduceScatter writes to own the sum over all ranks of part Rank of data.
func reduceScatter[T Float](g *Group, own, data []T, cut func(i int) int) error {
	var one T
	size, n, me := int(unsafe.Sizeof(one)), g.Size(), g.Rank()
	longest := 0
	for r := range n {
		longest = max(longest, cut(r+1)-cut(r))
	}
	piece := max(roundBytes/size/n, 1024)
	if g.pieceForTests > 0 {
		piece = g.pieceForTests
	}
	piece = min(piece, longest)
	if len(g.scratch) < piece*size*n {
		g.scratch = make([]byte, piece*size*n)
	}
	for from := 0; from < longest; from += piece {
		within := func(rank int) (lo, hi int) { // of this round, in part rank
			return min(cut(rank)+from, cut(rank+1)), min(cut(rank)+from+piece, cut(rank+1))
		}
		lo, hi := within(me)
		parts := make([][]T, n)
		for r := range n {
			parts[r] = unsafe.Slice((*T)(unsafe.Pointer(&g.scratch[r*piece*size])), piece)[:hi-lo]
		}
		parts[me] = data[lo:hi]
		if err := g.move(g.each(
			func(to int) []byte { lo, hi := within(to); return bytesOf(data[lo:hi]) },
			func(rank int) []byte { return bytesOf(parts[rank]) },
		)); err != nil {
			return err
		}
		sum(own[lo-cut(me):][:hi-lo], parts)
	}
	return nil
}

// sum writes parts[0] + parts[1] + … to dst, which may be one of them.
func sum[T Float](dst []T, parts [][]T) {
	switch d := any(dst).(type) {
	case []BFloat16:
		sumBFloat16(d, any(parts).([][]BFloat16))
	case []float32:
		sumBlocks(d, any(parts).([][]float32))
	case []float64:
		sumBlocks(d, any(parts).([][]float64))
	}
}

const sumBlock = 512

func sumBlocks[T float32 | float64](dst []T, parts [][]T) {
	var total [sumBlock]T
	for from := 0; from < len(dst); from += sumBlock {
		d := dst[from:min(from+sumBlock, len(dst))]
		t := total[:len(d)]
		copy(t, parts[0][from:])
		for _, p := range parts[1:] {
			addTo(t, p[from:][:len(t)])
		}
		copy(d, t)
	}
}

// addTo adds p to t. Eight elements in a round take 0.6 of the time of a loop over single ones, whose speed also depends on where the linker puts it.
func addTo[T float32 | float64](t, p []T) {
	for len(t) >= 8 && len(p) >= 8 {
		a, b := (*[8]T)(t), (*[8]T)(p)
		a[0] += b[0]
		a[1] += b[1]
		a[2] += b[2]
		a[3] += b[3]
		a[4] += b[4]
		a[5] += b[5]
		a[6] += b[6]
		a[7] += b[7]
		t, p = t[8:], p[8:]
	}
	for i := range t {
		t[i] += p[i]
	}
}

func sumBFloat16(dst []BFloat16, parts [][]BFloat16) {
	for i := range dst {
		total := parts[0][i].Float32()
		for _, p := range parts[1:] {
			total += p[i].Float32()
		}
		dst[i] = cuda.ToBFloat16(total)
	}
}
