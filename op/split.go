package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Split divides x (batch, …, channels) along its last axis into parts of the given sizes, which must add up to the channels. It returns
// a copy of each part, (batch, …, size).
//
// Use it instead of gorgonia.Slice: Gorgonia merges two slices into one node if their bounds differ by a multiple of 256.
//
// Errors: an x that is missing, or of another type or shape; a size below 1 or above the channels; sizes that do not add up to them.
func Split(x *G.Node, sizes ...int) (G.Nodes, error) {
	c := newChecker("split", "x", x)
	s, _, _ := c.rows("x", x, "channels")
	return c.split(s, len(s)-1, "the channels", sizes)
}

// SplitAxis is Split along any axis, counted from 0.
//
// Errors: those of Split, for the size of the axis instead of the channels; an axis that x does not have.
func SplitAxis(x *G.Node, axis int, sizes ...int) (G.Nodes, error) {
	c := newChecker("split", "x", x)
	s, _, _ := c.rows("x", x, "channels")
	if axis < 0 || axis >= len(s) {
		c.errorf("the axis is %d, want one of the %d axes of x, counted from 0", axis, len(s))
		axis = 0
	}
	return c.split(s, axis, "the size of the axis", sizes)
}

func (c *checker) split(s []int, axis int, what string, sizes []int) (G.Nodes, error) {
	all, sum, inner := s[axis], 0, 1
	for i, n := range sizes {
		if n < 1 || n > all {
			c.errorf("size %d is %d, want 1 to %d, %s", i, n, all, what)
		}
		sum += n
	}
	if sum != all {
		c.errorf("sizes %v add up to %d, want %s, %d", sizes, sum, what, all)
	}
	if c.err != nil {
		return nil, c.err
	}
	for _, n := range s[axis+1:] {
		inner *= n
	}
	var parts G.Nodes
	from := 0
	for _, n := range sizes {
		shape := append([]int{}, s...)
		shape[axis] = n
		f := columns[float32]{all * inner, from * inner, n * inner}
		p, err := c.apply1(f, columns[float64](f), shape)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
		from += n
	}
	return parts, nil
}

// columns copies one part of a split: size columns of rows of width elements.
type columns[T kernel.Float] struct{ width, from, size int }

func (f columns[T]) Forward(in []value[T], out [][]T) {
	kernel.CopyColumns(out[0], in[0].Data, f.width, f.from, f.size)
}

func (f columns[T]) Backward(_ []value[T], dout, grad [][]T) {
	kernel.ScatterColumns(grad[0], dout[0], f.width, f.from, f.size)
}

func (f columns[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, cuda.CopyColumns(s, out[0].Len()/f.size, f.width, f.from, f.size, in[0].Array, out[0])
}

func (columns[T]) Linear() {}

func (f columns[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	return cuda.ScatterColumns(s, dout[0].Len()/f.size, f.width, f.from, f.size, dout[0], grad[0])
}
