package layer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// training returns a machine that trains the layer on a batch, and the batch.
func training(t *testing.T, l *BatchNorm, x *tensor.Dense) G.VM {
	t.Helper()
	g := G.NewGraph()
	step := G.NodeFromAny(g, tensor.New(tensor.WithShape(1), tensor.WithBacking([]int{0})), G.WithName("step"))
	y, err := l.Apply(G.NodeFromAny(g, x, G.WithName("x")), WithTraining(step))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := G.Grad(G.Must(G.Sum(G.Must(G.Square(y)))), l.Params().Trainable().Nodes(g)...); err != nil {
		t.Fatal(err)
	}
	return G.NewTapeMachine(g)
}

// The running statistics move with each run that is counted, once, as PyTorch's do; training takes the batch's statistics, evaluation the running
// ones. On a device too.
func TestBatchNormStatistics(t *testing.T) {
	const channels, cells = 3, 10
	for _, on := range []string{"host", "device"} {
		t.Run(on, func(t *testing.T) {
			opts := []Option{WithSeed(1)}
			if on == "device" {
				opts = append(opts, OnDevice(gputest.Open(t, cuda.Open)))
			}
			l := NewBatchNorm(BatchNormConfig{Channels: channels, Momentum: 0.25}, opts...)
			if got := len(l.Params().Trainable()); got != 2 {
				t.Errorf("%d weights are trained, want 2", got)
			}
			want := [2][]float64{{0, 0, 0}, {1, 1, 1}}
			same := func(when string) {
				t.Helper()
				if err := l.Params().ToHost(); err != nil {
					t.Fatal(err)
				}
				for i, p := range []*Param{l.RunningMean, l.RunningVariance} {
					if d := apart(append(asFloat64(p.Value), 1), append(want[i], 1)); !(d <= 1e-6) {
						t.Errorf("%s: statistic %d is %v, want %v", when, i, p.Value.Data(), want[i])
					}
				}
			}
			x := random(rand.New(rand.NewPCG(6, 1)), tensor.Float32, 2, cells/2, channels)
			for i := range x.Data().([]float32) {
				x.Data().([]float32)[i] += 2
			}
			m := training(t, l, x)
			defer m.Close()
			update := func() {
				t.Helper()
				if err := l.Params().UpdateStatistics(); err != nil {
					t.Fatal(err)
				}
			}
			update()
			same("before a run")
			for run := range 3 {
				m.Reset()
				if err := m.RunAll(); err != nil {
					t.Fatal(err)
				}
				same(fmt.Sprint("before update ", run))
				for d := range channels {
					var mean, variance float64
					for i := range cells {
						mean += float64(x.Data().([]float32)[i*channels+d]) / cells
					}
					for i := range cells {
						variance += math.Pow(float64(x.Data().([]float32)[i*channels+d])-mean, 2) / (cells - 1)
					}
					want[0][d] = 0.75*want[0][d] + 0.25*mean
					want[1][d] = 0.75*want[1][d] + 0.25*variance
				}
				update()
				same(fmt.Sprint("after update ", run))
				update()
				same(fmt.Sprint("after a second update ", run))
			}
			evaluate := func() []float64 {
				y, err := l.Apply(G.NodeFromAny(G.NewGraph(), x.Clone(), G.WithName("x")))
				if err != nil {
					t.Fatal(err)
				}
				return asFloat64(run(t, y)[0])
			}
			for i, y := range evaluate() {
				d := i % channels
				if w := (float64(x.Data().([]float32)[i]) - want[0][d]) / math.Sqrt(want[1][d]+1e-5); !(math.Abs(y-w) <= 1e-5) {
					t.Fatalf("element %d is %v in evaluation, want %v", i, y, w)
				}
			}
			l.Params().Statistics().Freeze()
			frozen := training(t, l, x)
			defer frozen.Close()
			for _, m := range []G.VM{m, frozen} {
				m.Reset()
				if err := m.RunAll(); err != nil {
					t.Fatal(err)
				}
				update()
				same("frozen")
			}
		})
	}
}

// What is wrong with a batch norm.
func TestBatchNormErrors(t *testing.T) {
	if err := NewBatchNorm(BatchNormConfig{Channels: 2, Momentum: 2}).Err(); err == nil ||
		err.Error() != "layer: batch norm: momentum is 2, want more than 0 and at most 1, or 0 for the default" {
		t.Errorf("the error is %v", err)
	}
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 1, 2), G.WithName("x"))
	step := G.NewTensor(g, tensor.Int, 1, G.WithShape(1), G.WithName("step"))
	if _, err := NewBatchNorm(BatchNormConfig{Channels: 2}).Apply(x, WithTraining(step)); err == nil ||
		err.Error() != "batch norm: x has shape (1, 1, 2), one cell, want at least two in training" {
		t.Errorf("the error is %v", err)
	}
}
