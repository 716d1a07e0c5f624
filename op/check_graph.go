package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/node"
)

// CheckGraph returns an error that names two nodes which are different but which Gorgonia takes for one. Call it when the graph is
// complete, gradients included, before gorgonia.NewTapeMachine.
//
// Gorgonia tells nodes apart by a 32-bit hash. In a graph of n nodes two hashes are equal by accident with a probability of about
// n²/2³³, which is 1 in 4,000 for 1,500 nodes; the machine then computes one of the two nodes, and the value of the other is wrong. The
// trainer, the generator, the stepper and grad.Check call CheckGraph. The operators of this library also check each node as it is
// added.
func CheckGraph(g *G.ExprGraph) error {
	if err := node.Check(g); err != nil {
		return fmt.Errorf("op: check graph: %w", err)
	}
	return nil
}
