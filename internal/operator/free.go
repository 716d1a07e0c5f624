package operator

import (
	"strings"

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
	back := map[*G.Node]int{}  // those of gradients
	derived := map[*Operator]bool{}
	sum := map[*G.Node]*G.Node{} // the last sum of Gorgonia's whose first operand a node is
	all := g.AllNodes()
	sums := map[*G.Node]bool{} // whether a node is a sum that Gorgonia makes of values on a device
	var isSum func(n *G.Node) bool
	isSum = func(n *G.Node) bool {
		is, ok := sums[n]
		if !ok && n.Op() != nil && strings.HasPrefix(n.Op().String(), "+ ") {
			is = true
			for _, c := range node.Operands(n) {
				is = is && (!PlaceOf(c).OnHost() || isSum(c))
			}
		}
		sums[n] = is
		return is
	}
	joinInputs(all)
	for _, n := range all {
		children := node.Operands(n) // of each operand one
		switch o := n.Op().(type) {
		case nil, *view:
			continue
		case *Gradients: // does not read the result, and frees the gradient that it reads
			children = children[:o.of.Arity()]
			if !o.of.reads() {
				continue
			}
			derived[o.of] = true
			for _, c := range children {
				back[c]++
			}
		case *transfer:
		default:
			if isSum(n) {
				sum[children[0]] = n
			} else if Of(o) == nil { // Gorgonia's other operators do not say when they have read a value
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
	count := func(n *G.Node) int {
		switch {
		case stays[n]:
			return 0
		case reads[n] == 0: // a machine that binds gradients to weights adds it to the gradient of each
			return len(n.DerivOf())
		}
		return reads[n]
	}
	for _, n := range all {
		each := []int{count(n)}
		for s := n; reads[s] == 1 && sum[s] != nil; s = sum[s] {
			each = append(each, count(sum[s]))
		}
		i, of := 0, n
		if v, ok := n.Op().(*view); ok {
			i, of = v.index, node.Operands(n)[0]
		}
		switch o := of.Op().(type) {
		case *transfer:
			o.reads = each[0]
		case *Gradients:
			expect(o.body, len(o.of.gradientShapes()), i, n != of, each)
		default:
			made := Of(of.Op())
			if made == nil || made.shared {
				continue
			}
			if d, ok := made.body.(*device); ok {
				if r, ok := made.function.(Repeatable); ok && r.Repeatable() && derived[made] && reads[n] > back[n] && !stays[n] {
					each[0] -= back[n]
					d.again = back[n]
				} else {
					d.again = 0
				}
			}
			expect(made.body, len(made.out), i, n != of, each)
		}
	}
}

// expect tells a body of so many results how many operators read result i, and the sums that are made of it. view says that a view returns the result, as
// it does if there are several.
func expect(b body, results, i int, view bool, reads []int) {
	if d, ok := b.(*device); ok && (view || results == 1) {
		if d.reads == nil {
			d.reads = make([][]int, results)
		}
		d.reads[i] = reads
	}
}
