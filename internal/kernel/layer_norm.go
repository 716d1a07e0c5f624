package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// LayerNorm is y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias over rows of the given number of channels, with the variance of all
// numbers of a row, divided by their count (Ba et al., "Layer Normalization").
type LayerNorm[T Float] struct {
	Channels     int
	Eps          float64
	X            []T // (rows, channels)
	Weight, Bias []T // (channels), or nil for ones and for zeros
}

// centred writes c = x - mean(x) and returns 1/sqrt(var(x) + eps). The variance is the mean of c², so that a large mean costs no digits.
func (n *LayerNorm[T]) centred(c, x []T) T {
	centre(c, x, sumOfAll(x)/float64(n.Channels))
	return T(1 / math.Sqrt(squares(c)/float64(n.Channels)+n.Eps))
}

// weight returns the weight, or ones that the caller returns to the workspace.
func (n *LayerNorm[T]) weight() (w []T, ones work.Space[T]) {
	if n.Weight != nil {
		return n.Weight, ones
	}
	ones = work.Borrow[T](n.Channels)
	fill(ones.Data, 1)
	return ones.Data, ones
}

// Forward writes y (rows, channels).
func (n *LayerNorm[T]) Forward(y []T) {
	w, ones := n.weight()
	defer ones.Return()
	work.ParallelRange(len(n.X)/n.Channels, normRows, func(from, to int) {
		for row := from; row < to; row++ {
			x, y := n.X[row*n.Channels:(row+1)*n.Channels], y[row*n.Channels:(row+1)*n.Channels]
			norm(y, y, w, n.centred(y, x))
			if n.Bias != nil {
				sumOf(y, y, n.Bias)
			}
		}
	})
}

// Backward writes the gradients of x, the weight and the bias, from the gradient dy of y. With x̂ = (x - mean)·s and g = dy·weight,
//
//	dx = s·(g - mean(g) - x̂·mean(g·x̂))
//	dweight = Σ dy·x̂,  dbias = Σ dy  over the rows
//
// The sums over rows are in T within a task, and in float64 over the tasks. The gradient of an absent operand is nil.
func (n *LayerNorm[T]) Backward(dy, dx, dWeight, dBias []T) {
	rows, channels := len(n.X)/n.Channels, n.Channels
	w, ones := n.weight()
	defer ones.Return()
	tasks := (rows + normRows - 1) / normRows
	parts := work.Borrow[T](2 * tasks * channels) // each task's sums over its rows: those of the weight, then those of the bias
	defer parts.Return()
	weights, biases := parts.Data[:tasks*channels], parts.Data[tasks*channels:]
	work.ParallelRange(rows, normRows, func(from, to int) {
		at := from / normRows * channels
		weight, bias := weights[at:at+channels], biases[at:at+channels]
		clear(weight)
		clear(bias)
		c := work.Borrow[T](channels)
		defer c.Return()
		for at := from * channels; at < to*channels; at += channels {
			dy, dx := dy[at:at+channels], dx[at:at+channels]
			s := n.centred(c.Data, n.X[at:at+channels])
			mean := dotOf(dy, w) / float64(channels)
			dot := normSums(weight, dy, c.Data, w, s)
			sumOf(bias, bias, dy)
			normBack(dx, dy, c.Data, w, s, T(dot/float64(channels)))
			centre(dx, dx, float64(s)*mean)
		}
	})
	if dWeight != nil {
		sumRows(dWeight, weights)
	}
	if dBias != nil {
		sumRows(dBias, biases)
	}
}

func fill[T Float](x []T, v T) {
	for i := range x {
		x[i] = v
	}
}
