package train

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// denoising returns a block that learns to take the noise off a sequence. Its loss is computed by Gorgonia's operators on the host.
func denoising(options ...nn.Option) Problem {
	block := nn.NewMambaBlock(nn.Config{DModel: 4, DState: 2}, append(options, nn.WithName("block"), nn.WithSeed(2))...)
	batch := func(seed uint64) Batch {
		r := rand.New(rand.NewPCG(seed, 6))
		x, y := make([]float32, 2*6*4), make([]float32, 2*6*4)
		for i := range x {
			y[i] = float32(math.Sin(float64(i / 4)))
			x[i] = y[i] + float32(r.NormFloat64())/2
		}
		return Batch{map[string]*tensor.Dense{"x": tensorOf(x, 2, 6, 4), "y": tensorOf(y, 2, 6, 4)}, 2}
	}
	return Problem{
		Params: block.Params(),
		Loss: func(c *Call) (*G.Node, error) {
			x, err := op.Dropout(c.Input("x"), c.Step(), op.DropoutConfig{Rate: 0.1, Seed: 1})
			if err != nil {
				return nil, err
			}
			y, err := block.Apply(x)
			if err != nil {
				return nil, err
			}
			off := G.Must(G.Sub(y, c.Input("y")))
			if !c.Training {
				c.Metric("absolute", G.Must(G.Mean(G.Must(G.Abs(off)))))
			}
			return G.Mean(G.Must(G.Square(off)))
		},
		Data:    NewSource(func(i int) (Batch, error) { return batch(uint64(i)), nil }),
		HeldOut: []Batch{batch(1 << 40)},
	}
}

// A model on a device with a loss of the caller's has the losses and metrics of the host, and continues after a stop to the same bits.
func TestDeviceProblem(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	host := trainerOf(t, denoising(), runConfig(8))
	if err := host.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var whole [][]float64
	for _, stops := range []bool{false, true} {
		p, cfg := denoising(nn.OnDevice(d)), runConfig(8)
		if stops {
			cfg.File = filepath.Join(t.TempDir(), "state")
			ctx, stop := context.WithCancel(t.Context())
			first := cfg
			first.Report = func(c *Curve) {
				if len(c.Training) == 5 {
					stop()
				}
			}
			if err := trainerOf(t, denoising(nn.OnDevice(d)), first).Run(ctx); err == nil {
				t.Fatal("the run did not stop")
			}
		}
		tr := trainerOf(t, p, cfg)
		if resumed, err := tr.Resume(); resumed != stops || err != nil {
			t.Fatalf("resumed %t, %v, want %t", resumed, err, stops)
		}
		if err := tr.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, want := tr.Curve(), host.Curve()
		for i, p := range want.Training {
			if math.Abs(got.Training[i].Loss-p.Loss) > 1e-4 {
				t.Errorf("step %d: the loss is %v, on the host %v", p.Step, got.Training[i].Loss, p.Loss)
			}
		}
		for i, v := range want.Metrics["absolute"] {
			if math.Abs(got.Metrics["absolute"][i]-v) > 1e-4 {
				t.Errorf("evaluation %d: the metric is %v, on the host %v", i, got.Metrics["absolute"][i], v)
			}
		}
		if err := p.Params.ToHost(); err != nil {
			t.Fatal(err)
		}
		if now := values(p.Params); whole == nil {
			whole = now
		} else if !reflect.DeepEqual(now, whole) {
			t.Error("the weights of a resumed run differ")
		}
	}
}
