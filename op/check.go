package op

import (
	"fmt"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	memory "github.com/gomamba/mamba/internal/size"
)

// checker looks at an operator's operands before anything is computed, and keeps the first error that it finds. Its
// errors name the operand, what it was, and what it should be.
type checker struct {
	op  string // "selective scan"
	g   *G.ExprGraph
	dt  tensor.Dtype // of the floating-point operands
	err error
}

// newChecker takes graph and type from the operand that the others are held against.
func newChecker(op, name string, n *G.Node) *checker {
	c := &checker{op: op}
	if n == nil {
		c.errorf("%s is missing", name)
		return c
	}
	if c.g = n.Graph(); c.g == nil {
		c.errorf("%s belongs to no graph", name)
		return c // and may have no type
	}
	if c.dt = n.Dtype(); c.dt != tensor.Float32 && c.dt != tensor.Float64 {
		c.errorf("%s is of %v, want float32 or float64", name, c.dt)
	}
	return c
}

func (c *checker) errorf(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("op: "+c.op+": "+format, args...)
	}
}

// required is an operand that must be there, of the operator's type; want lists the shape's axes, as "(batch, length)",
// and their sizes.
func (c *checker) required(name string, n *G.Node, axes string, want ...int) {
	if n == nil {
		c.errorf("%s is missing, want a node of shape %s", name, axes)
		return
	}
	c.float(name, n)
	c.shape(name, n, axes, want...)
}

// optional is like required, but the operand may be nil.
func (c *checker) optional(name string, n *G.Node, axes string, want ...int) {
	if n != nil {
		c.required(name, n, axes, want...)
	}
}

func (c *checker) float(name string, n *G.Node) {
	c.graph(name, n)
	if c.err == nil && n.Dtype() != c.dt {
		c.errorf("%s is of %v, want %v like the other operands", name, n.Dtype(), c.dt)
	}
}

func (c *checker) graph(name string, n *G.Node) {
	switch {
	case c.err != nil || n.Graph() == c.g:
	case n.Graph() == nil:
		c.errorf("%s belongs to no graph, want that of the other operands", name)
	default:
		c.errorf("%s belongs to another graph than the other operands", name)
	}
}

// fits returns an error if the machine's memory does not hold an operator's results.
func fits(dt tensor.Dtype, results []tensor.Shape) error {
	var need memory.Bytes
	for _, s := range results {
		need = need.Plus(memory.Of(dt.Size(), s...))
	}
	return need.Fits(fmt.Sprintf("the results %v", results))
}

// shape checks a shape; a size of 0 stands for any.
func (c *checker) shape(name string, n *G.Node, axes string, want ...int) {
	if c.err != nil {
		return
	}
	got := n.Shape()
	fits := len(got) == len(want)
	for i := 0; fits && i < len(want); i++ {
		fits = got[i] == want[i] || want[i] == 0 && got[i] > 0
	}
	if !fits {
		c.errorf("%s has shape %v, want %s%s", name, got, axes, sizes(want))
	}
}

// sizes writes known sizes behind the names of the axes.
func sizes(want []int) string {
	known := false
	s := make([]string, len(want))
	for i, n := range want {
		s[i] = "any"
		if n > 0 {
			known = true
			s[i] = fmt.Sprint(n)
		}
	}
	if !known {
		return ""
	}
	return " = (" + strings.Join(s, ", ") + ")"
}

// start checks an operand that marks the steps at which a sequence starts.
func (c *checker) start(n *G.Node, batch, length int) {
	if n == nil {
		return
	}
	if c.graph("Start", n); c.err != nil {
		return
	}
	if dt := n.Dtype(); dt != tensor.Float32 && dt != tensor.Float64 && dt != tensor.Int {
		c.errorf("Start is of %v, want float32, float64 or int", dt)
	}
	c.shape("Start", n, "(batch, length)", batch, length)
}

// ints checks an operand of integers: tokens or targets.
func (c *checker) ints(name string, n *G.Node, axes string, want ...int) {
	if n == nil {
		c.errorf("%s is missing, want a node of int of shape %s", name, axes)
		return
	}
	if c.graph(name, n); c.err != nil {
		return
	}
	if dt := n.Dtype(); dt != tensor.Int {
		c.errorf("%s is of %v, want int", name, dt)
	}
	c.shape(name, n, axes, want...)
}

// starts returns the steps that an operand marks.
func starts(o operand) []bool {
	switch d := o.data.(type) {
	case []float32:
		return nonZero(d)
	case []float64:
		return nonZero(d)
	case []int:
		return nonZero(d)
	}
	return nil
}

func nonZero[T int | float32 | float64](v []T) []bool {
	b := make([]bool, len(v))
	for i, x := range v {
		b[i] = x != 0
	}
	return b
}
