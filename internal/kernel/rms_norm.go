package kernel

import "math"

// rmsRows is the number of rows of a task of RMSNorm.
const rmsRows = 64

// RMSNorm is y = x / sqrt(mean(x²) + eps) · weight over rows of the given width (Zhang and Sennrich, "Root Mean Square
// Layer Normalization").
type RMSNorm[T Float] struct {
	Width  int
	Eps    float64
	X      []T // (rows, width)
	Weight []T // (width)
}

// scale returns 1/sqrt(mean(x²) + eps), with the mean taken in float64: no row overflows that its own type can hold.
func (r *RMSNorm[T]) scale(x []T) T {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return T(1 / math.Sqrt(sum/float64(r.Width)+r.Eps))
}

// Forward writes y (rows, width).
func (r *RMSNorm[T]) Forward(y []T) {
	ParallelRange(len(r.X)/r.Width, rmsRows, func(from, to int) {
		for row := from; row < to; row++ {
			x, y := r.X[row*r.Width:(row+1)*r.Width], y[row*r.Width:(row+1)*r.Width]
			s := r.scale(x)
			for i, v := range x {
				y[i] = v * s * r.Weight[i]
			}
		}
	})
}

// Backward writes the gradients of x and the weight. With x̂ = x·s and g = dy·weight, dx = s·(g - x̂·mean(g·x̂)) and
// dweight = Σ dy·x̂ over the rows.
func (r *RMSNorm[T]) Backward(dy, dx, dWeight []T) {
	rows := len(r.X) / r.Width
	part := make([]float64, (rows+rmsRows-1)/rmsRows*r.Width) // each task's sum over its rows
	ParallelRange(rows, rmsRows, func(from, to int) {
		sum := part[from/rmsRows*r.Width:][:r.Width]
		for row := from; row < to; row++ {
			at := row * r.Width
			x, dy, dx := r.X[at:at+r.Width], dy[at:at+r.Width], dx[at:at+r.Width]
			s := r.scale(x)
			var dot float64
			for i, v := range x {
				hat := float64(v * s)
				dot += float64(dy[i]*r.Weight[i]) * hat
				sum[i] += float64(dy[i]) * hat
			}
			mean := T(dot / float64(r.Width))
			for i, v := range x {
				dx[i] = s * (dy[i]*r.Weight[i] - v*s*mean)
			}
		}
	})
	sumBatches(len(part)/r.Width, part, dWeight)
}
