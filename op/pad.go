package op

import (
	"math"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Pad returns x (batch, grid…, channels), a grid of one to three axes, with before[i] cells added before and after[i] cells after those of axis i of the
// grid. The new cells are zero. A negative number cuts off cells: Pad(x, []int{-3}, []int{-2}) of a sequence leaves out its first three and its last two
// steps.
//
// Errors: an x that is missing, or of another type or shape; lists that do not have one number for each axis of the grid; numbers that leave no cell,
// or beyond 2^31.
func Pad(x *G.Node, before, after []int) (*G.Node, error) {
	c := newChecker("pad", "x", x)
	axes := 1
	if x != nil {
		axes = min(max(len(x.Shape())-2, 1), 3)
	}
	s := c.required("x", x, "(batch, grid…, channels) with a grid of one to three axes", make([]int, axes+2)...)
	y := s.Clone()
	f := pad[float32]{kernel.Pad{Batch: s[0], Channels: s[axes+1], From: [3]int{1, 1, 1}, To: [3]int{1, 1, 1}}}
	if len(before) != axes || len(after) != axes {
		c.errorf("before is %v and after %v, want %d numbers each, one for each axis of the grid", before, after, axes)
	}
	const most = 1 << 31
	for i := range axes {
		if c.err != nil {
			return nil, c.err
		}
		n, at := s[1+i], 3-axes+i
		from, to := int64(before[i]), int64(after[i])
		if cells := int64(n) + from + to; min(from, to) < -most || max(from, to) > most || cells < 1 || cells > math.MaxInt {
			c.errorf("before[%d] is %d and after[%[1]d] %[3]d, want numbers from -2^31 to 2^31 that leave at least one of the %[4]d cells of axis %[1]d", i, before[i], after[i], n)
			break
		}
		y[1+i] = n + before[i] + after[i]
		f.From[at], f.To[at], f.Before[at] = n, y[1+i], before[i]
	}
	return c.apply1(f, pad[float64](f), slices.Clone(y))
}

type pad[T kernel.Float] struct{ kernel.Pad }

func (f pad[T]) Forward(in []value[T], out [][]T) { kernel.PadCells(&f.Pad, out[0], in[0].Data) }

func (f pad[T]) Backward(_ []value[T], dout, grad [][]T) {
	back := f.Reverse()
	kernel.PadCells(&back, grad[0], dout[0])
}

func (f pad[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, (*cuda.Pad)(&f.Pad).Apply(s, in[0].Array, out[0])
}

func (pad[T]) Linear() {}

func (f pad[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	back := f.Reverse()
	return (*cuda.Pad)(&back).Apply(s, dout[0], grad[0])
}
