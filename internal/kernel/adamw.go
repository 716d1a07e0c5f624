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
// Then it clears the gradient, unless it is said to stay. The caller computes the other fields in float64: Rest1 = 1-Beta1 and Rest2 = 1-Beta2, which would
// lose digits if they were computed from Beta1 and Beta2 in T; Rate = learning rate / (1-Beta1^t) and Root = 1/√(1-Beta2^t), which
// correct for moments that start at zero; Keep = 1 - learning rate · decay.
type AdamW[T Float] struct {
	Scale, Beta1, Rest1, Beta2, Rest2, Rate, Root, Eps, Keep T
}

// AdamWPart is a weight W of a step, with its gradient and its moments. All have one length.
type AdamWPart[T Float] struct {
	Keep       T    // instead of that of the step
	Stays      bool // the gradient is not cleared
	W, G, M, V []T
}

// Step updates w, m and v and clears g, in one pass over memory. All have one length.
func (a *AdamW[T]) Step(w, g, m, v []T) {
	a.Steps([]AdamWPart[T]{{Keep: a.Keep, W: w, G: g, M: m, V: v}})
}

// Steps is Step for several weights, in one job.
func (a *AdamW[T]) Steps(parts []AdamWPart[T]) {
	lengths := make([]int, len(parts))
	for i, p := range parts {
		lengths[i] = len(p.W)
	}
	work.ParallelRanges(lengths, piece, func(k, from, to int) {
		p, own := parts[k], *a
		own.Keep = p.Keep
		own.step(p.W[from:to], p.G[from:to], p.M[from:to], p.V[from:to])
		if !p.Stays {
			clear(p.G[from:to])
		}
	})
}

func (a *AdamW[T]) step(w, g, m, v []T) {
	g, m, v = g[:len(w)], m[:len(w)], v[:len(w)]
	if w32, ok := asm32(w); ok {
		adamW32(any(a).(*AdamW[float32]), w32, any(g).([]float32), any(m).([]float32), any(v).([]float32))
		return
	}
	a.loop(w, g, m, v)
}

// loop is the definition, but for clearing the gradient. The assembly rounds at the same places, so its result is the same bit for bit.
func (a *AdamW[T]) loop(w, g, m, v []T) {
	c := *a
	for i := range w {
		d := c.Scale * g[i]
		mean := c.Beta1*m[i] + c.Rest1*d
		square := c.Beta2*v[i] + c.Rest2*d*d
		w[i] = c.Keep*w[i] - c.Rate*mean/(sqrt(square)*c.Root+c.Eps)
		m[i], v[i] = mean, square
	}
}

// sqrt compiles to one instruction for both types. The square root of a float32, computed in float64 and rounded, is correctly rounded.
func sqrt[T Float](x T) T { return T(math.Sqrt(float64(x))) }

// SquareSum returns the sum of the squares of all elements. The pieces are summed in parallel, in one job. For each of the slices the sums of its
// pieces are added in order.
func SquareSum[T Float](all ...[]T) (sum float64) {
	lengths, first, pieces := make([]int, len(all)), make([]int, len(all)), 0
	for i, x := range all {
		lengths[i], first[i] = len(x), pieces
		pieces += (len(x) + piece - 1) / piece
	}
	parts := work.Borrow[float64](pieces)
	defer parts.Return()
	work.ParallelRanges(lengths, piece, func(k, from, to int) { parts.Data[first[k]+from/piece] = squares(all[k][from:to]) })
	for i, n := range lengths {
		var own float64
		for _, part := range parts.Data[first[i]:][:(n+piece-1)/piece] {
			own += part
		}
		sum += own
	}
	return sum
}
