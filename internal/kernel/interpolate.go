package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// Interpolation is how the values between the cells of a grid are found.
type Interpolation int

// The interpolations. Cubic is the convolution with Keys' kernel for a = -0.75 (Keys, "Cubic Convolution Interpolation for Digital Image
// Processing"), as PyTorch has it.
const (
	InterpolateNearest Interpolation = iota // cell j of n reads cell j·m/n of m, rounded down
	InterpolateLinear                       // between two cells along each axis
	InterpolateCubic                        // between four cells along each axis
	interpolations                          // their number
)

// Known reports whether m is one of the interpolations.
func (m Interpolation) Known() bool { return m >= 0 && m < interpolations }

func (m Interpolation) String() string {
	if !m.Known() {
		return "unknown"
	}
	return [...]string{"nearest", "linear", "cubic"}[m]
}

// Interpolate changes the sizes of a grid. A grid of fewer than three axes has axes of size 1 before its own. The centres of the first and last cells
// of both grids meet if AlignCorners is set, else the outer edges of these cells do. A cell outside of the grid has the value of the nearest inside.
type Interpolate struct {
	Batch, Channels int
	From, To        [3]int
	Mode            Interpolation
	AlignCorners    bool
}

// taps are, for each cell along an axis of a result, the cells of the operand that it is a weighted sum of: index and weight [start[j], start[j+1]).
type taps struct {
	start, index []int
	weight       []float64
}

// taps returns the taps along an axis. A weight of zero is left out, so that what has no effect does not spread a NaN.
func (p *Interpolate) taps(axis int) taps {
	from, to := p.From[axis], p.To[axis]
	t := taps{start: make([]int, 1, to+1)}
	for j := range to {
		at, weights := p.position(from, to, j)
		for i, w := range weights {
			if w != 0 {
				t.index, t.weight = append(t.index, min(max(at+i, 0), from-1)), append(t.weight, w)
			}
		}
		t.start = append(t.start, len(t.index))
	}
	return t
}

// position returns the first cell that cell j reads, and the weights of this cell and those after it.
func (p *Interpolate) position(from, to, j int) (int, []float64) {
	if p.Mode == InterpolateNearest {
		return j * from / to, []float64{1}
	}
	x := (float64(j)+0.5)*float64(from)/float64(to) - 0.5
	if p.AlignCorners {
		x = float64(j) * float64(from-1) / float64(max(to-1, 1))
	}
	if p.Mode == InterpolateLinear {
		x = max(x, 0)
	}
	cell := math.Floor(x)
	t := x - cell
	if p.Mode == InterpolateLinear {
		return int(cell), []float64{1 - t, t}
	}
	const a = -0.75
	near := func(x float64) float64 { return ((a+2)*x-(a+3))*x*x + 1 }  // |x| ≤ 1
	far := func(x float64) float64 { return ((a*x-5*a)*x+8*a)*x - 4*a } // 1 < |x| < 2
	return int(cell) - 1, []float64{far(1 + t), near(t), near(1 - t), far(2 - t)}
}

// transposed returns the taps of the gradient: for each cell of the operand, those of the result, in order.
func (t taps) transposed(cells int) taps {
	r := taps{start: make([]int, cells+1), index: make([]int, len(t.index)), weight: make([]float64, len(t.index))}
	for _, i := range t.index {
		r.start[i+1]++
	}
	for i := range cells {
		r.start[i+1] += r.start[i]
	}
	next := append([]int{}, r.start...)
	for j := range len(t.start) - 1 {
		for k := t.start[j]; k < t.start[j+1]; k++ {
			at := next[t.index[k]]
			next[t.index[k]]++
			r.index[at], r.weight[at] = j, t.weight[k]
		}
	}
	return r
}

// InterpolateForward writes y (batch, to, channels) from x (batch, from, channels).
func InterpolateForward[T Float](p *Interpolate, y, x []T) {
	resample(p.Batch, p.Channels, p.From, p.To, [3]taps{p.taps(0), p.taps(1), p.taps(2)}, y, x)
}

// InterpolateBackward writes dx, the gradient of x, from dy, the gradient of y.
func InterpolateBackward[T Float](p *Interpolate, dx, dy []T) {
	var t [3]taps
	for i := range t {
		t[i] = p.taps(i).transposed(p.From[i])
	}
	resample(p.Batch, p.Channels, p.To, p.From, t, dx, dy)
}

// resample writes y (batch, to, channels), the sums over the taps of x (batch, from, channels) along each axis. A task is a line of y.
func resample[T Float](batch, channels int, from, to [3]int, t [3]taps, y, x []T) {
	lines := max(piece/(to[2]*channels), 1)
	work.ParallelRange(batch*to[0]*to[1], lines, func(first, last int) {
		for line := first; line < last; line++ {
			b, d, h := line/(to[0]*to[1]), line/to[1]%to[0], line%to[1]
			for w := range to[2] {
				sum := y[(line*to[2]+w)*channels:][:channels]
				clear(sum)
				for i := t[0].start[d]; i < t[0].start[d+1]; i++ {
					for j := t[1].start[h]; j < t[1].start[h+1]; j++ {
						row := ((b*from[0]+t[0].index[i])*from[1] + t[1].index[j]) * from[2]
						for k := t[2].start[w]; k < t[2].start[w+1]; k++ {
							at := (row + t[2].index[k]) * channels
							axpy(sum, x[at:at+channels], T(t[0].weight[i]*t[1].weight[j]*t[2].weight[k]))
						}
					}
				}
			}
		}
	})
}
