// Package node adds operators to Gorgonia's graphs, and detects different nodes with the same hash.
//
// Gorgonia identifies a node by a 32-bit hash of its type, shape, operator and operands. In two places it compares only hashes:
// ExprGraph.AddNode returns an existing node with the same hash, and the tape machine computes only one of several nodes with the same hash.
// If two different nodes have the same hash, a result is wrong and there is no error. Apply detects this in AddNode, Check in a complete
// graph.
package node

import (
	"bytes"
	"fmt"
	"hash"
	"slices"

	G "gorgonia.org/gorgonia"
)

// Apply is gorgonia.ApplyOp, but it also returns an error if Gorgonia returns a node with another operator or other operands.
func Apply(o G.Op, operands ...*G.Node) (*G.Node, error) {
	n, err := G.ApplyOp(o, slices.Clone(operands)...) // a clone, since Gorgonia keeps the slice
	if err != nil {
		return nil, err
	}
	if !slices.Equal(Operands(n), operands) || text(n.Op()) != text(o) {
		return nil, collision(describe(o, operands), n)
	}
	return n, nil
}

// Check returns an error that names two different nodes of the graph with the same hash, if there are any. Call it when the graph is
// complete, before you make a tape machine from it.
func Check(g *G.ExprGraph) error {
	if g == nil {
		return fmt.Errorf("the graph is missing, want one that gorgonia.NewGraph returned")
	}
	first := make(map[uint32]*G.Node, len(g.AllNodes()))
	for _, n := range g.AllNodes() {
		if m := first[n.Hashcode()]; m == nil {
			first[n.Hashcode()] = n
		} else if !same(m, n) {
			return collision(name(m), n)
		}
	}
	return nil
}

func collision(of string, n *G.Node) error {
	return fmt.Errorf("the nodes %s and %s are different but have one 32-bit hash, and Gorgonia takes them for one; want another name for a leaf or layer that one of them depends on",
		of, name(n))
}

// same reports whether two nodes have the same type, shape, operator and operands, and, for leaves, the same name.
func same(a, b *G.Node) bool {
	return fmt.Sprint(a.Type(), a.Shape()) == fmt.Sprint(b.Type(), b.Shape()) && text(a.Op()) == text(b.Op()) &&
		slices.Equal(Operands(a), Operands(b)) && (a.Op() != nil || a.Name() == b.Name())
}

// Operands returns the operands of a node's operator, in order.
func Operands(n *G.Node) (operands G.Nodes) {
	for children := n.Graph().From(n.ID()); children.Next(); {
		operands = append(operands, children.Node().(*G.Node))
	}
	return operands
}

// name returns a text for error messages that identifies the node.
func name(n *G.Node) string {
	if n.Op() == nil {
		return fmt.Sprintf("%s %v%v", n.Name(), n.Type(), n.Shape())
	}
	return describe(n.Op(), Operands(n))
}

func describe(o G.Op, operands G.Nodes) string {
	s := o.String() + "("
	for i, n := range operands {
		if i > 0 {
			s += ", "
		}
		if n.Op() == nil {
			s += n.Name()
		} else {
			s += fmt.Sprintf("node %d", n.ID())
		}
	}
	return s + ")"
}

// text returns the bytes that an operator writes to its hash, as a string.
func text(o G.Op) string {
	if o == nil {
		return ""
	}
	var w writer
	o.WriteHash(&w)
	return w.String()
}

// writer is a hash.Hash that records what is written to it.
type writer struct{ bytes.Buffer }

var _ hash.Hash = (*writer)(nil)

func (w *writer) Sum(b []byte) []byte { return append(b, w.Bytes()...) }
func (w *writer) Size() int           { return w.Len() }
func (w *writer) BlockSize() int      { return 1 }
