package checkpoint_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// Load a language model from a checkpoint, and save it.
func Example() {
	lm, err := checkpoint.Load("../testdata/original-mamba-tiny") // or a folder of Hugging Face's cache
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lm.Config().NLayer, "layers,", lm.Params().Count(), "parameters")

	dir, err := os.MkdirTemp("", "checkpoint")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := checkpoint.Save(dir, lm); err != nil {
		log.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		fmt.Println(filepath.Base(f))
	}
	// Output:
	// 3 layers, 28352 parameters
	// config.json
	// model.safetensors
}

// Use a pretrained, frozen stack in a model of your own, and train only the layers after it.
func ExampleReader_LoadInto() {
	r, err := checkpoint.Open("../testdata/hf-mamba-tiny")
	if err != nil {
		log.Fatal(err)
	}
	cfg, err := r.Config()
	if err != nil {
		log.Fatal(err)
	}
	encoder := nn.NewMambaStack(cfg.Config, nn.WithName("encoder"))
	if err := r.LoadInto(encoder, "backbone"); err != nil {
		log.Fatal(err)
	}
	if err := r.Close(); err != nil { // the weights are in the stack now
		log.Fatal(err)
	}
	encoder.Params().Freeze()

	head := layer.NewLinear(layer.LinearConfig{In: cfg.DModel, Out: 2}, layer.WithName("head"))
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(4, 10, cfg.DModel), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
	loss := G.Must(G.Mean(G.Must(G.Square(G.Must(head.Apply(G.Must(encoder.Apply(x))))))))

	// Grad computes the gradients of these nodes only, and the solver changes only these nodes.
	all := append(encoder.Params(), head.Params()...)
	weights := all.Trainable().Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		log.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(weights...))
	defer m.Close()
	before := encoder.Params()[0].Value.Data().([]float32)[0]
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	if err := G.NewAdamSolver().Step(G.NodesToValueGrads(weights)); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(weights), "of", len(all), "weights are trained")
	fmt.Println("the encoder is as it was:", before == encoder.Params()[0].Value.Data().([]float32)[0])
	// Output:
	// 1 of 32 weights are trained
	// the encoder is as it was: true
}
