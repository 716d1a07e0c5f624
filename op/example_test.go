package op_test

import (
	"fmt"
	"log"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// One channel with one state: A = -ln 2 halves the state at each step of Δ = 1, B = 1 adds the input, C = 10 reads it out.
//
//	h = 1, 0.5 + 1, 0.75 + 0, 0.375 + 4;  y = 10 h
//
// In the second row of the batch a new sequence starts at the third step.
func ExampleSelectiveScan() {
	g := G.NewGraph()
	leaf := func(name string, shape tensor.Shape, v ...float64) *G.Node {
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
	}
	sequences := tensor.Shape{2, 4, 1} // batch, length, channels
	matrix := tensor.Shape{1, 1}       // channels, state
	in := op.ScanInputs{
		U:     leaf("u", sequences, 1, 1, 0, 4, 1, 1, 0, 4),
		Delta: leaf("delta", sequences, 1, 1, 1, 1, 1, 1, 1, 1),
		A:     leaf("A", matrix, -math.Ln2),
		B:     leaf("B", matrix, 1),
		C:     leaf("C", matrix, 10),
		Start: leaf("start", tensor.Shape{2, 4}, 0, 0, 0, 0, 0, 0, 1, 0),
	}
	y, err := op.SelectiveScan(in, op.ScanConfig{})
	if err != nil {
		log.Fatal(err)
	}
	var result G.Value
	G.Read(y, &result)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.2f\n", result.Data())
	// Output: [10.00 15.00 7.50 43.75 10.00 15.00 0.00 40.00]
}

// The state after a piece is the initial state of the next piece. Its gradient flows back.
func ExampleSelectiveScanWithState() {
	g := G.NewGraph()
	leaf := func(name string, shape tensor.Shape, v ...float64) *G.Node {
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
	}
	piece, matrix := tensor.Shape{1, 2, 1}, tensor.Shape{1, 1}
	u := leaf("u", piece, 1, 1)
	in := op.ScanInputs{
		U: u, Delta: leaf("delta", piece, 1, 1),
		A: leaf("A", matrix, -math.Ln2), B: leaf("B", matrix, 1), C: leaf("C", matrix, 10),
	}
	_, state, err := op.SelectiveScanWithState(in, op.ScanConfig{})
	if err != nil {
		log.Fatal(err)
	}
	in.U, in.InitialState = leaf("next u", piece, 0, 4), state
	y, _, err := op.SelectiveScanWithState(in, op.ScanConfig{})
	if err != nil {
		log.Fatal(err)
	}
	gradient, err := G.Grad(G.Must(G.Sum(y)), u)
	if err != nil {
		log.Fatal(err)
	}
	var second, du G.Value
	G.Read(y, &second)
	G.Read(gradient[0], &du)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("second piece %.2f\n", second.Data())
	fmt.Printf("gradient of the first by its input %.2f\n", du.Data())
	// Output:
	// second piece [7.50 43.75]
	// gradient of the first by its input [3.75 7.50]
}
