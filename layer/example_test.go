package layer_test

import (
	"fmt"
	"log"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// H3 with a selective state space inside: 4 heads, and so a state for each of 4·2·2 products, in pieces of a long sequence.
func ExampleNewH3() {
	h3 := layer.NewH3(layer.H3Config{Channels: 8, Inner: layer.S6Config{State: 2}, Heads: 4})
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 100, 8), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
	y, state, err := h3.ApplyWithState(x, nil)
	if err != nil {
		log.Fatal(err)
	}
	more := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 50, 8), G.WithName("more"), G.WithInit(G.Gaussian(0, 1)))
	z, _, err := h3.ApplyWithState(more, state)
	if err != nil {
		log.Fatal(err)
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("results", y.Shape(), z.Shape())
	for i, slot := range h3.Slots() {
		fmt.Println("state", slot.Name, state[i].Shape())
	}
	// Output:
	// results (1, 100, 8) (1, 50, 8)
	// state shift (1, 3, 8)
	// state inner.scan (1, 16, 2)
}

// A selective state space by itself.
func ExampleNewS6() {
	layer.NewS6(layer.S6Config{Channels: 4, State: 2}).Describe()
	// Output:
	// S6: 40 parameters
	//   A_log                                    (4, 2)           float32  no weight decay
	//   D                                        (4)              float32  no weight decay
	//   x_proj.weight                            (5, 4)           float32
	//   dt_proj.weight                           (4, 1)           float32
	//   dt_proj.bias                             (4)              float32  no weight decay
}
