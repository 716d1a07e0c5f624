package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// Window takes the maximum or the mean over windows of the cells of a grid. A grid of fewer than three axes has axes of size 1 before its own,
// with windows of size 1. The maximum of a window with a NaN is NaN.
type Window struct {
	Batch, Channels       int
	From, To              [3]int // cells of the operand, and of the result
	Size, Stride, Padding [3]int
	Max                   bool
	ExcludePadding        bool // the mean is over the cells of a window that are in the grid, instead of over all
}

// cells returns the cells of x along an axis that are in window o.
func (p *Window) cells(axis, o int) (from, to int) {
	from = o*p.Stride[axis] - p.Padding[axis]
	return max(from, 0), min(from+p.Size[axis], p.From[axis])
}

// windows returns the windows along an axis that have cell i.
func (p *Window) windows(axis, i int) (from, to int) {
	if i += p.Padding[axis]; i >= p.Size[axis] {
		from = (i-p.Size[axis])/p.Stride[axis] + 1
	}
	return from, min(i/p.Stride[axis]+1, p.To[axis])
}

// share returns the factor of the sum over a window.
func (p *Window) share(d, h, w int) float64 {
	count := 1
	for axis, o := range [3]int{d, h, w} {
		n := p.Size[axis]
		if p.ExcludePadding {
			from, to := p.cells(axis, o)
			n = to - from
		}
		count *= n
	}
	return 1 / float64(count)
}

// lines calls f for each line (b, d, h) of a grid, in parallel, with the offset of the line's first element.
func (p *Window) lines(grid [3]int, f func(b, d, h, at int)) {
	size := grid[2] * p.Channels
	work.ParallelRange(p.Batch*grid[0]*grid[1], max(piece/size, 1), func(first, last int) {
		for line := first; line < last; line++ {
			f(line/(grid[0]*grid[1]), line/grid[1]%grid[0], line%grid[1], line*size)
		}
	})
}

// each calls f for each cell (i, j, k) of the ranges of the axes, with the offset of its first channel in a grid.
func (p *Window) each(b int, grid [3]int, d, h, w [2]int, f func(i, j, k, at int)) {
	for i := d[0]; i < d[1]; i++ {
		for j := h[0]; j < h[1]; j++ {
			for k := w[0]; k < w[1]; k++ {
				f(i, j, k, (((b*grid[0]+i)*grid[1]+j)*grid[2]+k)*p.Channels)
			}
		}
	}
}

// over calls f for each cell of x in window (d, h, w), in order.
func (p *Window) over(b, d, h, w int, f func(at int)) {
	var r [3][2]int
	for axis, o := range [3]int{d, h, w} {
		r[axis][0], r[axis][1] = p.cells(axis, o)
	}
	p.each(b, p.From, r[0], r[1], r[2], func(_, _, _, at int) { f(at) })
}

// having calls f for each window that has cell (d, h, w) of x, in order.
func (p *Window) having(b, d, h, w int, f func(i, j, k, at int)) {
	var r [3][2]int
	for axis, i := range [3]int{d, h, w} {
		r[axis][0], r[axis][1] = p.windows(axis, i)
	}
	p.each(b, p.To, r[0], r[1], r[2], f)
}

// WindowForward writes y (batch, to, channels) from x (batch, from, channels).
func WindowForward[T Float](p *Window, y, x []T) {
	p.lines(p.To, func(b, d, h, at int) {
		for w := range p.To[2] {
			y := y[at+w*p.Channels:][:p.Channels]
			if p.Max {
				fill(y, T(math.Inf(-1)))
				p.over(b, d, h, w, func(at int) { maximum(y, x[at:at+p.Channels]) })
				continue
			}
			clear(y)
			p.over(b, d, h, w, func(at int) { sumOf(y, y, x[at:at+p.Channels]) })
			scaleOf(y, y, T(p.share(d, h, w)))
		}
	})
}

// maximum writes the larger of y and x to y, NaN if one is.
func maximum[T Float](y, x []T) {
	for c, v := range x {
		y[c] = max(y[c], v)
	}
}

// WindowBackward writes dx, the gradient of x, from dy, the gradient of y. That of a maximum goes to the first cell of the window that has it, to the
// last NaN if there is one.
func WindowBackward[T Float](p *Window, dx, dy, x []T) {
	var chosen []int // the offset of the element of x that each element of y is
	if p.Max {
		chosen = make([]int, len(dy))
		p.lines(p.To, func(b, d, h, at int) {
			y := work.Borrow[T](p.Channels)
			defer y.Return()
			for w := range p.To[2] {
				fill(y.Data, T(math.Inf(-1)))
				chosen := chosen[at+w*p.Channels:][:p.Channels]
				first := true
				p.over(b, d, h, w, func(at int) {
					for c, v := range x[at : at+p.Channels] {
						if first || v > y.Data[c] || v != v {
							y.Data[c], chosen[c] = v, at+c
						}
					}
					first = false
				})
			}
		})
	}
	p.lines(p.From, func(b, d, h, at int) {
		for w := range p.From[2] {
			at := at + w*p.Channels
			dx := dx[at:][:p.Channels]
			clear(dx)
			p.having(b, d, h, w, func(i, j, k, from int) {
				if !p.Max {
					axpy(dx, dy[from:from+p.Channels], T(p.share(i, j, k)))
					return
				}
				for c, v := range dy[from : from+p.Channels] {
					if chosen[from+c] == at+c {
						dx[c] += v
					}
				}
			})
		}
	})
}
