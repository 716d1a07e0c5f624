package op

import (
	"fmt"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
)

// checker checks an operator's operands when the operator is added to a graph, and keeps the first error. An error names the operand,
// what it was, and what it should be.
type checker struct {
	op  string // name of the operator, as "selective scan"
	g   *G.ExprGraph
	dt  tensor.Dtype // type of the floating-point operands
	in  operands     // in the order in which they were checked, which is their order in the function
	err error
}

// newChecker returns a checker that wants the graph and the type of operand n for the other operands.
func newChecker(op, name string, n *G.Node) *checker {
	c := &checker{op: op}
	if n == nil {
		c.errorf("%s is missing", name)
		return c
	}
	if c.g = n.Graph(); c.g == nil {
		c.errorf("%s belongs to no graph", name)
		return c // a node without a graph may have no type, and Dtype then panics
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

// operands lists the operands of an operator. A nil node is an absent operand.
type operands = []operator.In

// numbers adds an operand of floating-point numbers without a check.
func (c *checker) numbers(name string, n *G.Node) {
	c.in = append(c.in, operator.In{Name: name, Node: n})
}

// passes says that the gradient of the last operand is the gradient of the result.
func (c *checker) passes() { c.in[len(c.in)-1].Passed = true }

// required checks an operand that must be present and of the operator's type. The string axes names the axes of its shape, as
// "(batch, length)"; want holds their sizes, 0 for any. It returns the shape. After an error the sizes of 0 are 1 in it, so that the checks that
// follow can compute with it; they then change nothing.
func (c *checker) required(name string, n *G.Node, axes string, want ...int) tensor.Shape {
	if c.operand(name, n, operator.Numbers, axes, want...); c.err == nil {
		return n.Shape()
	}
	s := tensor.Shape(slices.Clone(want))
	for i := range s {
		s[i] = max(s[i], 1)
	}
	return s
}

// operand checks an operand that must be present, and adds it.
func (c *checker) operand(name string, n *G.Node, kind operator.Kind, axes string, want ...int) {
	c.in = append(c.in, operator.In{Name: name, Node: n, Kind: kind})
	switch {
	case n != nil:
		c.typed(name, n, kind)
		c.shape(name, n, axes, want...)
	case kind == operator.Ints:
		c.errorf("%s is missing, want a node of int of shape %s", name, axes)
	default:
		c.errorf("%s is missing, want a node of shape %s", name, axes)
	}
}

// rows checks an operand of rows, (batch, …, channels) with any number of axes between. It returns its shape, their number and the size of a row,
// which the string last names.
func (c *checker) rows(name string, n *G.Node, last string) (shape tensor.Shape, rows, size int) {
	want := []int{0, 0}
	if n != nil && len(n.Shape()) > 2 {
		want = make([]int, len(n.Shape()))
	}
	s := c.required(name, n, fmt.Sprintf("(batch, …, %s)", last), want...)
	size = s[len(s)-1]
	return s, s.TotalSize() / size, size
}

// optional is required for an operand that may be nil.
func (c *checker) optional(name string, n *G.Node, axes string, want ...int) {
	if n == nil {
		c.numbers(name, nil)
	} else {
		c.required(name, n, axes, want...)
	}
}

// typed checks an operand's graph and type.
func (c *checker) typed(name string, n *G.Node, kind operator.Kind) {
	switch g := n.Graph(); {
	case c.err != nil:
		return
	case g == nil:
		c.errorf("%s belongs to no graph, want that of the other operands", name)
		return // a node without a graph may have no type, and Dtype then panics
	case g != c.g:
		c.errorf("%s belongs to another graph than the other operands", name)
	}
	switch dt := n.Dtype(); {
	case kind == operator.Numbers && dt != c.dt:
		c.errorf("%s is of %v, want %v like the other operands", name, dt, c.dt)
	case kind == operator.Ints && dt != tensor.Int:
		c.errorf("%s is of %v, want int", name, dt)
	case kind == operator.Marks && dt != tensor.Float32 && dt != tensor.Float64 && dt != tensor.Int:
		c.errorf("%s is of %v, want float32, float64 or int", name, dt)
	}
}

// shape checks an operand's shape. A wanted size of 0 means any size of at least 1.
func (c *checker) shape(name string, n *G.Node, axes string, want ...int) {
	if c.err != nil {
		return
	}
	got := n.Shape()
	fits := len(got) == len(want)
	for i := 0; fits && i < len(want); i++ {
		fits = got[i] > 0 && (want[i] == 0 || got[i] == want[i])
	}
	if !fits {
		c.errorf("%s has shape %v, want %s%s", name, got, axes, sizes(want))
	}
}

// sizes returns the text that follows the names of the axes in an error: the sizes that are known, or nothing if none is.
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

// start checks Start, the operand that marks the first steps of sequences. It may be nil.
func (c *checker) start(n *G.Node, batch, length int) { c.marks("Start", n, batch, length) }

// marks checks an operand whose non-zero elements mark steps. It may be nil.
func (c *checker) marks(name string, n *G.Node, want ...int) {
	if n == nil {
		c.in = append(c.in, operator.In{Name: name, Kind: operator.Marks})
		return
	}
	axes := "(batch, length)"
	if len(want) > 2 {
		axes = "(batch, grid…)"
	}
	c.operand(name, n, operator.Marks, axes, want...)
}

// ints checks an operand of integers, such as tokens or targets.
func (c *checker) ints(name string, n *G.Node, axes string, want ...int) {
	c.operand(name, n, operator.Ints, axes, want...)
}
