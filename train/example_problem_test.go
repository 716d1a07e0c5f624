package train_test

import (
	"context"
	"fmt"
	"log"
	"math"
	"math/rand/v2"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

const batchSize, length = 8, 32

// waves returns noisy waves, fast ones with the label 1 and slow ones with the label -1. Its argument gives the seed of each.
func waves(seeds []int) (train.Batch, error) {
	var x, label []float32
	for _, seed := range seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		fast := float32(2*(seed%2) - 1)
		frequency, phase := 0.5+0.2*float64(fast), 2*math.Pi*r.Float64()
		for t := range length {
			x = append(x, float32(math.Sin(frequency*float64(t)+phase)+0.3*r.NormFloat64()))
		}
		label = append(label, fast)
	}
	return train.Batch{Values: map[string]*tensor.Dense{
		"x":     tensor.New(tensor.WithShape(len(seeds), length, 1), tensor.WithBacking(x)),
		"label": tensor.New(tensor.WithShape(len(seeds), 1), tensor.WithBacking(label)),
	}, Weight: float64(len(seeds))}, nil
}

// A classifier of sequences: a Mamba block between two linear layers. Its logit is the mean over time.
func ExampleNewTrainer() {
	in := layer.NewLinear(layer.LinearConfig{In: 1, Out: 8}, layer.WithName("in"), layer.WithSeed(1))
	block := nn.NewMambaBlock(nn.Config{DModel: 8}, nn.WithName("block"), nn.WithSeed(2))
	out := layer.NewLinear(layer.LinearConfig{In: 8, Out: 1}, layer.WithName("out"), layer.WithSeed(7))

	loss := func(c *train.Call) (*G.Node, error) {
		y, err := in.Apply(c.Input("x"))
		if err != nil {
			return nil, err
		}
		if y, err = block.Apply(y); err != nil {
			return nil, err
		}
		if y, err = out.Apply(y); err != nil {
			return nil, err
		}
		margin := G.Must(G.HadamardProd(G.Must(G.Mean(y, 1)), c.Input("label"))) // positive if the answer is right
		if !c.Training {
			right := G.Must(G.Gt(margin, G.NewConstant(float32(0)), true)) // 1 or 0
			c.Metric("accuracy", G.Must(G.Mean(right)))
		}
		return G.Mean(G.Must(G.Softplus(G.Must(G.Neg(margin))))) // the mean of log(1 + exp(-margin))
	}
	data, err := train.NewShuffled(1000, batchSize, 1, waves)
	if err != nil {
		log.Fatal(err)
	}
	heldOut := make([]train.Batch, 4)
	for i := range heldOut {
		seeds := make([]int, batchSize) // as in the batches of data, but others
		for k := range seeds {
			seeds[k] = 1000 + i*batchSize + k
		}
		if heldOut[i], err = waves(seeds); err != nil {
			log.Fatal(err)
		}
	}
	params := append(append(in.Params(), block.Params()...), out.Params()...)
	trainer, err := train.NewTrainer(
		train.Problem{Params: params, Loss: loss, Data: data, HeldOut: heldOut},
		train.RunConfig{Steps: 100, AdamW: train.AdamWConfig{LearnRate: 0.005, Clip: 1, Schedule: train.WarmupCosine(5, 100, 0.1)}})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	if err := trainer.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	curve := trainer.Curve()
	for i, p := range curve.HeldOut {
		fmt.Printf("step %d: loss %.1f, accuracy %.2f\n", p.Step, p.Loss, curve.Metrics["accuracy"][i])
	}
	// Output:
	// step 0: loss 0.7, accuracy 0.50
	// step 100: loss 0.0, accuracy 1.00
}
