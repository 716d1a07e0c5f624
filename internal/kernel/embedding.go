package kernel

import "github.com/gomamba/mamba/internal/work"

// Embedding copies row ids[i] of weight (vocabulary, width) to row i of y (ids, width).
func Embedding[T Float](y, weight []T, ids []int, width int) {
	work.ParallelRange(len(ids), 256, func(from, to int) {
		for i := from; i < to; i++ {
			copy(y[i*width:(i+1)*width], weight[ids[i]*width:(ids[i]+1)*width])
		}
	})
}

// EmbeddingBackward writes the gradient of the weight. Each row is the sum of the rows of dy (ids, width) with that id. A task is a range
// of columns, so that every sum is taken in the order of the ids.
func EmbeddingBackward[T Float](dWeight, dy []T, ids []int, width int) {
	work.ParallelRange(len(dWeight), 16*piece, func(from, to int) { clear(dWeight[from:to]) })
	work.ParallelRange(width, 64, func(from, to int) {
		for i, id := range ids {
			sum := dWeight[id*width+from : id*width+to]
			sumOf(sum, sum, dy[i*width+from:i*width+to])
		}
	})
}
