package op

import G "gorgonia.org/gorgonia"

// ReuseResults makes the operators of this package in a graph write the results of each run where those of the last run
// were. Gorgonia lets them go at every run, and takes memory that the system has to fetch and clear: a third of the time of a
// generation step.
//
// Call it before the machine is made, and only for a graph that one machine runs, one run after another, and whose results
// are read or copied before the next run. It is not for graphs with gradients.
func ReuseResults(g *G.ExprGraph) {
	for _, n := range g.AllNodes() {
		if o, ok := n.Op().(*operator); ok {
			o.own = true
		}
	}
}
