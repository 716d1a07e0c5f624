package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// CrossEntropy is the mean of -log softmax(x)_target over the rows x whose target is not Ignore. It is 0 if there is no such row.
// The caller has checked that the other targets lie in [0, Vocabulary).
type CrossEntropy[T Float] struct {
	Vocabulary int
	Logits     []T   // (rows, vocabulary)
	Targets    []int // (rows)
	Ignore     int
}

// rows calls task for ranges of rows, in parallel.
func (c *CrossEntropy[T]) rows(task func(from, to int)) {
	work.ParallelRange(len(c.Targets), max(piece/c.Vocabulary, 1), task)
}

func (c *CrossEntropy[T]) row(x []T, i int) []T { return x[i*c.Vocabulary : (i+1)*c.Vocabulary] }

// count returns the number of rows whose target is not Ignore.
func (c *CrossEntropy[T]) count() (n int) {
	for _, target := range c.Targets {
		if target != c.Ignore {
			n++
		}
	}
	return n
}

// Forward returns the loss. It subtracts the largest logit of a row before it takes exponentials, so that none overflows. Sums are in
// float64, in the order of the rows.
func (c *CrossEntropy[T]) Forward() T {
	space := work.Borrow[float64](len(c.Targets))
	defer space.Return()
	losses := space.Data
	clear(losses)
	c.rows(func(from, to int) {
		for i := from; i < to; i++ {
			target := c.Targets[i]
			if target == c.Ignore {
				continue
			}
			x := c.row(c.Logits, i)
			top := largest(x)
			losses[i] = math.Log(expSum(x, top)) - (float64(x[target]) - float64(top))
		}
	})
	n := c.count()
	if n == 0 {
		return 0
	}
	var sum float64
	for _, v := range losses {
		sum += v
	}
	return T(sum / float64(n))
}

// Backward writes the gradient of the logits, (softmax(x) - onehot(target))·dloss/count. Ignored rows get zeros. Backward recomputes the
// exponentials in the memory of the gradient.
func (c *CrossEntropy[T]) Backward(dloss T, dlogits []T) {
	each := float64(dloss) / float64(max(c.count(), 1))
	c.rows(func(from, to int) {
		for i := from; i < to; i++ {
			x, dx := c.row(c.Logits, i), c.row(dlogits, i)
			target := c.Targets[i]
			if target == c.Ignore {
				clear(dx)
				continue
			}
			// The target's gradient is -others/sum: unlike p - 1, it keeps its digits where p is near 1.
			top := largest(x)
			others := expSumTo(dx[:target], x[:target], top) + expSumTo(dx[target+1:], x[target+1:], top)
			scale := each / (others + float64(exp(x[target]-top)))
			scaleOf(dx, dx, T(scale))
			dx[target] = T(-others * scale)
		}
	})
}
