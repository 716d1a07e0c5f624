package kernel

import (
	"math"
	"slices"

	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// Attention is causal attention with several heads (Vaswani et al., "Attention Is All You Need", section 3.2): with head
// dimension d, each query q_t of a head gives
//
//	y_t = Σ_s p_ts v_s,   p_ts = softmax over s of q_t·k_s/√d
//
// over the visible steps s: from the start of the sequence that t belongs to, up to t, and only the last Window steps if Window is
// not zero. If Base is not zero, q and k are first rotated by their positions (Su et al., "RoFormer: Enhanced Transformer with Rotary
// Position Embedding"), so that q·k depends on the distance between them. Element j of the first half of a head is rotated together
// with element j of the second half.
//
// Only the scores of one tile of queries with one tile of keys are in memory at a time (Dao et al., "FlashAttention", algorithm 1).
// So memory grows linearly with the length.
type Attention[T Float] struct {
	Batch, Length, Channels, Heads, Window int
	Base                                   float64 // base of the rotation's frequencies; 0 for no rotation
	Q, K, V                                []T     // (batch, length, channels)
	// Context holds the steps before the first: (batch, window-1, 2·channels + 1). Each row is a key, a value, and 1 if there was such a
	// step, else 0. Nil if there were none.
	Context []T
	Start   []bool // (batch, length), or nil
	Gemm    Gemm[T]
}

// AttentionGrad receives the gradients of an Attention's operands, in their shapes. Context is nil if the operand is.
type AttentionGrad[T Float] struct{ Q, K, V, Context []T }

// The size of a tile of scores. The tile fits into the second-level cache together with its keys and values.
const (
	queryTile = 64
	keyTile   = 256
)

// before returns the number of steps in the context.
func (a *Attention[T]) before() int {
	if a.Context == nil {
		return 0
	}
	return a.Window - 1
}

func (a *Attention[T]) contextRow(b, s int) []T { return a.contextOf(a.Context, b, s) }

// contextOf returns step s of sequence b of a context, or of the gradient of a context.
func (a *Attention[T]) contextOf(context []T, b, s int) []T {
	w := 2*a.Channels + 1
	return context[(b*(a.Window-1)+s)*w:][:w]
}

// scale returns 1/√d.
func (a *Attention[T]) scale() T { return T(1 / math.Sqrt(float64(a.Channels/a.Heads))) }

// begins returns, for each step of row b of the batch, the first step of the sequence that it belongs to. Steps are counted from the
// beginning of the context.
func (a *Attention[T]) begins(b int) []int {
	before := a.before()
	first := before
	for first > 0 && a.contextRow(b, first-1)[2*a.Channels] != 0 {
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

// firsts returns, for each step, the first step that is visible to it.
func (a *Attention[T]) firsts(b int) []int {
	f := a.begins(b)
	if a.Window > 0 {
		for t := range f {
			f[t] = max(f[t], a.before()+t-a.Window+1)
		}
	}
	return f
}

// head holds the operands of one head of one row of the batch. Queries and keys are contiguous and rotated.
type head[T Float] struct {
	*Attention[T]
	b, h, dim, before, steps int // steps counts the context and the sequence
	first                    []int
	q                        []T // (length, dim), times 1/√dim
	k, v                     []T // (steps, dim)
	cos, sin                 []T // (steps, dim/2)
	space                    []work.Space[T]
}

// tile is the state of the computation for queries [from, to) of a head.
type tile[T Float] struct {
	*head[T]
	from, to int
	scores   []T                // with one tile of keys
	largest  [queryTile]T       // the largest score of each query so far
	sum      [queryTile]float64 // Σ exp(score - largest) of each query so far
}

func (a *Attention[T]) newHead(i int, cos, sin []T) *head[T] {
	h := &head[T]{Attention: a, b: i / a.Heads, h: i % a.Heads, dim: a.Channels / a.Heads, before: a.before(), cos: cos, sin: sin}
	h.steps = h.before + a.Length
	h.first = a.firsts(h.b)
	h.q, h.k, h.v = h.borrow(a.Length*h.dim), h.borrow(h.steps*h.dim), h.borrow(h.steps*h.dim)
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
			copy(v, row[a.Channels+h.h*h.dim:])
		} else {
			copy(k, h.row(a.K, s-h.before))
			copy(v, h.row(a.V, s-h.before))
		}
		h.turn(k, s, false)
	}
	return h
}

func (h *head[T]) borrow(n int) []T {
	s := work.Borrow[T](n)
	h.space = append(h.space, s)
	return s.Data
}

func (h *head[T]) release() {
	for _, s := range h.space {
		s.Return()
	}
}

// row returns the head's part of step t of v (batch, length, channels).
func (h *head[T]) row(v []T, t int) []T { return v[(h.b*h.Length+t)*h.Channels+h.h*h.dim:][:h.dim] }

// turn rotates the pairs of a row by their angles at a position. If back, it rotates in the opposite direction.
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

// angles returns the cosines and sines of each position and pair, (steps, dim/2).
func (a *Attention[T]) angles() (cos, sin []T) {
	if a.Base == 0 {
		return nil, nil
	}
	half, steps := a.Channels/a.Heads/2, a.before()+a.Length
	cos, sin = make([]T, steps*half), make([]T, steps*half)
	// Each angle is the angle of the position before, rotated by one step. Every 64 positions the angle is computed anew, so that at most
	// 64 rounding errors in float64 add up.
	work.ParallelRange(steps, 64, func(from, to int) {
		for j := range half {
			frequency := math.Pow(a.Base, -float64(j)/float64(half))
			y, x := math.Sincos(float64(from) * frequency)
			dy, dx := math.Sincos(frequency)
			for s := from; s < to; s++ {
				cos[s*half+j], sin[s*half+j] = T(x), T(y)
				x, y = x*dx-y*dy, x*dy+y*dx
			}
		}
	})
	return cos, sin
}

// keys calls visit for each tile of keys of which at least one is visible to the queries.
func (t *tile[T]) keys(visit func(low, high int)) {
	for low := slices.Min(t.first[t.from:t.to]); low < t.before+t.to; low += keyTile {
		visit(low, min(low+keyTile, t.before+t.to))
	}
}

// products writes the scores q·k of the queries with keys [low, high).
func (t *tile[T]) products(low, high int) {
	t.Gemm(blas.NoTrans, blas.Trans, t.to-t.from, high-low, t.dim, 1, t.q[t.from*t.dim:], t.dim, t.k[low*t.dim:], t.dim, 0, t.scores, high-low)
}

// seen returns the scores of query i of the tile with those of the keys [low, high) that are visible to it. It sets the other scores
// to zero.
func (t *tile[T]) seen(i, low, high int) []T {
	row, query := t.scores[i*(high-low):][:high-low], t.from+i
	left, right := max(t.first[query]-low, 0), min(t.before+query+1-low, len(row))
	if left >= right {
		clear(row)
		return nil
	}
	clear(row[:left])
	clear(row[right:])
	return row[left:right]
}

// forward writes y (to - from, dim), whose rows have the given stride. A probability is then exp(score - largest) / sum, with the
// query's elements of largest and sum.
func (t *tile[T]) forward(y []T, stride int) {
	rows := t.to - t.from
	for i := range rows {
		clear(y[i*stride:][:t.dim])
		t.largest[i], t.sum[i] = T(math.Inf(-1)), 0
	}
	t.keys(func(low, high int) {
		t.products(low, high)
		for i := range rows {
			p := t.seen(i, low, high)
			if p == nil {
				continue
			}
			if top := largest(p); top > t.largest[i] { // scale the sums so far to the new largest score
				scale, row := exp(t.largest[i]-top), y[i*stride:][:t.dim]
				t.sum[i] *= float64(scale)
				scaleOf(row, row, scale)
				t.largest[i] = top
			}
			t.sum[i] += expSumTo(p, p, t.largest[i])
		}
		t.Gemm(blas.NoTrans, blas.NoTrans, rows, t.dim, high-low, 1, t.scores, high-low, t.v[low*t.dim:], t.dim, 1, y, stride)
	})
	for i := range rows {
		row := y[i*stride:][:t.dim]
		scaleOf(row, row, T(1/t.sum[i]))
	}
}

// Forward writes y (batch, length, channels) and, unless next is nil, the context of the steps that follow.
func (a *Attention[T]) Forward(y, next []T) {
	cos, sin := a.angles()
	heads := make([]*head[T], a.Batch*a.Heads)
	plain := make([]bool, len(heads))
	work.Parallel(len(heads), func(i int) {
		heads[i] = a.newHead(i, cos, sin)
		if plain[i] = !heads[i].finite(); plain[i] {
			heads[i].reference(y)
		}
	})
	tiles := (a.Length + queryTile - 1) / queryTile
	work.Parallel(len(heads)*tiles, func(i int) {
		h := heads[i/tiles]
		if plain[i/tiles] {
			return
		}
		from := (tiles - 1 - i%tiles) * queryTile // the last tiles see the most keys and take longest
		scores := work.Borrow[T](queryTile * keyTile)
		defer scores.Return()
		t := &tile[T]{head: h, from: from, to: min(from+queryTile, a.Length), scores: scores.Data}
		t.forward(y[(h.b*a.Length+from)*a.Channels+h.h*h.dim:], a.Channels)
	})
	for _, h := range heads {
		h.release()
	}
	if next != nil {
		a.next(next)
	}
}

// next writes the context of the steps that follow: the last window-1 steps, zero where they belong to an earlier sequence.
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
				at := (b*a.Length + s - before) * a.Channels
				copy(row, a.K[at:at+a.Channels])
				copy(row[a.Channels:], a.V[at:at+a.Channels])
				row[2*a.Channels] = 1
			}
		}
	}
}
