package kernel

import "github.com/gomamba/mamba/internal/work"

// piece is the number of elements of a task of an elementwise kernel: 64 KiB of float32. Smaller tasks are not worth the cost of starting
// them.
const piece = 16384

// pieces returns the number of pieces of at most size elements that n are cut into.
func pieces(n, size int) int { return (n + size - 1) / size }

// Add adds v to sum.
func Add[T Float](sum, v []T) { Sum(sum, sum, v) }

// AddEach adds each of v to one of sums, in one job.
func AddEach[T Float](sums, v [][]T) {
	lengths := make([]int, len(sums))
	for i, s := range sums {
		lengths[i] = len(s)
	}
	work.ParallelRanges(lengths, piece, func(k, from, to int) { sumOf(sums[k][from:to], sums[k][from:to], v[k][from:to]) })
}

// Sum writes a + b to sum.
func Sum[T Float](sum, a, b []T) {
	if work.Alone(pieces(len(sum), piece)) {
		sumOf(sum, a, b)
		return
	}
	work.ParallelRange(len(sum), piece, func(from, to int) { sumOf(sum[from:to], a[from:to], b[from:to]) })
}

// NegExp writes y = -exp(x).
func NegExp[T Float](y, x []T) {
	work.ParallelRange(len(x), piece, func(from, to int) { negExpOf(y[from:to], x[from:to]) })
}

// NegExpBackward writes the gradient of NegExp's operand: dx = -exp(x)·dy.
func NegExpBackward[T Float](dx, dy, x []T) {
	if work.Alone(pieces(len(x), piece)) {
		negExpBack(dx, dy, x)
		return
	}
	work.ParallelRange(len(x), piece, func(from, to int) { negExpBack(dx[from:to], dy[from:to], x[from:to]) })
}

// CopyColumns copies the columns [from, from+width) of x, whose rows have stride elements, to y (rows, width).
func CopyColumns[T Float](y, x []T, stride, from, width int) {
	work.ParallelRange(len(y)/width, max(piece/width, 1), func(first, last int) {
		for r := first; r < last; r++ {
			copy(y[r*width:(r+1)*width], x[r*stride+from:])
		}
	})
}

// ScatterColumns copies y (rows, width) to the columns [from, from+width) of x, whose rows have stride elements. It sets the other
// columns to zero.
func ScatterColumns[T Float](x, y []T, stride, from, width int) {
	work.ParallelRange(len(y)/width, max(piece/stride, 1), func(first, last int) {
		clear(x[first*stride : last*stride])
		for r := first; r < last; r++ {
			copy(x[r*stride+from:], y[r*width:(r+1)*width])
		}
	})
}

// PutColumns copies y (rows, width) to the columns [from, from+width) of x, whose rows have stride elements. The other columns keep their values.
// With one row of y, it is copied to each of the rows.
func PutColumns[T Float](x, y []T, rows, stride, from, width int) {
	each := width
	if len(y) < rows*width {
		each = 0
	}
	work.ParallelRange(rows, max(piece/width, 1), func(first, last int) {
		for r := first; r < last; r++ {
			copy(x[r*stride+from:][:width], y[r*each:])
		}
	})
}

// AddRows writes y = a + b, where b is added to each row of len(b) elements of a.
func AddRows[T Float](y, a, b []T) {
	if len(b) == len(a) {
		Sum(y, a, b)
		return
	}
	n := len(b)
	work.ParallelRange(len(a)/n, max(piece/n, 1), func(from, to int) {
		for at := from * n; at < to*n; at += n {
			sumOf(y[at:at+n], a[at:at+n], b)
		}
	})
}

// SumColumns writes the sum of the columns [from, from+len(sum)) of x over its rows, which have stride elements.
func SumColumns[T Float](sum, x []T, stride, from int) {
	each := work.Borrow[T](len(x) / stride * len(sum))
	defer each.Return()
	CopyColumns(each.Data, x, stride, from, len(sum))
	sumRows(sum, each.Data)
}

// SumRows writes the sum of all rows, each of len(sum) elements. It adds in float64.
func SumRows[T Float](sum, rows []T) { sumRows(sum, rows) }
