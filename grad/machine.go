package grad

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
)

// gradients has the gradients that one machine found.
type gradients struct {
	machine Machine
	of      [][]float64 // by the index of the input; nil if there is no gradient
	missing []string    // why there is no gradient
	hint    string      // a possible reason for a gradient of zero
	loss    float64
	ran     bool // loss is set
}

// gradients differentiates the function on a machine. It returns nil if the function cannot be built or run.
func (c *checker) gradients(m Machine) (*gradients, []error) {
	found := &gradients{machine: m, of: make([][]float64, len(c.inputs)), missing: make([]string, len(c.inputs))}
	run := c.tape
	if m == Lisp {
		run = c.lisp
	}
	failures, err := run(found)
	for i, f := range failures {
		failures[i] = fmt.Errorf("%v: %w", m, f)
	}
	if err != nil {
		return nil, append(failures, fmt.Errorf("%v: %w", m, err))
	}
	return found, failures
}

// tape differentiates on the tape machine. With failures there are gradients to compare, with an error there are none.
func (c *checker) tape(found *gradients) (failures []error, err error) {
	var b *built
	var by []int // the inputs that have a gradient
	var nodes G.Nodes
	for wanted := c.differentiated(); ; wanted = by {
		if len(wanted) == 0 {
			return nil, nil
		}
		if b, err = c.build(); err != nil {
			return nil, err
		}
		names := b.operatorsWithout(func(o G.Op) bool { _, ok := o.(G.SDOp); return !ok })
		found.hint = hint("SymDiff", "gorgonia.SDOp", names)
		if nodes, by, err = b.differentiate(wanted, found); err != nil {
			return nil, err
		}
		if len(by) == len(wanted) {
			break
		}
	}

	values := make([]G.Value, len(nodes)+1)
	for i, n := range append(nodes, b.loss) {
		G.Read(n, &values[i])
	}
	m, err := newMachine(b.g, func() G.VM { return G.NewTapeMachine(b.g) })
	if err != nil {
		return nil, err
	}
	defer m.Close()
	read := func() ([][]float64, error) {
		clear(values) // Read copies into a value that exists, and would keep its type
		if err := m.RunAll(); err != nil {
			return nil, err
		}
		if err := b.changed(); err != nil {
			return nil, err
		}
		return c.read(by, values[:len(by)])
	}

	first, err := read()
	if err != nil {
		return nil, err
	}
	if found.loss, err = scalar(values[len(by)]); err != nil {
		return nil, err
	}
	found.ran = true
	for k, i := range by {
		found.of[i] = first[k]
	}
	m.Reset()
	second, err := read()
	if err != nil {
		return nil, fmt.Errorf("second run: %w", err)
	}
	failures = c.same(by, first, second, "second run of the machine")

	third, err := c.dualValues(b, by)
	if err != nil {
		return nil, fmt.Errorf("run with gorgonia.BindDualValues: %w", err)
	}
	return append(failures, c.same(by, first, third, "dual values that solvers read")...), nil
}

// differentiate adds the gradients with respect to the wanted inputs to the graph. If some inputs have no gradient, it records the reason and returns
// the indices of the others; the caller then starts again with those.
func (b *built) differentiate(wanted []int, found *gradients) (nodes G.Nodes, by []int, err error) {
	var with G.Nodes
	for _, i := range wanted {
		with = append(with, b.in[i])
	}
	if nodes, err = symbolic(b.loss, with); err == nil {
		return nodes, wanted, nil
	}
	var without G.SymDiffError
	if errors.As(err, &without) {
		for _, i := range wanted {
			if slices.Contains(without.Nodes(), b.in[i]) {
				found.missing[i] = fmt.Sprintf("gorgonia.Grad: %v", err)
			} else {
				by = append(by, i)
			}
		}
		if len(by) < len(wanted) {
			return nil, by, nil
		}
	}
	return nil, nil, fmt.Errorf("gorgonia.Grad: %w%s", err, found.hint)
}

// symbolic calls gorgonia.Grad, and returns its panic as an error. It panics if an operator announces a gradient and does not return it.
func symbolic(loss *G.Node, with G.Nodes) (nodes G.Nodes, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v; does an operator's SymDiff return no gradient for an operand that its DiffWRT says has one?", r)
		}
	}()
	return G.Grad(loss, with...)
}

// newMachine calls a constructor of a machine of the graph. The constructor panics if the graph does not compile.
func newMachine(g *G.ExprGraph, construct func() G.VM) (m G.VM, err error) {
	if err := node.Check(g); err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("making the machine: panic: %v", r)
		}
	}()
	return construct(), nil
}

// dualValues runs a new tape machine as training does, and returns the gradients that a solver reads.
func (c *checker) dualValues(b *built, by []int) ([][]float64, error) {
	var with G.Nodes
	for _, i := range by {
		with = append(with, b.in[i])
	}
	m, err := newMachine(b.g, func() G.VM { return G.NewTapeMachine(b.g, G.BindDualValues(with...)) })
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return nil, err
	}
	return c.nodeGradients(b, by)
}

// lisp differentiates on the lisp machine, which adds its gradients to those of the nodes.
func (c *checker) lisp(found *gradients) (failures []error, err error) {
	b, err := c.build()
	if err != nil {
		return nil, err
	}
	names := b.operatorsWithout(func(o G.Op) bool { _, ok := o.(G.ADOp); return !ok })
	found.hint = hint("DoDiff", "gorgonia.ADOp", names)
	by := c.differentiated()
	run := func() ([][]float64, error) {
		// A lisp machine that runs again gives zeros, so each run has its own.
		m, err := newMachine(b.g, func() G.VM { return G.NewLispMachine(b.g) })
		if err != nil {
			return nil, err
		}
		defer m.Close()
		if err := m.RunAll(); err != nil {
			return nil, err
		}
		if err := b.changed(); err != nil {
			return nil, err
		}
		return c.nodeGradients(b, by)
	}

	first, err := run()
	if err != nil {
		return nil, err
	}
	if found.loss, err = scalar(b.loss.Value()); err != nil {
		return nil, err
	}
	found.ran = true
	for k, i := range by {
		found.of[i] = first[k]
		v, err := b.in[i].Grad()
		if err != nil {
			return nil, err
		}
		G.ZeroValue(v) // as a solver does after a step
	}
	second, err := run()
	if err != nil {
		return nil, fmt.Errorf("second machine on the graph: %w", err)
	}
	return c.same(by, first, second, "run of a second machine on the graph"), nil
}

func (c *checker) nodeGradients(b *built, by []int) ([][]float64, error) {
	values := make([]G.Value, len(by))
	for k, i := range by {
		var err error
		if values[k], err = b.in[i].Grad(); err != nil {
			return nil, fmt.Errorf("input %s: %w", c.inputs[i].Name, err)
		}
	}
	return c.read(by, values)
}

// read returns the elements of the gradients with respect to the given inputs.
func (c *checker) read(by []int, values []G.Value) ([][]float64, error) {
	result := make([][]float64, len(by))
	for k, i := range by {
		var err error
		if result[k], err = elements(values[k], c.inputs[i].Value.Shape()); err != nil {
			return nil, fmt.Errorf("the gradient by %s %w", c.inputs[i].Name, err)
		}
	}
	return result, nil
}

// same returns an error for each input whose gradients differ.
func (c *checker) same(by []int, first, other [][]float64, which string) (failures []error) {
	for k, i := range by {
		for e, v := range first[k] {
			if w := other[k][e]; v != w && (finite(v) || finite(w)) {
				failures = append(failures, fmt.Errorf("%s: the gradient at %v is %v in the first run, and %v in the %s",
					c.inputs[i].Name, index(e, c.inputs[i].Value.Shape()), v, w, which))
				break
			}
		}
	}
	return failures
}

func scalar(v G.Value) (float64, error) {
	d, err := elements(v, nil)
	if err != nil {
		return 0, fmt.Errorf("the weighted sum of the outputs %w", err)
	}
	return d[0], nil
}

func hint(method, iface string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("; without %s (%s): %s", method, iface, strings.Join(names, ", "))
}
