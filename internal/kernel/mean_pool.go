package kernel

import "github.com/gomamba/mamba/internal/work"

// MeanPool is the mean over time of the steps that Mask marks, for each sequence and channel. It is 0 for a sequence without a marked step.
type MeanPool struct {
	Batch, Length, Channels int
	Mask                    []bool // (batch, length), or nil for all steps
}

// share returns 1/n for a sequence with n marked steps, or 0 without one.
func (p *MeanPool) share(b int) float64 {
	n := p.Length
	if p.Mask != nil {
		n = 0
		for _, marked := range p.Mask[b*p.Length:][:p.Length] {
			if marked {
				n++
			}
		}
	}
	if n == 0 {
		return 0
	}
	return 1 / float64(n)
}

func (p *MeanPool) marked(b, t int) bool { return p.Mask == nil || p.Mask[b*p.Length+t] }

// steps is the number of steps of a task. The sums of a task are added in the order of its steps, and then those of the tasks in order.
func (p *MeanPool) steps() int { return max(4*piece/p.Channels, 1) }

// MeanPoolForward writes y (batch, channels) from x (batch, length, channels). What is not marked is not read. Sums are in float64.
func MeanPoolForward[T Float](p *MeanPool, y, x []T) {
	tasks := (p.Length + p.steps() - 1) / p.steps()
	sums := work.Borrow[float64](p.Batch * tasks * p.Channels)
	defer sums.Return()
	work.Parallel(p.Batch*tasks, func(task int) {
		b, from := task/tasks, task%tasks*p.steps()
		sum := sums.Data[task*p.Channels:][:p.Channels]
		clear(sum)
		for t := from; t < min(from+p.steps(), p.Length); t++ {
			if p.marked(b, t) {
				add64(sum, x[(b*p.Length+t)*p.Channels:][:p.Channels])
			}
		}
	})
	work.Parallel(p.Batch, func(b int) {
		share, sum := p.share(b), sums.Data[b*tasks*p.Channels:][:p.Channels]
		for task := 1; task < tasks; task++ {
			for d, v := range sums.Data[(b*tasks+task)*p.Channels:][:p.Channels] {
				sum[d] += v
			}
		}
		for d, v := range sum {
			y[b*p.Channels+d] = T(v * share)
		}
	})
}

// MeanPoolBackward writes dx, the gradient of x, from dy, the gradient of y.
func MeanPoolBackward[T Float](p *MeanPool, dx, dy []T) {
	tasks := (p.Length + p.steps() - 1) / p.steps()
	shares := work.Borrow[float64](p.Batch)
	defer shares.Return()
	for b := range p.Batch {
		shares.Data[b] = p.share(b)
	}
	work.Parallel(p.Batch*tasks, func(task int) {
		b, from := task/tasks, task%tasks*p.steps()
		for t := from; t < min(from+p.steps(), p.Length); t++ {
			row := dx[(b*p.Length+t)*p.Channels:][:p.Channels]
			clear(row)
			if p.marked(b, t) {
				for d, v := range dy[b*p.Channels:][:p.Channels] {
					row[d] = T(float64(v) * shares.Data[b])
				}
			}
		}
	})
}
