package kernel

import (
	"slices"
	"sync/atomic"

	"github.com/gomamba/mamba/internal/work"
)

// FirstOutside returns the index of the first id that is neither in [0, n) nor in ignored, or -1 if there is none.
func FirstOutside(ids []int, n int, ignored ...int) int {
	first := func(ids []int) int {
		for i, id := range ids {
			if uint(id) >= uint(n) && !slices.Contains(ignored, id) {
				return i
			}
		}
		return -1
	}
	var found atomic.Bool
	work.ParallelRange(len(ids), 1<<14, func(from, to int) {
		if first(ids[from:to]) >= 0 {
			found.Store(true)
		}
	})
	if !found.Load() {
		return -1
	}
	return first(ids)
}

// Embedding copies row ids[i] of weight (vocabulary, channels) to row i of y (ids, channels).
func Embedding[T Float](y, weight []T, ids []int, channels int) {
	work.ParallelRange(len(ids), 256, func(from, to int) {
		for i := from; i < to; i++ {
			copy(y[i*channels:(i+1)*channels], weight[ids[i]*channels:(ids[i]+1)*channels])
		}
	})
}

// EmbeddingBackward writes the gradient of the weight. Each row is the sum of the rows of dy (ids, channels) with that id. A task is a range
// of columns, so that every sum is taken in the order of the ids.
func EmbeddingBackward[T Float](dWeight, dy []T, ids []int, channels int) {
	work.ParallelRange(len(dWeight), 16*piece, func(from, to int) { clear(dWeight[from:to]) })
	work.ParallelRange(channels, 32, func(from, to int) {
		for i, id := range ids {
			sum := dWeight[id*channels+from : id*channels+to]
			sumOf(sum, sum, dy[i*channels+from:i*channels+to])
		}
	})
}
