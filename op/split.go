package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/kernel"
)

// Split divides x (batch, length, width) along its last axis into parts of the given sizes, which must add up to the width. It returns a
// copy of each part, (batch, length, size).
//
// Use it instead of gorgonia.Slice: Gorgonia merges two slices into one node if their bounds differ by a multiple of 256.
//
// Errors: an x that is missing, or of another type or shape; a size below 1 or above the width; sizes that do not add up to the width.
func Split(x *G.Node, sizes ...int) (G.Nodes, error) {
	c := newChecker("split", "x", x)
	c.required("x", x, "(batch, length, width)", 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s, sum := x.Shape(), 0
	for i, n := range sizes {
		if n < 1 || n > s[2] {
			c.errorf("size %d is %d, want 1 to %d, the width", i, n, s[2])
		}
		sum += n
	}
	if sum != s[2] {
		c.errorf("sizes %v add up to %d, want the width, %d", sizes, sum, s[2])
	}
	if c.err != nil {
		return nil, c.err
	}
	var parts G.Nodes
	from := 0
	for _, n := range sizes {
		shape := s.Clone()
		shape[2] = n
		p, err := apply1(columns{from, n}, operands{[]string{"x"}, G.Nodes{x}}, c.dt, shape)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
		from += n
	}
	return parts, nil
}

// columns copies one part of a split.
type columns struct{ from, width int }

func (f columns) String() string       { return fmt.Sprintf("columns{%d:%d}", f.from, f.from+f.width) }
func (columns) differentiable() []bool { return []bool{true} }

func (f columns) forward(in, out []operand) {
	if out[0].is32() {
		kernel.CopyColumns(floats[float32](out[0]), floats[float32](in[0]), in[0].shape[2], f.from, f.width)
	} else {
		kernel.CopyColumns(floats[float64](out[0]), floats[float64](in[0]), in[0].shape[2], f.from, f.width)
	}
}

func (f columns) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		kernel.ScatterColumns(floats[float32](grad[0]), floats[float32](dout[0]), in[0].shape[2], f.from, f.width)
	} else {
		kernel.ScatterColumns(floats[float64](grad[0]), floats[float64](dout[0]), in[0].shape[2], f.from, f.width)
	}
}
