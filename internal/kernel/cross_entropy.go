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
	c.rows(func(from, to int) {
		for i := from; i < to; i++ {
			losses[i] = c.rowLoss(c.row(c.Logits, i), i)
		}
	})
	return c.mean(losses)
}

// mean returns the mean of the losses of the rows that count.
func (c *CrossEntropy[T]) mean(losses []float64) T {
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

// rowLoss returns the loss of row i with logits x.
func (c *CrossEntropy[T]) rowLoss(x []T, i int) float64 {
	target := c.Targets[i]
	if target == c.Ignore {
		return 0
	}
	top := largest(x)
	others := expSum(x[:target], top) + expSum(x[target+1:], top)
	return math.Log(others+float64(exp(x[target]-top))) - (float64(x[target]) - float64(top))
}

// rowGradient writes the gradient of row i, times each, and returns rowLoss. dx may be x. An ignored row gets zeros.
func (c *CrossEntropy[T]) rowGradient(dx, x []T, i int, each float64) (loss float64) {
	target := c.Targets[i]
	if target == c.Ignore {
		clear(dx)
		return 0
	}
	top, own := largest(x), x[target]
	others := expSumTo(dx[:target], x[:target], top) + expSumTo(dx[target+1:], x[target+1:], top)
	sum := others + float64(exp(own-top))
	scaleOf(dx, dx, T(each/sum))
	dx[target] = T(-others * (each / sum)) // unlike p - 1, it keeps its digits where p is near 1
	return math.Log(sum) - (float64(own) - float64(top))
}

// each returns the gradient of the loss of one row that counts, where that of the mean is dloss.
func (c *CrossEntropy[T]) each(dloss T) float64 { return float64(dloss) / float64(max(c.count(), 1)) }

// Backward writes the gradient of the logits, (softmax(x) - onehot(target))·dloss/count. Ignored rows get zeros. Backward recomputes the
// exponentials in the memory of the gradient.
func (c *CrossEntropy[T]) Backward(dloss T, dlogits []T) {
	each := c.each(dloss)
	c.rows(func(from, to int) {
		for i := from; i < to; i++ {
			c.rowGradient(c.row(dlogits, i), c.row(c.Logits, i), i, each)
		}
	})
}
