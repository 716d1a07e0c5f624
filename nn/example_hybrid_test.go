package nn_test

import (
	"fmt"
	"log"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// A hybrid model repeats a pattern of four layers: two Mamba blocks, attention over the last 64 steps, and a gated MLP. Attention with a window
// has a state of fixed size like the other layers, so the model generates at a constant cost per token.
func ExampleConfig_pattern() {
	lm := nn.NewLM(nn.LMConfig{
		Config: nn.Config{
			DModel: 32, NLayer: 8, NHead: 4, Window: 64,
			Pattern: []nn.Kind{nn.Mamba, nn.Mamba, nn.Attention, nn.SwiGLU},
		},
		Vocab: 256,
	})
	if err := lm.Err(); err != nil {
		log.Fatal(err)
	}
	g := G.NewGraph()
	ids := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 5), tensor.WithBacking([]int{104, 101, 108, 108, 111})), G.WithName("ids"))
	logits, state, err := lm.ApplyWithState(ids, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("logits", logits.Shape())
	for i, layer := range state[:4] {
		fmt.Print("layer ", i, ":")
		for _, n := range layer {
			fmt.Print(" ", n.Shape())
		}
		fmt.Println()
	}
	// Output:
	// logits (1, 5, 256)
	// layer 0: (1, 3, 64) (1, 64, 16)
	// layer 1: (1, 3, 64) (1, 64, 16)
	// layer 2: (1, 63, 65)
	// layer 3:
}
