package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
)

// CheckGraph returns an error if two different nodes of the graph have the same 32-bit hash. The error names both nodes. Call it when the
// graph is complete, gradients included, before gorgonia.NewTapeMachine.
//
// Gorgonia tells nodes apart by this hash alone. In a graph of n nodes, two hashes are equal by accident with a probability of about
// n²/2³³, which is 1 in 4,000 for 1,500 nodes. The machine then computes only one of the two nodes, and the other gets its value. The
// trainer, the generator, the stepper and grad.Check call CheckGraph. The operators of this library also check each node when it is
// added to a graph.
func CheckGraph(g *G.ExprGraph) error {
	if err := node.Check(g); err != nil {
		return fmt.Errorf("op: check graph: %w", err)
	}
	return nil
}

// ReuseResults makes the operators of this package in a graph write the results and the gradients of each run into the memory of the last run. Without
// it, Gorgonia drops them at every run and allocates new memory, which takes a third of the time of a generation step. With it, no two of them share
// memory: a large graph with gradients needs more than without it.
//
// Call it when the graph is complete, gradients included, before the machine is made, and only for a graph that one machine runs, one run after another,
// and whose results are read or copied before the next run. The trainer does so for its graphs if they are small.
func ReuseResults(g *G.ExprGraph) {
	if g != nil {
		operator.ReuseResults(g, math.MaxInt)
	}
}

// FreeAfterUse makes the operators on a device in a graph free the memory of each result as soon as its last reader in the graph has run. Without it, a
// result stays until its operator runs again. The gradients that Gorgonia adds where a node has several readers are freed as well. Results that no operator
// reads, such as a loss, the nodes of keep, and what an operator of Gorgonia reads, for example gorgonia.Read, stay. Reading another value after the run is
// an error. The gradient of a weight to which a machine binds it (gorgonia.BindDualValues) is read by the machine: the node's Grad has it, and its memory is
// free after the solver's step.
//
// Results of norms, activations, gates and depthwise convolutions do not stay for the backward pass, which computes them again from operands that it needs
// anyway. So a training step holds less than half of the memory of a vision model, and takes a few per cent longer.
//
// Call it when the graph is complete, gradients included. The trainer does so for its graphs. The numbers are the same with it and without it.
func FreeAfterUse(g *G.ExprGraph, keep ...*G.Node) {
	if g != nil {
		operator.FreeAfterUse(g, keep...)
	}
}
