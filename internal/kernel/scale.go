package kernel

import "github.com/gomamba/mamba/internal/work"

// Scale writes y = by·weight·x, where x is rows of len(weight) elements, or y = by·x if weight is nil.
func Scale[T Float](y, x, weight []T, by T) {
	n := max(len(weight), 1)
	work.ParallelRange(len(x)/n, max(piece/n, 1), func(from, to int) {
		for r := from; r < to; r++ {
			for i, v := range x[r*n : (r+1)*n] {
				if v *= by; weight != nil {
					v *= weight[i]
				}
				y[r*n+i] = v
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
