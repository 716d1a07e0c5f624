package kernel

import "math"

// CrossEntropy is the mean of -log softmax(x)_target over the rows x whose target is not Ignore, and 0 if there is none.
// The caller has checked that the other targets lie in [0, Vocabulary).
type CrossEntropy[T Float] struct {
	Vocabulary int
	Logits     []T   // (rows, vocabulary)
	Targets    []int // (rows)
	Ignore     int
}

// rows runs a task for each run of rows.
func (c *CrossEntropy[T]) rows(task func(from, to int)) {
	ParallelRange(len(c.Targets), max(piece/c.Vocabulary, 1), task)
}

func (c *CrossEntropy[T]) row(x []T, i int) []T { return x[i*c.Vocabulary : (i+1)*c.Vocabulary] }

// count returns the number of rows that take part.
func (c *CrossEntropy[T]) count() (n int) {
	for _, target := range c.Targets {
		if target != c.Ignore {
			n++
		}
	}
	return n
}

// Forward returns the loss. The exponentials are those of the distance to the row's largest logit, so that none
// overflows; the sums are taken in float64, in the order of the rows.
func (c *CrossEntropy[T]) Forward() T {
	losses := make([]float64, len(c.Targets))
	c.rows(func(from, to int) {
		for i := from; i < to; i++ {
			target := c.Targets[i]
			if target == c.Ignore {
				continue
			}
			x := c.row(c.Logits, i)
			top, sum := largest(x), 0.0
			for _, v := range x {
				sum += float64(exp(v - top))
			}
			losses[i] = math.Log(sum) - (float64(x[target]) - float64(top))
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

// Backward writes the gradient of the logits, (softmax(x) - onehot(target))·dloss/count, zero in the rows that are
// ignored. The exponentials are computed again, in the memory of the gradient.
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
			// The others are added up without the target: of a probability near 1, what is missing to 1 keeps its digits.
			top := largest(x)
			others := exps(dx[:target], x[:target], top) + exps(dx[target+1:], x[target+1:], top)
			scale := each / (others + float64(exp(x[target]-top)))
			factor := T(scale)
			for j := range dx {
				dx[j] *= factor
			}
			dx[target] = T(-others * scale)
		}
	})
}

// exps writes exp(x - top) to y, and returns the sum.
func exps[T Float](y, x []T, top T) (sum float64) {
	for j, v := range x {
		y[j] = exp(v - top)
		sum += float64(y[j])
	}
	return sum
}

// largest returns the largest element, NaN if one is.
func largest[T Float](x []T) T {
	top := x[0]
	for _, v := range x[1:] {
		top = max(top, v)
	}
	return top
}
