package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Concat returns values joined along an axis, counted from 0, in order. They have the same number of axes and the same sizes, except along the
// axis. A value whose sizes before the axis are all 1 is repeated, such as a class token (1, 1, channels) for each sequence of a batch; its gradient
// is the sum over the repetitions.
//
// Errors: no value, or one that is missing, or of another type or shape; an axis that value 0 does not have.
func Concat(axis int, values ...*G.Node) (*G.Node, error) {
	if len(values) == 0 {
		values = G.Nodes{nil}
	}
	c := newChecker("concatenation", "value 0", values[0])
	if c.err != nil {
		return nil, c.err
	}
	whole := values[0].Shape().Clone()
	if axis < 0 || axis >= len(whole) {
		c.errorf("the axis is %d, want one of the %d axes of value 0, counted from 0", axis, len(whole))
		return nil, c.err
	}
	outer := func(s tensor.Shape) int { return s[:axis].TotalSize() }
	for _, n := range values[1:] {
		if n != nil && len(n.Shape()) == len(whole) && outer(whole) == 1 {
			copy(whole[:axis], n.Shape()) // a value that is repeated does not have the size of the batch
		}
	}
	total := 0
	for i, n := range values {
		want := whole.Clone()
		if want[axis] = 0; n != nil && len(n.Shape()) == len(want) && outer(n.Shape()) == 1 {
			copy(want[:axis], n.Shape())
		}
		total += c.required(fmt.Sprint("value ", i), n, "like value 0 but for the axis", want...)[axis]
	}
	whole[axis] = total
	f := concat[float32]{axis, outer(whole), whole[axis:].TotalSize()}
	return c.apply1(f, concat[float64](f), whole)
}

// concat joins rows of several values: outer rows of size elements.
type concat[T kernel.Float] struct{ axis, outer, size int }

// each calls g for each operand with the number of its rows, outer or 1, their first column in the result, and their width.
func (f concat[T]) each(count int, shape func(i int) tensor.Shape, g func(i, rows, from, width int) error) error {
	from := 0
	for i := range count {
		s := shape(i)
		width := s[f.axis:].TotalSize()
		if err := g(i, s.TotalSize()/width, from, width); err != nil {
			return err
		}
		from += width
	}
	return nil
}

// On the host.

func (f concat[T]) host(in []value[T], g func(i, rows, from, width int)) {
	_ = f.each(len(in), func(i int) tensor.Shape { return in[i].Shape }, func(i, rows, from, width int) error {
		g(i, rows, from, width)
		return nil
	})
}

func (f concat[T]) Forward(in []value[T], out [][]T) {
	f.host(in, func(i, _, from, width int) { kernel.PutColumns(out[0], in[i].Data, f.outer, f.size, from, width) })
}

func (f concat[T]) Backward(in []value[T], dout, grad [][]T) {
	f.host(in, func(i, rows, from, width int) {
		if rows == f.outer {
			kernel.CopyColumns(grad[i], dout[0], f.size, from, width)
			return
		}
		kernel.SumColumns(grad[i], dout[0], f.size, from)
	})
}

// On a device.

func (f concat[T]) device(in []onDevice, g func(i, rows, from, width int) error) error {
	return f.each(len(in), func(i int) tensor.Shape { return in[i].Shape }, g)
}

func (f concat[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.device(in, func(i, rows, from, width int) error {
		stride := width
		if rows < f.outer {
			stride = 0
		}
		return cuda.CopyRows(s, f.outer, width, in[i].Array, stride, out[0].Slice(from, out[0].Len()-from), f.size)
	})
}

func (concat[T]) Linear() {}

func (f concat[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.device(in, func(i, rows, from, width int) error {
		part := dout[0].Slice(from, dout[0].Len()-from)
		if rows < f.outer {
			return cuda.ColumnSums(s, f.outer, width, part, f.size, grad[i])
		}
		return cuda.CopyRows(s, f.outer, width, part, f.size, grad[i], width)
	})
}
