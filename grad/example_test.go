package grad_test

import (
	"fmt"
	"hash"
	"strings"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// square is a user's own operator: x², element by element. SymDiff builds its gradient, 2x times the gradient of the result, from Gorgonia's
// operators. The method DoDiff is missing, which is a common mistake: without it the gradient on the lisp machine is zero.
type square struct{}

func (square) Arity() int                                        { return 1 }
func (square) Type() hm.Type                                     { return hm.NewFnType(hm.TypeVariable('a'), hm.TypeVariable('a')) }
func (square) InferShape(in ...G.DimSizer) (tensor.Shape, error) { return in[0].(tensor.Shape), nil }
func (square) ReturnsPtr() bool                                  { return true }
func (square) CallsExtern() bool                                 { return false }
func (square) OverwritesInput() int                              { return -1 }
func (square) WriteHash(h hash.Hash)                             { fmt.Fprint(h, "square") }
func (square) Hashcode() uint32                                  { return 1 }
func (square) String() string                                    { return "square" }
func (square) DiffWRT(int) []bool                                { return []bool{true} }
func (square) Do(values ...G.Value) (G.Value, error) {
	return tensor.Square(values[0].(tensor.Tensor))
}

func (square) SymDiff(in G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	slope, err := G.Add(in[0], in[0])
	if err != nil {
		return nil, err
	}
	d, err := G.HadamardProd(slope, grad)
	return G.Nodes{d}, err
}

// To check your own operator, pass a function that applies it and values for its inputs.
func ExampleCheck() {
	f := grad.Single(func(in G.Nodes) (*G.Node, error) { return G.ApplyOp(square{}, in[0]) })
	x := tensor.New(tensor.WithShape(2, 2), tensor.WithBacking([]float64{0.1, -0.2, 0.3, 2}))

	report, err := grad.Check(f, []grad.Input{{Name: "x", Value: x}}, grad.Machines(grad.Tape))
	fmt.Println("tape machine:", report.Elements, "elements, error", err)

	_, err = grad.Check(f, []grad.Input{{Name: "x", Value: x}})
	message, _, _ := strings.Cut(err.Error(), ", but")
	fmt.Println(message)
	// Output:
	// tape machine: 4 elements, error <nil>
	// grad: lisp machine: x: the gradient is zero in all 4 elements checked
}

// A function may have several outputs. Constant inputs, such as flags and indices, are not differentiated.
func ExampleCheck_severalOutputs() {
	x := tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]float64{1, 2, 3, 4, 5, 6}))
	mask := tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]float64{1, 0, 1, 1, 0, 0}))
	f := func(in G.Nodes) (G.Nodes, error) {
		y, err := G.HadamardProd(in[0], in[1])
		if err != nil {
			return nil, err
		}
		total, err := G.Sum(y)
		return G.Nodes{y, total}, err
	}
	report, err := grad.Check(f, []grad.Input{{Name: "x", Value: x}, {Name: "mask", Value: mask, Constant: true}})
	fmt.Println(report.Elements, "elements, error", err)
	// Output: 6 elements, error <nil>
}
