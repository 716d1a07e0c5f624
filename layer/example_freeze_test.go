package layer_test

import (
	"fmt"
	"log"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// A pretrained part is frozen, and a new head on it is trained: gradients are asked for the head's weights alone.
func ExampleParams_Freeze() {
	body := layer.NewLinear(layer.LinearConfig{In: 4, Out: 4}, layer.WithName("body")) // in a program, loaded from a checkpoint
	head := layer.NewLinear(layer.LinearConfig{In: 4, Out: 1}, layer.WithName("head"))
	body.Params().Freeze()

	g := G.NewGraph()
	x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 2, 4), tensor.WithBacking([]float32{1, 2, 3, 4, 4, 3, 2, 1})), G.WithName("x"))
	hidden, err := body.Apply(x)
	if err != nil {
		log.Fatal(err)
	}
	y, err := head.Apply(hidden)
	if err != nil {
		log.Fatal(err)
	}
	loss := G.Must(G.Mean(G.Must(G.Square(y))))
	all := append(body.Params(), head.Params()...)
	weights := all.Trainable().Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		log.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(weights...))
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	before := fmt.Sprint(body.Params()[0].Value)
	if err := G.NewAdamSolver().Step(G.NodesToValueGrads(weights)); err != nil {
		log.Fatal(err)
	}
	for _, p := range all {
		fmt.Println(p.Name, "frozen:", p.Frozen)
	}
	fmt.Println("the body has changed:", fmt.Sprint(body.Params()[0].Value) != before)
	// Output:
	// body.weight frozen: true
	// head.weight frozen: false
	// the body has changed: false
}
