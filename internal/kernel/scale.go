package kernel

import "github.com/gomamba/mamba/internal/work"

// Scale writes y = by·weight·x, where x is rows of len(weight) elements, or y = by·x if weight is nil.
func Scale[T Float](y, x, weight []T, by T) {
	if weight == nil {
		work.ParallelRange(len(x), piece, func(from, to int) {
			y := y[from:to]
			for i, v := range x[from:to] {
				y[i] = by * v
			}
		})
		return
	}
	n := len(weight)
	work.ParallelRange(len(x)/n, max(piece/n, 1), func(from, to int) {
		for r := from; r < to; r++ {
			y := y[r*n : (r+1)*n]
			for i, v := range x[r*n : (r+1)*n] {
				y[i] = by * weight[i] * v
			}
		}
	})
}

// ScaleBackward writes the gradients of Scale's operands from the gradient dy of its result. dweight is nil if weight is.
func ScaleBackward[T Float](dx, dweight, dy, x, weight []T, by T) {
	if weight != nil {
		work.ParallelRange(len(x), piece, func(from, to int) {
			for i, v := range x[from:to] {
				dx[from+i] = by * v * dy[from+i] // temporarily the gradient of weight, row by row
			}
		})
		sumRows(dweight, dx)
	}
	Scale(dx, dy, weight, by)
}
