package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// BinaryCrossEntropy is the mean of log(1 + e^x) - t·x over the logits x whose target t is not Ignore. It is 0 if there is no such target. The
// caller has checked that the other targets are 0 or 1.
type BinaryCrossEntropy[T Float] struct {
	Logits  []T
	Targets []int
	Ignore  int
}

func (b *BinaryCrossEntropy[T]) count() (n int) {
	for _, target := range b.Targets {
		if target != b.Ignore {
			n++
		}
	}
	return n
}

// against returns the logit with the sign that makes a large number a wrong answer.
func against[T Float](x T, target int) T {
	if target == 1 {
		return -x
	}
	return x
}

// Forward returns the loss. A term is log(1 + e^y) with y = ±x, as max(y, 0) + log(1 + e^-|y|), so that nothing overflows. Sums are in float64, in
// the order of the pieces.
func (b *BinaryCrossEntropy[T]) Forward() T {
	n := b.count()
	if n == 0 {
		return 0
	}
	sums := make([]float64, (len(b.Logits)+piece-1)/piece)
	work.ParallelRange(len(b.Logits), piece, func(from, to int) {
		var sum float64
		for i := from; i < to; i++ {
			if target := b.Targets[i]; target != b.Ignore {
				y := float64(against(b.Logits[i], target))
				sum += max(y, 0) + math.Log1p(math.Exp(-math.Abs(y)))
			}
		}
		sums[from/piece] = sum
	})
	var sum float64
	for _, s := range sums {
		sum += s
	}
	return T(sum / float64(n))
}

// Backward writes the gradient of the logits, ±sigmoid(±x)·dloss/count. Ignored logits get zeros.
func (b *BinaryCrossEntropy[T]) Backward(dloss T, dlogits []T) {
	each := dloss / T(max(b.count(), 1))
	work.ParallelRange(len(b.Logits), piece, func(from, to int) {
		for i := from; i < to; i++ {
			if target := b.Targets[i]; target == b.Ignore {
				dlogits[i] = 0
			} else {
				dlogits[i] = against(sigmoid(against(b.Logits[i], target)), target) * each
			}
		}
	})
}
