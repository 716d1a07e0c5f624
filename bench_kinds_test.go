package mamba_test

import (
	"fmt"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/nn"
)

// BenchmarkKinds measures one layer of each kind, with its norm and residual connection, at batch 1. Attention has no window.
func BenchmarkKinds(b *testing.B) {
	const width = 64
	lengths := []int{1024, 4096}
	if testing.Short() {
		lengths = []int{256}
	}
	for _, kind := range nn.Kinds() {
		for _, pass := range passes {
			for _, length := range lengths {
				stack := nn.NewMambaStack(nn.Config{DModel: width, Pattern: []nn.Kind{kind}})
				name := fmt.Sprintf("kind=%s/pass=%s/M=%d/L=%d/B=1", kind, pass.name, width, length)
				measure(b, name, work{tokens: length}, func() program {
					g := G.NewGraph()
					x := input(g, "x", 1, length, width)
					y := G.Must(stack.Apply(x))
					var by G.Nodes
					if pass.backward {
						by = append(stack.Params().Nodes(g), x)
					}
					return newProgram(y, x.Shape(), by...)
				})
			}
		}
	}
}
