package operator

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
)

// FreeAfterUse is op.FreeAfterUse.
func FreeAfterUse(g *G.ExprGraph, keep ...*G.Node) {
	stays := map[*G.Node]bool{}
	for _, n := range keep {
		stays[n] = true
	}
	reads := map[*G.Node]int{} // arcs by which operators read the numbers of a node
	all := g.AllNodes()
	for _, n := range all {
		children := node.Operands(n) // of each operand one
		switch o := n.Op().(type) {
		case nil, *view:
			continue
		case *Gradients: // reads neither the result nor, if it only passes gradients on, the operands
			children = children[:o.of.Arity()]
			if !o.of.computes() {
				continue
			}
		case *transfer:
		default:
			if Of(o) == nil { // Gorgonia's operators do not say when they have read a value
				for _, c := range children {
					stays[c] = true
				}
				continue
			}
		}
		for _, c := range children {
			reads[c]++
		}
	}
	uses := func(n *G.Node) int {
		if stays[n] {
			return 0
		}
		return reads[n]
	}
	for _, n := range all {
		switch o := n.Op().(type) {
		case *transfer:
			o.reads = uses(n)
		case *view:
			if of := Of(node.Operands(n)[0].Op()); of != nil {
				if d, ok := of.body.(*device); ok && !of.shared {
					if d.reads == nil {
						d.reads = make([]int, len(of.out))
					}
					d.reads[o.index] = uses(n)
				}
			}
		default:
			if of := Of(o); of != nil && len(of.out) == 1 {
				if d, ok := of.body.(*device); ok && !of.shared {
					d.reads = []int{uses(n)}
				}
			}
		}
	}
}
