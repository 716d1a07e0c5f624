package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// normRows is the number of rows of a task of RMSNorm and LayerNorm.
const normRows = 64

// RMSNorm is y = x / sqrt(mean(x²) + eps) · weight over rows of the given number of channels (Zhang and Sennrich, "Root Mean Square
// Layer Normalization").
type RMSNorm[T Float] struct {
	Channels int
	Eps      float64
	X        []T // (rows, channels)
	Weight   []T // (channels)
}

// scale returns 1/sqrt(mean(x²) + eps). The mean is in float64, so that the squares of large float32 do not overflow.
func (r *RMSNorm[T]) scale(x []T) T { return T(1 / math.Sqrt(squares(x)/float64(r.Channels)+r.Eps)) }

// Forward writes y (rows, channels).
func (r *RMSNorm[T]) Forward(y []T) {
	rows := len(r.X) / r.Channels
	if work.Alone(pieces(rows, normRows)) {
		r.ForwardRows(y, 0, rows)
		return
	}
	work.ParallelRange(rows, normRows, func(from, to int) { r.ForwardRows(y, from, to) })
}

// ForwardRows writes the rows [from, to) of y. It starts no goroutine.
func (r *RMSNorm[T]) ForwardRows(y []T, from, to int) {
	if y32, ok := asm32(y); ok && from < to && r.Channels > 0 {
		r.rows32(y32, to-from, from*r.Channels)
		return
	}
	for row := from; row < to; row++ {
		x, y := r.X[row*r.Channels:(row+1)*r.Channels], y[row*r.Channels:(row+1)*r.Channels]
		norm(y, x, r.Weight, r.scale(x))
	}
}

// Backward writes the gradients of x and the weight, from the gradient dy of y. With x̂ = x·s and g = dy·weight,
//
//	dx = s·(g - x̂·mean(g·x̂))
//	dweight = Σ dy·x̂ over the rows
//
// The sum is in T over the rows of a task, and in float64 over the tasks.
func (r *RMSNorm[T]) Backward(dy, dx, dWeight []T) {
	rows := len(r.X) / r.Channels
	tasks := pieces(rows, normRows)
	part := work.Borrow[T](tasks * r.Channels) // each task's sum over its rows
	defer part.Return()
	if sums := part.Data; work.Alone(tasks) {
		for i := range tasks {
			r.backRows(sums, dy, dx, i*normRows, min((i+1)*normRows, rows))
		}
	} else {
		work.ParallelRange(rows, normRows, func(from, to int) { r.backRows(sums, dy, dx, from, to) })
	}
	sumRows(dWeight, part.Data)
}

func (r *RMSNorm[T]) backRows(sums, dy, dx []T, from, to int) {
	sum := sums[from/normRows*r.Channels:][:r.Channels]
	clear(sum)
	if sum32, ok := asm32(sum); ok && r.Channels > 0 {
		r.backRows32(sum32, any(dy).([]float32), any(dx).([]float32), to-from, from*r.Channels)
		return
	}
	for row := from; row < to; row++ {
		at := row * r.Channels
		x, dy, dx := r.X[at:at+r.Channels], dy[at:at+r.Channels], dx[at:at+r.Channels]
		s := r.scale(x)
		dot := normSums(sum, dy, x, r.Weight, s)
		normBack(dx, dy, x, r.Weight, s, T(dot/float64(r.Channels)))
	}
}
