package kernel

// piece is the number of elements of a task of an elementwise kernel: 64 KiB of float32, enough to be worth a hand-over.
const piece = 16384

// Add adds v to sum.
func Add[T Float](sum, v []T) { Sum(sum, sum, v) }

// Sum writes a + b.
func Sum[T Float](sum, a, b []T) {
	ParallelRange(len(sum), piece, func(from, to int) { sumOf(sum[from:to], a[from:to], b[from:to]) })
}

// NegExp writes -exp(x).
func NegExp[T Float](y, x []T) {
	ParallelRange(len(x), piece, func(from, to int) { negExpOf(y[from:to], x[from:to]) })
}

// NegExpBackward writes the gradient of x: that of y times y.
func NegExpBackward[T Float](dx, dy, x []T) {
	ParallelRange(len(x), piece, func(from, to int) { negExpBack(dx[from:to], dy[from:to], x[from:to]) })
}

// CopyColumns copies the columns [from, from+width) of x, rows of the given stride, to y, rows of width.
func CopyColumns[T Float](y, x []T, stride, from, width int) {
	ParallelRange(len(y)/width, max(piece/width, 1), func(first, last int) {
		for r := first; r < last; r++ {
			copy(y[r*width:(r+1)*width], x[r*stride+from:])
		}
	})
}

// ScatterColumns writes x, rows of the given stride: the columns [from, from+width) from y, rows of width, the others
// zero.
func ScatterColumns[T Float](x, y []T, stride, from, width int) {
	ParallelRange(len(y)/width, max(piece/stride, 1), func(first, last int) {
		clear(x[first*stride : last*stride])
		for r := first; r < last; r++ {
			copy(x[r*stride+from:], y[r*width:(r+1)*width])
		}
	})
}
