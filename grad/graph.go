package grad

import (
	"errors"
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
)

// built is the function in a graph of its own, with inputs bound to copies of their values.
type built struct {
	inputs  []Input
	g       *G.ExprGraph
	in      G.Nodes
	values  []G.Value // of the inputs, in the runs
	before  []G.Value // copies, to find what a run overwrites
	outputs G.Nodes
	loss    *G.Node
}

func (c *checker) build() (*built, error) {
	b := &built{inputs: c.inputs, g: G.NewGraph()}
	for _, in := range c.inputs {
		n, v, err := leaf(b.g, in)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", in.Name, err)
		}
		if i := slices.Index(b.in, n); i >= 0 {
			return nil, fmt.Errorf("inputs %s and %s are the same node", c.inputs[i].Name, in.Name)
		}
		b.in, b.values, b.before = append(b.in, n), append(b.values, v), append(b.before, copyOf(in.Value))
	}
	var err error
	if b.outputs, err = c.f(slices.Clone(b.in)); err != nil {
		return nil, fmt.Errorf("building the function: %w", err)
	}
	if len(b.outputs) == 0 {
		return nil, errors.New("the function has no output")
	}
	for i, n := range b.outputs {
		switch {
		case n == nil:
			return nil, fmt.Errorf("output %d is nil", i)
		case n.Graph() != b.g:
			return nil, fmt.Errorf("output %d is not in the graph of the inputs", i)
		case isStatement(n) || n.Dtype() != G.Float64:
			return nil, fmt.Errorf("output %d is %v, want one of float64", i, n)
		}
	}
	bystanders := b.bystanders()
	b.loss, err = node.Apply(newWeightedSum(b.outputs, bystanders), append(slices.Clone(b.outputs), bystanders...)...)
	if err != nil {
		return nil, fmt.Errorf("summing the outputs: %w", err)
	}
	return b, nil
}

// leaf returns an input's node, bound to a copy of the input's value, and the copy.
func leaf(g *G.ExprGraph, in Input) (*G.Node, G.Value, error) {
	v := copyOf(in.Value)
	dt, shape := in.Value.Dtype(), in.Value.Shape()
	if in.Node == nil {
		if shape.IsScalar() {
			return G.NewScalar(g, dt, G.WithName(in.Name), G.WithValue(v)), v, nil
		}
		return G.NewTensor(g, dt, shape.Dims(), G.WithShape(shape...), G.WithName(in.Name), G.WithValue(v)), v, nil
	}
	n := in.Node(g)
	switch {
	case n == nil:
		return nil, nil, errors.New("its Node returned nil")
	case n.Graph() != g:
		return nil, nil, errors.New("its Node returned a node of another graph")
	case n.Op() != nil:
		return nil, nil, fmt.Errorf("its Node returned %v, which is not an input", n)
	case n.Dtype() != dt || !n.Shape().Eq(shape):
		return nil, nil, fmt.Errorf("its Node returned a node of %v and shape %v, its Value is of %v and shape %v", n.Dtype(), n.Shape(), dt, shape)
	}
	return n, v, G.Let(n, v)
}

// isStatement reports whether n is a statement of Gorgonia's, which has no value. gorgonia.Read adds one.
func isStatement(n *G.Node) bool { return n.Type() == nil }

// bystanders returns the nodes that have a value which no other node and no output uses.
func (b *built) bystanders() (nodes G.Nodes) {
	used := map[int64]bool{}
	for _, n := range b.outputs {
		used[n.ID()] = true
	}
	for _, n := range b.g.AllNodes() {
		if !isStatement(n) {
			for children := b.g.From(n.ID()); children.Next(); {
				used[children.Node().ID()] = true
			}
		}
	}
	for _, n := range b.g.AllNodes() {
		if !used[n.ID()] && !isStatement(n) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// operatorsWithout returns the names of the operators in the graph that lack a method.
func (b *built) operatorsWithout(lacks func(G.Op) bool) (names []string) {
	for _, n := range b.g.AllNodes() {
		isLeaf := b.g.From(n.ID()).Len() == 0 // constants are operators without operands
		if isStatement(n) || isLeaf || !lacks(n.Op()) {
			continue
		}
		if name := n.Op().String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// changed returns an error that names the first input whose value a run has changed.
func (b *built) changed() error {
	for i, v := range b.values {
		if k := firstNotEqual(b.before[i], v); k >= 0 {
			return fmt.Errorf("the run overwrites input %s: at %v, %v became %v",
				b.inputs[i].Name, index(k, b.inputs[i].Value.Shape()), elementOf(b.before[i], k), elementOf(v, k))
		}
	}
	return nil
}

// differentiated returns the indices of the inputs that are differentiated.
func (c *checker) differentiated() (numbers []int) {
	for i, in := range c.inputs {
		if !in.Constant {
			numbers = append(numbers, i)
		}
	}
	return numbers
}
