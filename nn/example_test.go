package nn_test

import (
	"fmt"
	"log"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// A block in the middle of a model: it takes a node of (batch, length, d_model) and returns one of the same shape.
func ExampleMambaBlock() {
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(2, 10, 8), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))

	block := nn.NewMambaBlock(nn.Config{DModel: 8})
	y, err := block.Apply(x)
	if err != nil {
		log.Fatal(err)
	}
	loss := G.Must(G.Mean(G.Must(G.Square(y))))
	nodes := block.Params().Nodes(g)
	if _, err := G.Grad(loss, nodes...); err != nil {
		log.Fatal(err)
	}

	m := G.NewTapeMachine(g, G.BindDualValues(nodes...))
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	if err := G.NewAdamSolver().Step(G.NodesToValueGrads(nodes)); err != nil {
		log.Fatal(err)
	}
	fmt.Println("output", y.Shape(), "of", y.Dtype())
	fmt.Println(block.Params().Count(), "parameters trained")
	// Output:
	// output (2, 10, 8) of float32
	// 1304 parameters trained
}

// The weights of a block. Their names are those of the Hugging Face layout.
func ExampleMambaBlock_Describe() {
	nn.NewMambaBlock(nn.Config{DModel: 8}).Describe()
	// Output:
	// MambaBlock: 1304 parameters
	//   norm.weight                              (8)              float32  no weight decay
	//   mixer.A_log                              (16, 16)         float32  no weight decay
	//   mixer.D                                  (16)             float32  no weight decay
	//   mixer.in_proj.weight                     (32, 8)          float32
	//   mixer.conv1d.weight                      (16, 1, 4)       float32
	//   mixer.conv1d.bias                        (16)             float32  no weight decay
	//   mixer.x_proj.weight                      (33, 16)         float32
	//   mixer.dt_proj.weight                     (16, 1)          float32
	//   mixer.dt_proj.bias                       (16)             float32  no weight decay
	//   mixer.out_proj.weight                    (8, 16)          float32
}

// A sequence in two pieces. The state after the first piece is the input of the second, and the results are those of the whole sequence.
func ExampleMambaStack_ApplyWithState() {
	stack := nn.NewMambaStack(nn.Config{DModel: 2, NLayer: 2}, nn.WithDtype(tensor.Float64), nn.WithSeed(0))
	g := G.NewGraph()
	input := func(name string, values ...float64) *G.Node {
		v := tensor.New(tensor.WithShape(1, len(values)/2, 2), tensor.WithBacking(values))
		return G.NodeFromAny(g, v, G.WithName(name))
	}
	whole, err := stack.Apply(input("whole", 1, 2, 3, 4, 5, 6, 7, 8))
	if err != nil {
		log.Fatal(err)
	}
	first, state, err := stack.ApplyWithState(input("first", 1, 2, 3, 4, 5, 6), nil)
	if err != nil {
		log.Fatal(err)
	}
	second, _, err := stack.ApplyWithState(input("second", 7, 8), state)
	if err != nil {
		log.Fatal(err)
	}

	var all, a, b G.Value
	G.Read(whole, &all)
	G.Read(first, &a)
	G.Read(second, &b)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("whole  %.3f\n", all.Data())
	fmt.Printf("pieces %.3f %.3f\n", a.Data(), b.Data())
	// Output:
	// whole  [0.619 1.272 0.846 1.133 0.901 1.090 0.928 1.067]
	// pieces [0.619 1.272 0.846 1.133 0.901 1.090] [0.928 1.067]
}

// A language model learns to count. Then it counts one token at a time, at the same cost for each token.
func ExampleLM() {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2}, Vocab: 5})
	g := G.NewGraph()
	tokens := func(name string, ids ...int) *G.Node {
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(1, len(ids)), tensor.WithBacking(ids)), G.WithName(name))
	}
	loss, err := lm.Loss(tokens("ids", 0, 1, 2, 3, 4, 0, 1, 2), tokens("targets", 1, 2, 3, 4, 0, 1, 2, 3))
	if err != nil {
		log.Fatal(err)
	}
	var nats G.Value
	G.Read(loss, &nats)
	if _, err := G.Grad(loss, lm.Params().Nodes(g)...); err != nil {
		log.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(lm.Params().Nodes(g)...))
	defer m.Close()
	solver := G.NewAdamSolver(G.WithLearnRate(0.02))
	for step := range 61 {
		if err := m.RunAll(); err != nil {
			log.Fatal(err)
		}
		if step%60 == 0 {
			fmt.Printf("step %d: loss %.1f\n", step, nats.Data())
		}
		if err := solver.Step(G.NodesToValueGrads(lm.Params().Nodes(g))); err != nil {
			log.Fatal(err)
		}
		m.Reset()
	}

	stepper, err := nn.NewStepper(lm, 1)
	if err != nil {
		log.Fatal(err)
	}
	defer stepper.Close()
	token := 0
	for range 8 {
		logits, err := stepper.Step([]int{token})
		if err != nil {
			log.Fatal(err)
		}
		token = slices.Index(logits[0], slices.Max(logits[0]))
		fmt.Print(token, " ")
	}
	// Output:
	// step 0: loss 1.6
	// step 60: loss 0.0
	// 1 2 3 4 0 1 2 3
}
