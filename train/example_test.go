package train_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"reflect"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// model returns a small language model, with the same weights at each call.
func model() *nn.LM {
	return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 1}, Vocab: 5}, nn.WithName("model"), nn.WithSeed(1))
}

// counting is a text that counts in a circle.
var counting = []train.Document{{Tokens: []int{0, 1, 2, 3, 4, 0, 1, 2, 3}}, {Tokens: []int{3, 4, 0, 1, 2}}}

// A run that is stopped and resumed ends with the same weights, bit for bit, as a run without a stop.
func ExampleTrainer() {
	dir, err := os.MkdirTemp("", "run")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, stop := context.WithCancel(context.Background())
	cfg := train.Config{
		Batch: 2, Length: 8, Steps: 60, Data: counting,
		AdamW: train.AdamWConfig{LearnRate: 0.02, Clip: 1, Schedule: train.WarmupCosine(5, 60, 0.1)},
		File:  filepath.Join(dir, "run.safetensors"),
		Report: func(c *train.Curve) {
			if len(c.Training) == 5 {
				stop() // like Ctrl-C in a program: the trainer finishes the step and saves the run
			}
		},
	}
	run := func(ctx context.Context, cfg train.Config) *nn.LM {
		lm := model()
		trainer, err := train.New(lm, cfg)
		if err != nil {
			log.Fatal(err)
		}
		defer trainer.Close()
		if resumed, err := trainer.Resume(); err != nil { // nothing happens if there is no file
			log.Fatal(err)
		} else if resumed {
			fmt.Println("resumed after step", trainer.Done())
		}
		err = trainer.Run(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			log.Fatal(err)
		}
		fmt.Printf("after step %d, loss below 0.5 nats: %t\n", trainer.Done(), trainer.Curve().Mean(1) < 0.5)
		return lm
	}
	run(ctx, cfg)
	resumed := run(context.Background(), cfg)

	cfg.File = filepath.Join(dir, "another.safetensors")
	whole := run(context.Background(), cfg)
	same := true
	for i, p := range whole.Params() {
		same = same && reflect.DeepEqual(p.Value.Data(), resumed.Params()[i].Value.Data())
	}
	fmt.Println("the same weights:", same)
	// Output:
	// after step 5, loss below 0.5 nats: false
	// resumed after step 5
	// after step 60, loss below 0.5 nats: true
	// after step 60, loss below 0.5 nats: true
	// the same weights: true
}

// AdamW without a Trainer, in a training loop with Gorgonia. It replaces one of Gorgonia's solvers.
func ExampleAdamW() {
	lm := model()
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
	weights := lm.Params().Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		log.Fatal(err)
	}
	solver, err := train.NewAdamW(lm.Params(), train.AdamWConfig{LearnRate: 0.02, Decay: 0.01, Clip: 1})
	if err != nil {
		log.Fatal(err)
	}
	vm := G.NewTapeMachine(g, G.BindDualValues(weights...))
	defer vm.Close()
	for step := range 61 {
		if err := vm.RunAll(); err != nil {
			log.Fatal(err)
		}
		if step%60 == 0 {
			fmt.Printf("step %d: loss %.0f, gradient clipped to 1\n", step, nats.Data())
		}
		if err := solver.Step(G.NodesToValueGrads(weights)); err != nil {
			log.Fatal(err)
		}
		vm.Reset()
	}
	// Output:
	// step 0: loss 2, gradient clipped to 1
	// step 60: loss 0, gradient clipped to 1
}

// Fine-tuning with LoRA: the weights are frozen, small matrices are trained, and only these are saved. Another process loads the model and the
// LoRA, and merges the LoRA for speed.
func ExampleSaveLoRA() {
	dir, err := os.MkdirTemp("", "adapter")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	lm := model() // in a program, checkpoint.Load
	added, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 4})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(added.Count(), "of", lm.Params().Count()+added.Count(), "numbers are trained")
	trainer, err := train.New(lm, train.Config{Batch: 2, Length: 8, Steps: 20, Data: counting, AdamW: train.AdamWConfig{LearnRate: 0.05}})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	if err := trainer.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	if err := train.SaveLoRA(dir, "OWNER/NAME", lm.Params()); err != nil {
		log.Fatal(err)
	}

	other := model()
	if err := train.LoadLoRA(dir, other.Params()); err != nil {
		log.Fatal(err)
	}
	merged, err := other.Params().MergeLoRA()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("merged into", merged, "weights")
	// Output:
	// 260 of 1612 numbers are trained
	// merged into 4 weights
}

// A frozen weight is not trained. The trainer and the solver do not change it.
func ExampleNew_frozen() {
	lm := model()
	for _, p := range lm.Params() {
		p.Frozen = p.Name != "model.backbone.norm_f.weight" // all but this one
	}
	before := fmt.Sprint(lm.Params()[0].Value)
	trainer, err := train.New(lm, train.Config{Batch: 2, Length: 8, Steps: 3, Data: counting, AdamW: train.AdamWConfig{LearnRate: 0.1}})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	if err := trainer.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(lm.Params().Trainable()), "of", len(lm.Params()), "weights trained")
	fmt.Println(lm.Params()[0].Name, "unchanged:", fmt.Sprint(lm.Params()[0].Value) == before)
	// Output:
	// 1 of 12 weights trained
	// model.backbone.embeddings.weight unchanged: true
}
