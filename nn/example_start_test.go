package nn_test

import (
	"fmt"
	"log"
	"reflect"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// Two sequences are packed into one, with a mark where each starts. The results are those of separate sequences: nothing crosses a start.
func ExampleWithStart() {
	block := nn.NewMambaBlock(nn.Config{DModel: 2})
	g := G.NewGraph()
	input := func(name string, values ...float32) *G.Node {
		v := tensor.New(tensor.WithShape(1, len(values)/2, 2), tensor.WithBacking(values)) // (batch, length, d_model)
		return G.NodeFromAny(g, v, G.WithName(name))
	}
	start := tensor.New(tensor.WithShape(1, 5), tensor.WithBacking([]int{1, 0, 0, 1, 0})) // (batch, length)
	packed, err := block.Apply(input("packed", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), nn.WithStart(G.NodeFromAny(g, start, G.WithName("start"))))
	if err != nil {
		log.Fatal(err)
	}
	first, err := block.Apply(input("first", 1, 2, 3, 4, 5, 6))
	if err != nil {
		log.Fatal(err)
	}
	second, err := block.Apply(input("second", 7, 8, 9, 10))
	if err != nil {
		log.Fatal(err)
	}
	var y, a, b G.Value
	G.Read(packed, &y)
	G.Read(first, &a)
	G.Read(second, &b)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	apart := append(a.Data().([]float32), b.Data().([]float32)...)
	fmt.Println("packed == apart:", reflect.DeepEqual(y.Data(), apart))
	// Output:
	// packed == apart: true
}
