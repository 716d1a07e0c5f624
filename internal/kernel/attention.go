package kernel

import (
	"math"

	"gonum.org/v1/gonum/blas"
)

// Attention is causal attention with several heads (Vaswani et al., "Attention Is All You Need", section 3.2): with head
// dimension d, each query q_t of a head gives
//
//	y_t = Σ_s p_ts v_s,   p_ts = softmax over s of q_t·k_s/√d
//
// over the steps s that it sees: up to its own, from where its sequence starts, and no more than Window of them if that is not
// zero. With a Base, q and k are first turned by their position (Su et al., "RoFormer: Enhanced Transformer with Rotary Position
// Embedding"; the halves of a head are its pairs), so that q·k depends on how far they are apart.
//
// The scores of a tile of queries and a tile of keys are held at a time (Dao et al., "FlashAttention", algorithm 1), so memory
// grows with the length alone.
type Attention[T Float] struct {
	Batch, Length, Width, Heads, Window int
	Base                                float64 // of the rotation; 0 for none
	Q, K, V                             []T     // (batch, length, width)
	// Context is what came before: (batch, window-1, 2·width + 1), for each step key, value, and 1 where there was one. Nil for
	// nothing.
	Context []T
	Start   []bool // (batch, length), or nil
	Gemm    Gemm[T]
}

// AttentionGrad is where gradients are written to; Context is nil where there is none.
type AttentionGrad[T Float] struct{ Q, K, V, Context []T }

// The sizes of a tile of scores: it stays in the second-level cache with the keys and values that it is made of.
const (
	queryTile = 64
	keyTile   = 256
)

// before is the number of steps in the context.
func (a *Attention[T]) before() int {
	if a.Context == nil {
		return 0
	}
	return a.Window - 1
}

func (a *Attention[T]) contextRow(b, s int) []T { return a.contextOf(a.Context, b, s) }

// contextOf returns a step of a context, or of the gradient by one.
func (a *Attention[T]) contextOf(context []T, b, s int) []T {
	w := 2*a.Width + 1
	return context[(b*(a.Window-1)+s)*w:][:w]
}

// scale is 1/√d.
func (a *Attention[T]) scale() T { return T(1 / math.Sqrt(float64(a.Width/a.Heads))) }

// begins returns for each step of a sequence where the sequence that it belongs to begins, counted from the context's beginning.
func (a *Attention[T]) begins(b int) []int {
	before := a.before()
	first := before
	for first > 0 && a.contextRow(b, first-1)[2*a.Width] != 0 {
		first--
	}
	f := make([]int, a.Length)
	for t := range f {
		if a.Start != nil && a.Start[b*a.Length+t] {
			first = before + t
		}
		f[t] = first
	}
	return f
}

// firsts returns the first step that each step sees.
func (a *Attention[T]) firsts(b int) []int {
	f := a.begins(b)
	if a.Window > 0 {
		for t := range f {
			f[t] = max(f[t], a.before()+t-a.Window+1)
		}
	}
	return f
}

// head is the work on a head of a sequence: its rows one after another, turned.
type head[T Float] struct {
	*Attention[T]
	b, h, dim, before, steps int // steps is those of the context and of the sequence
	first                    []int
	q                        []T // (length, dim), times 1/√dim
	k, v                     []T // (steps, dim)
	scores                   []T // a tile
	cos, sin                 []T // (steps, dim/2)
	largest                  [queryTile]T
	sum                      [queryTile]float64
	space                    []Space[T]
}

func (a *Attention[T]) newHead(i int, cos, sin []T) *head[T] {
	h := &head[T]{Attention: a, b: i / a.Heads, h: i % a.Heads, dim: a.Width / a.Heads, before: a.before(), cos: cos, sin: sin}
	h.steps = h.before + a.Length
	h.first = a.firsts(h.b)
	h.q, h.k, h.v = h.borrow(a.Length*h.dim), h.borrow(h.steps*h.dim), h.borrow(h.steps*h.dim)
	h.scores = h.borrow(queryTile * keyTile)
	scale := h.scale()
	for t := range a.Length {
		q := h.q[t*h.dim:][:h.dim]
		for j, x := range h.row(a.Q, t) {
			q[j] = scale * x
		}
		h.turn(q, h.before+t, false)
	}
	for s := range h.steps {
		k, v := h.k[s*h.dim:][:h.dim], h.v[s*h.dim:][:h.dim]
		if s < h.before {
			row := a.contextRow(h.b, s)
			copy(k, row[h.h*h.dim:])
			copy(v, row[a.Width+h.h*h.dim:])
		} else {
			copy(k, h.row(a.K, s-h.before))
			copy(v, h.row(a.V, s-h.before))
		}
		h.turn(k, s, false)
	}
	return h
}

func (h *head[T]) borrow(n int) []T {
	s := Borrow[T](n)
	h.space = append(h.space, s)
	return s.Data
}

func (h *head[T]) release() {
	for _, s := range h.space {
		s.Return()
	}
}

// row is the head's part of a step of v (batch, length, width).
func (h *head[T]) row(v []T, t int) []T { return v[(h.b*h.Length+t)*h.Width+h.h*h.dim:][:h.dim] }

// turn turns the pairs of a row by their angles at a position, or back.
func (h *head[T]) turn(x []T, position int, back bool) {
	if h.cos == nil {
		return
	}
	half := h.dim / 2
	cos, sin := h.cos[position*half:][:half], h.sin[position*half:][:half]
	for j := range half {
		c, s := cos[j], sin[j]
		if back {
			s = -s
		}
		x[j], x[half+j] = x[j]*c-x[half+j]*s, x[j]*s+x[half+j]*c
	}
}

// angles returns cosines and sines for each position and pair.
func (a *Attention[T]) angles() (cos, sin []T) {
	if a.Base == 0 {
		return nil, nil
	}
	half, steps := a.Width/a.Heads/2, a.before()+a.Length
	cos, sin = make([]T, steps*half), make([]T, steps*half)
	ParallelRange(steps, 256, func(from, to int) {
		for j := range half {
			frequency := math.Pow(a.Base, -float64(j)/float64(half))
			for s := from; s < to; s++ {
				y, x := math.Sincos(float64(s) * frequency)
				cos[s*half+j], sin[s*half+j] = T(x), T(y)
			}
		}
	})
	return cos, sin
}

// keys calls visit for the tiles of keys that queries [from, to) see any of.
func (h *head[T]) keys(from, to int, visit func(low, high int)) {
	first := h.first[from]
	for _, f := range h.first[from:to] {
		first = min(first, f)
	}
	for low := first; low < h.before+to; low += keyTile {
		visit(low, min(low+keyTile, h.before+to))
	}
}

// scoresOf writes q·k for a tile.
func (h *head[T]) scoresOf(from, to, low, high int) {
	h.Gemm(blas.NoTrans, blas.Trans, to-from, high-low, h.dim, 1, h.q[from*h.dim:], h.dim, h.k[low*h.dim:], h.dim, 0, h.scores, high-low)
}

// seen returns the part of a tile's row that query t sees; the rest is set to zero.
func (h *head[T]) seen(row []T, t, low int) []T {
	left, right := max(h.first[t]-low, 0), min(h.before+t+1-low, len(row))
	if left >= right {
		clear(row)
		return nil
	}
	clear(row[:left])
	clear(row[right:])
	return row[left:right]
}

// queries writes y (to - from, dim) for a tile of queries, and leaves in sum what their probabilities are divided by, in largest
// what is subtracted from their scores.
func (h *head[T]) queries(y []T, from, to int) {
	clear(y)
	for i := range to - from {
		h.largest[i], h.sum[i] = T(math.Inf(-1)), 0
	}
	h.keys(from, to, func(low, high int) {
		h.scoresOf(from, to, low, high)
		width := high - low
		for i := range to - from {
			p := h.seen(h.scores[i*width:][:width], from+i, low)
			if p == nil {
				continue
			}
			if top := largest(p); top > h.largest[i] { // what is there is scaled to the new largest score
				scale, row := exp(h.largest[i]-top), y[i*h.dim:][:h.dim]
				h.sum[i] *= float64(scale)
				scaleOf(row, row, scale)
				h.largest[i] = top
			}
			h.sum[i] += expSumTo(p, p, h.largest[i])
		}
		h.Gemm(blas.NoTrans, blas.NoTrans, to-from, h.dim, width, 1, h.scores, width, h.v[low*h.dim:], h.dim, 1, y, h.dim)
	})
	for i := range to - from {
		row := y[i*h.dim:][:h.dim]
		scaleOf(row, row, T(1/h.sum[i]))
	}
}

// Forward writes y, and unless it is nil the context of what comes next.
func (a *Attention[T]) Forward(y, next []T) {
	cos, sin := a.angles()
	Parallel(a.Batch*a.Heads, func(i int) {
		h := a.newHead(i, cos, sin)
		defer h.release()
		if !h.finite() {
			h.reference(y)
			return
		}
		tile := h.borrow(queryTile * h.dim)
		for from := 0; from < a.Length; from += queryTile {
			to := min(from+queryTile, a.Length)
			h.queries(tile[:(to-from)*h.dim], from, to)
			for t := from; t < to; t++ {
				copy(h.row(y, t), tile[(t-from)*h.dim:])
			}
		}
	})
	if next != nil {
		a.next(next)
	}
}

// next writes the context of what comes next: the last steps that the next one's sequence may see.
func (a *Attention[T]) next(next []T) {
	before := a.before()
	for b := range a.Batch {
		first := a.begins(b)[a.Length-1]
		for i := range a.Window - 1 {
			row, s := a.contextOf(next, b, i), before+a.Length-(a.Window-1)+i
			switch {
			case s < first:
				clear(row)
			case s < before:
				copy(row, a.contextRow(b, s))
			default:
				at := (b*a.Length + s - before) * a.Width
				copy(row, a.K[at:at+a.Width])
				copy(row[a.Width:], a.V[at:at+a.Width])
				row[2*a.Width] = 1
			}
		}
	}
}
