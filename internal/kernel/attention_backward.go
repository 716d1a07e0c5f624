package kernel

import (
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// Backward writes the gradients of all operands. dy is the gradient of y. dnext is the gradient of the next context, nil for zeros.
// For each tile of queries it runs the forward pass again and recomputes the probabilities from the sums.
func (a *Attention[T]) Backward(dy, dnext []T, grad *AttentionGrad[T]) {
	cos, sin := a.angles()
	if grad.Context != nil {
		clear(grad.Context)
	}
	work.Parallel(a.Batch*a.Heads, func(i int) {
		h := a.newHead(i, cos, sin)
		defer h.release()
		h.backward(dy, grad)
	})
	if dnext != nil {
		a.nextBack(dnext, grad)
	}
}

// backward writes the gradients of one head. It goes through the tiles of queries in order, so that sums over queries are the same for
// any number of processors.
func (h *head[T]) backward(dy []T, grad *AttentionGrad[T]) {
	dim := h.dim
	y, dq := h.borrow(queryTile*dim), h.borrow(queryTile*dim)
	dk, dv, dp := h.borrow(h.steps*dim), h.borrow(h.steps*dim), h.borrow(queryTile*keyTile)
	clear(dk)
	clear(dv)
	t := &tile[T]{head: h, scores: h.borrow(queryTile * keyTile)}
	var inner [queryTile]T // dy·y of each query
	for from := 0; from < h.Length; from += queryTile {
		t.from, t.to = from, min(from+queryTile, h.Length)
		n, out := t.to-from, dy[(h.b*h.Length+from)*h.Channels+h.h*dim:] // the head's part of dy, rows of Channels
		t.forward(y, dim)
		for i := range n {
			inner[i] = 0
			for j, v := range h.row(dy, from+i) {
				inner[i] += v * y[i*dim+j]
			}
		}
		clear(dq[:n*dim])
		t.keys(func(low, high int) {
			width := high - low
			t.products(low, high)
			for i := range n {
				if p := t.seen(i, low, high); p != nil {
					expSumTo(p, p, t.largest[i])
					scaleOf(p, p, T(1/t.sum[i]))
				}
			}
			h.Gemm(blas.Trans, blas.NoTrans, width, dim, n, 1, t.scores, width, out, h.Channels, 1, dv[low*dim:], dim)
			h.Gemm(blas.NoTrans, blas.Trans, n, width, dim, 1, out, h.Channels, h.v[low*dim:], dim, 0, dp, width)
			for i := range n {
				row := dp[i*width:][:width]
				for j, p := range t.scores[i*width:][:width] {
					if p == 0 { // also where the key is not visible: the value computed for it may be NaN
						row[j] = 0
						continue
					}
					row[j] = p * (row[j] - inner[i])
				}
			}
			h.Gemm(blas.NoTrans, blas.NoTrans, n, dim, width, 1, dp, width, h.k[low*dim:], dim, 1, dq, dim)
			h.Gemm(blas.Trans, blas.NoTrans, width, dim, n, 1, dp, width, h.q[from*dim:], dim, 1, dk[low*dim:], dim)
		})
		scale := h.scale()
		for i := range n {
			row := dq[i*dim:][:dim]
			h.turn(row, h.before+from+i, true)
			for j, v := range row {
				h.row(grad.Q, from+i)[j] = scale * v
			}
		}
	}
	for s := range h.steps {
		k, v := dk[s*dim:][:dim], dv[s*dim:][:dim]
		h.turn(k, s, true)
		if s >= h.before {
			copy(h.row(grad.K, s-h.before), k)
			copy(h.row(grad.V, s-h.before), v)
		} else if grad.Context != nil {
			row := h.contextOf(grad.Context, h.b, s)
			copy(row[h.h*dim:], k)
			copy(row[h.Channels+h.h*dim:], v)
		}
	}
}

// nextBack adds the gradient of the next context to the gradients of the steps that it was copied from.
func (a *Attention[T]) nextBack(dnext []T, grad *AttentionGrad[T]) {
	before := a.before()
	for b := range a.Batch {
		first := a.begins(b)[a.Length-1]
		for i := range a.Window - 1 {
			s := before + a.Length - (a.Window - 1) + i
			row := a.contextOf(dnext, b, i)[:2*a.Channels]
			switch {
			case s < first:
			case s < before:
				if grad.Context != nil {
					Add(a.contextOf(grad.Context, b, s)[:2*a.Channels], row)
				}
			default:
				at := (b*a.Length + s - before) * a.Channels
				Add(grad.K[at:at+a.Channels], row[:a.Channels])
				Add(grad.V[at:at+a.Channels], row[a.Channels:])
			}
		}
	}
}
