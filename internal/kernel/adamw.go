package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// AdamW is one step of Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
// algorithm 2), for each element w of a weight with gradient g:
//
//	g = Scale·g
//	m = Beta1·m + Rest1·g
//	v = Beta2·v + Rest2·g²
//	w = Keep·w - Rate·m / (√v·Root + Eps)
//
// Then it clears the gradient. The caller computes the other fields in float64: Rest1 = 1-Beta1 and Rest2 = 1-Beta2, which would
// lose digits if they were computed from Beta1 and Beta2 in T; Rate = learning rate / (1-Beta1^t) and Root = 1/√(1-Beta2^t), which
// correct for moments that start at zero; Keep = 1 - learning rate · decay.
type AdamW[T Float] struct {
	Scale, Beta1, Rest1, Beta2, Rest2, Rate, Root, Eps, Keep T
}

// Step updates w, m and v and clears g, in one pass over memory. All have one length.
func (a *AdamW[T]) Step(w, g, m, v []T) {
	work.ParallelRange(len(w), piece, func(from, to int) { a.step(w[from:to], g[from:to], m[from:to], v[from:to]) })
}

func (a *AdamW[T]) step(w, g, m, v []T) {
	g, m, v = g[:len(w)], m[:len(w)], v[:len(w)]
	if w32, ok := asm32(w); ok {
		adamW32(any(a).(*AdamW[float32]), w32, any(g).([]float32), any(m).([]float32), any(v).([]float32))
		return
	}
	a.loop(w, g, m, v)
}

// loop is the definition. The assembly rounds at the same places, so its result is the same bit for bit.
func (a *AdamW[T]) loop(w, g, m, v []T) {
	c := *a
	for i := range w {
		d := c.Scale * g[i]
		mean := c.Beta1*m[i] + c.Rest1*d
		square := c.Beta2*v[i] + c.Rest2*d*d
		w[i] = c.Keep*w[i] - c.Rate*mean/(sqrt(square)*c.Root+c.Eps)
		m[i], v[i], g[i] = mean, square, 0
	}
}

// sqrt compiles to one instruction for both types. The square root of a float32, computed in float64 and rounded, is correctly rounded.
func sqrt[T Float](x T) T { return T(math.Sqrt(float64(x))) }

// SquareSum returns Σ x². The pieces are summed in parallel, and their sums are added in order.
func SquareSum[T Float](x []T) (sum float64) {
	parts := work.Borrow[float64]((len(x) + piece - 1) / piece)
	defer parts.Return()
	work.ParallelRange(len(x), piece, func(from, to int) { parts.Data[from/piece] = squares(x[from:to]) })
	for _, part := range parts.Data {
		sum += part
	}
	return sum
}
