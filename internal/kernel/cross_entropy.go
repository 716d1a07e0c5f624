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
	c.rows(func(from, to int) { c.pass(nil, from, to, space.Data, 0) })
	return c.mean(space.Data)
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

// pass writes the losses of the rows [from, to) and, unless dx is nil, their gradients times each. dx may be Logits. The losses are the same bit for bit with and
// without gradients. An ignored row has a loss and gradients of zero.
func (c *CrossEntropy[T]) pass(dx []T, from, to int, losses []float64, each float64) {
	x32, fast := asm32(c.Logits)
	var dx32 []float32
	if fast && dx != nil {
		dx32 = any(dx).([]float32)
	}
	var all [32]crossEntropyRow
	for i := from; i < to; {
		if c.Targets[i] == c.Ignore {
			if losses[i] = 0; dx != nil {
				clear(c.row(dx, i))
			}
			i++
			continue
		}
		n := 0
		for ; n < len(all) && i+n < to && c.Targets[i+n] != c.Ignore; n++ {
			all[n].target = c.Targets[i+n]
		}
		if fast {
			c.rows32(dx32, x32, all[:n], i, each)
		} else {
			c.rowsPlain(dx, all[:n], i, each)
		}
		for k, r := range all[:n] {
			losses[i+k] = math.Log(r.sum) - r.gap
		}
		i += n
	}
}

// crossEntropyRow is what a loss needs of a row: Σ exp(x - top), where top is the largest logit, and the target's x - top.
type crossEntropyRow struct {
	target   int
	sum, gap float64
}

// rowsPlain is the definition of rows32.
func (c *CrossEntropy[T]) rowsPlain(dx []T, all []crossEntropyRow, i int, each float64) {
	for k := range all {
		x, r := c.row(c.Logits, i+k), &all[k]
		top, own := largest(x), x[r.target]
		r.gap = float64(own) - float64(top)
		var others float64
		if dx == nil {
			others = expSum(x[:r.target], top) + expSum(x[r.target+1:], top)
		} else {
			dx := c.row(dx, i+k)
			others = expSumTo(dx[:r.target], x[:r.target], top) + expSumTo(dx[r.target+1:], x[r.target+1:], top)
		}
		r.sum = others + float64(exp(own-top))
		if dx != nil {
			dx := c.row(dx, i+k)
			scaleOf(dx, dx, T(each/r.sum))
			dx[r.target] = T(-others * (each / r.sum)) // unlike p - 1, it keeps its digits where p is near 1
		}
	}
}

// each returns the gradient of the loss of one row that counts, where that of the mean is dloss.
func (c *CrossEntropy[T]) each(dloss T) float64 { return float64(dloss) / float64(max(c.count(), 1)) }

// Backward writes the gradient of the logits, (softmax(x) - onehot(target))·dloss/count. Ignored rows get zeros. Backward recomputes the
// exponentials in the memory of the gradient.
func (c *CrossEntropy[T]) Backward(dloss T, dlogits []T) {
	each := c.each(dloss)
	space := work.Borrow[float64](len(c.Targets))
	defer space.Return()
	c.rows(func(from, to int) { c.pass(dlogits, from, to, space.Data, each) })
}
