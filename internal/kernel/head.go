package kernel

import (
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// Head is the mean cross-entropy of the logits X·Weightᵀ. It computes the logits in chunks of rows, and with the gradients it computes those of a chunk
// while it has its logits. So it needs memory for the logits of a few chunks, and computes them once.
//
// A small head is cut into parts, which are tasks of one job: each goes through its chunks, and has its own gradient of the weight. These are added in the order of the
// parts. All cuts depend on the sizes alone.
type Head[T Float] struct {
	Rows, In, Vocabulary int
	X                    []T     // (rows, in)
	Weight               []T     // (vocabulary, in)
	Targets              []int   // (rows)
	Ignore               int     // the target of rows that do not count
	Logits               Gemm[T] // the product of x and Weightᵀ
	Gemm                 Gemm[T] // those of the gradients
}

// small reports whether each part can have its own gradient of the weight.
func (h *Head[T]) small() bool { return h.Vocabulary <= 1<<11 && h.Vocabulary*h.In <= 1<<16 }

// HeadRows is the largest number of rows of a chunk. A chunk reads the weight from memory, and adds to its gradient there. With 256 rows a head of 50,280 words took as long as one
// that holds all logits; with 512 it takes a little less.
const HeadRows = 512

// chunks returns the number of chunks, and the rows of each but the last. The logits of a chunk of a small head fit into a processor's second-level cache.
func (h *Head[T]) chunks() (n, rows int) {
	most := HeadRows
	if h.small() {
		most = min(most, max(1<<14/h.Vocabulary, 64))
	}
	n = max(1, (h.Rows+most-1)/most)
	rows = ((h.Rows+n-1)/n + 15) / 16 * 16
	return (h.Rows + rows - 1) / rows, rows
}

// Forward returns the loss. Unless they are nil, it writes the gradients dx (rows, in) and dweight (vocabulary, in).
func (h *Head[T]) Forward(dx, dweight []T) T {
	all := CrossEntropy[T]{Vocabulary: h.Vocabulary, Targets: h.Targets, Ignore: h.Ignore}
	losses := work.Borrow[float64](h.Rows)
	defer losses.Return()
	each, weights, parts := all.each(1), dweight, 1
	chunks, chunk := h.chunks()
	if h.small() {
		parts = min((chunks+1)/2, 16)
	}
	if parts > 1 {
		space := work.Borrow[T](parts * len(dweight))
		defer space.Return()
		weights = space.Data
	}
	work.Parallel(parts, func(p int) {
		logits := work.Borrow[T](min(chunk, h.Rows) * h.Vocabulary)
		defer logits.Return()
		first := p * chunks / parts
		for i := first; i < (p+1)*chunks/parts; i++ {
			from, to := i*chunk, min((i+1)*chunk, h.Rows)
			n, x, y := to-from, h.X[from*h.In:to*h.In], logits.Data[:(to-from)*h.Vocabulary]
			h.Logits(blas.NoTrans, blas.Trans, n, h.Vocabulary, h.In, 1, x, h.In, h.Weight, h.In, 0, y, h.Vocabulary)
			c := CrossEntropy[T]{h.Vocabulary, y, h.Targets[from:to], h.Ignore}
			gradients := y
			if dx == nil {
				gradients = nil
			}
			c.rows(func(a, b int) { c.pass(gradients, a, b, losses.Data[from:to], each) })
			if dx != nil {
				h.Gemm(blas.NoTrans, blas.NoTrans, n, h.In, h.Vocabulary, 1, y, h.Vocabulary, h.Weight, h.In, 0, dx[from*h.In:to*h.In], h.In)
				h.Gemm(blas.Trans, blas.NoTrans, h.Vocabulary, h.In, n, 1, y, h.Vocabulary, x, h.In, T(min(i-first, 1)), weights[p*len(dweight):], h.In)
			}
		}
	})
	if parts > 1 {
		sumRows(dweight, weights)
	}
	return all.mean(losses.Data)
}
