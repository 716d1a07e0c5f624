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

// MeanPoolForward writes y (batch, channels) from x (batch, length, channels). What is not marked is not read. Sums are in float64, in the
// order of the steps.
func MeanPoolForward[T Float](p *MeanPool, y, x []T) {
	work.Parallel(p.Batch, func(b int) {
		share := p.share(b)
		sums := work.Borrow[float64](p.Channels)
		defer sums.Return()
		clear(sums.Data)
		for t := range p.Length {
			if p.marked(b, t) {
				for d, v := range x[(b*p.Length+t)*p.Channels:][:p.Channels] {
					sums.Data[d] += float64(v)
				}
			}
		}
		for d, v := range sums.Data {
			y[b*p.Channels+d] = T(v * share)
		}
	})
}

// MeanPoolBackward writes dx, the gradient of x, from dy, the gradient of y.
func MeanPoolBackward[T Float](p *MeanPool, dx, dy []T) {
	work.Parallel(p.Batch, func(b int) {
		share := p.share(b)
		for t := range p.Length {
			row := dx[(b*p.Length+t)*p.Channels:][:p.Channels]
			clear(row)
			if p.marked(b, t) {
				for d, v := range dy[b*p.Channels:][:p.Channels] {
					row[d] = T(float64(v) * share)
				}
			}
		}
	})
}
