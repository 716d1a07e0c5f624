package nn_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// counting returns a language model of five tokens that has learned to count in a circle.
func counting() (*nn.LM, error) {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2}, Vocab: 5})
	g := G.NewGraph()
	tokens := func(name string, ids ...int) *G.Node {
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(1, len(ids)), tensor.WithBacking(ids)), G.WithName(name))
	}
	loss, err := lm.Loss(tokens("ids", 0, 1, 2, 3, 4, 0, 1, 2), tokens("targets", 1, 2, 3, 4, 0, 1, 2, 3))
	if err != nil {
		return nil, err
	}
	if _, err := G.Grad(loss, lm.Params().Nodes(g)...); err != nil {
		return nil, err
	}
	m := G.NewTapeMachine(g, G.BindDualValues(lm.Params().Nodes(g)...))
	defer m.Close()
	solver := G.NewAdamSolver(G.WithLearnRate(0.02))
	for range 60 {
		if err := m.RunAll(); err != nil {
			return nil, err
		}
		if err := solver.Step(G.NodesToValueGrads(lm.Params().Nodes(g))); err != nil {
			return nil, err
		}
		m.Reset()
	}
	return lm, nil
}

// Two prompts of different lengths are continued as one batch. The second ends early, with a stop token.
func ExampleGenerator() {
	lm, err := counting()
	if err != nil {
		log.Fatal(err)
	}
	generator, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 6, StopTokens: []int{0}})
	if err != nil {
		log.Fatal(err)
	}
	defer generator.Close()

	tokens, err := generator.Generate(context.Background(), [][]int{{0}, {0, 1, 2}}, func(prompt, token int) error {
		if prompt == 0 {
			fmt.Println("chosen:", token) // called as soon as a token is chosen
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens)
	// Output:
	// chosen: 1
	// chosen: 2
	// chosen: 3
	// chosen: 4
	// chosen: 0
	// [[1 2 3 4 0] [3 4 0]]
}

// A sequence is saved and loaded. It continues from where it was, without reading its prompt again.
func ExampleGenerator_Continue() {
	lm, err := counting()
	if err != nil {
		log.Fatal(err)
	}
	generator, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 4, Sampling: nn.Sampling{Temperature: 0.1}})
	if err != nil {
		log.Fatal(err)
	}
	defer generator.Close()

	sequence := nn.NewSequence(1, 0, 1, 2) // the seed is 1, the prompt 0, 1, 2
	tokens, err := generator.Continue(context.Background(), []*nn.Sequence{sequence}, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens[0])

	dir, err := os.MkdirTemp("", "sequence")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "sequence.safetensors")
	if err := sequence.Save(path); err != nil {
		log.Fatal(err)
	}
	later, err := nn.LoadSequence(path)
	if err != nil {
		log.Fatal(err)
	}
	if tokens, err = generator.Continue(context.Background(), []*nn.Sequence{later}, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println(tokens[0])
	// Output:
	// [3 4 0 1]
	// [2 3 4 0]
}
