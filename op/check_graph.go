package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
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
