package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/operator"
)

// ReuseResults makes the operators of this package in a graph write the results of each run into the memory of the last run. Without
// it, Gorgonia drops the results at every run and allocates new memory, which takes a third of the time of a generation step.
//
// Call it before the machine is made, and only for a graph that one machine runs, one run after another, and whose results
// are read or copied before the next run. Do not call it for a graph with gradients.
func ReuseResults(g *G.ExprGraph) {
	if g == nil {
		return
	}
	for _, n := range g.AllNodes() {
		if o := operator.Of(n.Op()); o != nil {
			o.ReuseResult()
		}
	}
}
