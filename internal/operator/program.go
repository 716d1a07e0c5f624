package operator

import (
	"fmt"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/work"
)

// program is a machine for graphs on the host. It runs in its caller's goroutine, and each node keeps its value until the next run. Gorgonia's tape machine
// locks its caller to a thread and runs in another goroutine, which wakes a thread twice in a run, and has more to do for each operator.
type program []instruction

// instruction computes the value of a node.
type instruction struct {
	to     *G.Node
	from   G.Nodes
	values []G.Value     // of from, in a run
	adds   bool          // the operator is Gorgonia's sum
	sum    *tensor.Dense // the result of the last run, if that was a sum of two tensors
}

var _ G.VM = program(nil)

// NewProgram returns a machine for a graph on the host, or nil if it cannot run it. It knows the operators of this package, and those of Gorgonia that compute a new value from their
// operands and nothing else: elementwise ones, sums, and what their gradients are made of. gorgonia.Read is none of them: read the values of the nodes.
func NewProgram(g *G.ExprGraph) G.VM {
	var p program
	earlier := map[*G.Node]bool{}
	for _, n := range g.AllNodes() { // in the order in which they were made, which is one in which they can run
		if earlier[n] = true; !PlaceOf(n).OnHost() {
			return nil
		}
		if n.Op() == nil {
			continue
		}
		i := instruction{to: n, from: node.Operands(n), adds: strings.HasPrefix(n.Op().String(), "+ ")}
		if !known(n.Op()) || slices.ContainsFunc(i.from, func(n *G.Node) bool { return !earlier[n] }) {
			return nil
		}
		i.values = make([]G.Value, len(i.from))
		p = append(p, i)
	}
	return p
}

func known(o G.Op) bool {
	switch o.(type) {
	case *Operator, *Gradients, *view, *scatter:
		return true
	}
	const others = " elemBinOp elemUnaryOp sumOp repeatOp reshapeOp sizeOp constantScalar constantTensor "
	name, ok := strings.CutPrefix(strings.TrimPrefix(fmt.Sprintf("%T", o), "*"), "gorgonia.")
	return ok && strings.Contains(others, " "+name+" ")
}

// RunAll computes all nodes, from the values that those without an operator have.
func (p program) RunAll() error {
	for at := range p {
		i := &p[at]
		for j, n := range i.from {
			if i.values[j] = n.Value(); i.values[j] == nil {
				return fmt.Errorf("%v: its operand %s has no value", i.to, n.Name())
			}
		}
		v, err := i.run()
		if err == nil && v != i.to.Value() {
			err = G.UnsafeLet(i.to, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (i *instruction) run() (G.Value, error) {
	if i.adds {
		if v := addInto[float32](i); v != nil {
			return v, nil
		}
		if v := addInto[float64](i); v != nil {
			return v, nil
		}
	}
	return i.to.Op().Do(i.values...)
}

// addInto adds two tensors of T into the memory of the last sum, on all processors; Gorgonia makes a new one. It returns nil for other operands.
func addInto[T Float](i *instruction) G.Value {
	a, ok := i.values[0].(*tensor.Dense)
	b, also := i.values[1].(*tensor.Dense)
	if !ok || !also || !a.Shape().Eq(b.Shape()) || !isRowMajor(a) || !isRowMajor(b) {
		return nil
	}
	x, ok := Elements[T](a)
	y, also := Elements[T](b)
	if !ok || !also {
		return nil
	}
	if i.sum == nil {
		i.sum = denseFrom(make([]T, len(x)), a.Shape())
	}
	to, _ := Elements[T](i.sum)
	work.ParallelRange(len(to), 1<<12, func(from, end int) {
		for j := from; j < end; j++ {
			to[j] = x[j] + y[j]
		}
	})
	return i.sum
}

// Reset does nothing: a run begins anew.
func (p program) Reset() {}

// Close does nothing: the values belong to their nodes.
func (p program) Close() error { return nil }
