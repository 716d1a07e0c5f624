package vision

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// The names of the options, which are those of package layer and nn.
type (
	// Option configures how a model is made, for example its name, its type, its seed and its device: see package layer.
	Option = layer.Option
	// CallOption is an option of a single application of a model: nn.WithTraining.
	CallOption = nn.CallOption
)

// deviation is the standard deviation of the initial weights of linear layers.
const deviation = 0.02

// image says what a model takes: axes of the grid and channels.
type image struct{ axes, channels int }

var axesNames = map[int]string{2: "(batch, height, width, channels)", 3: "(batch, depth, height, width, channels)"}

func (i image) check(x *G.Node, dt tensor.Dtype) error {
	shape := x.Shape()
	ok := len(shape) == i.axes+2 && shape[i.axes+1] == i.channels
	for _, n := range shape {
		ok = ok && n > 0
	}
	if !ok {
		return fmt.Errorf("x has shape %v, want %s with %d channels", shape, axesNames[i.axes], i.channels)
	}
	if x.Dtype() != dt {
		return fmt.Errorf("x is of %v, want %v like the weights", x.Dtype(), dt)
	}
	return nil
}

// run applies f to x where the model's weights are. Results are returned to where x was.
func run[M any, P interface {
	build.Layer[M]
	build.Part[layer.Params]
	Name() string
}](m P, in image, x *G.Node, opts []CallOption, f func(s *build.Steps, x *G.Node) G.Nodes) (G.Nodes, error) {
	if err := build.Use(m, x); err != nil {
		return nil, err
	}
	failed := func(err error) (G.Nodes, error) { return nil, fmt.Errorf("vision: %s: %w", m.Name(), err) }
	c, err := build.CallOf(opts)
	if err != nil {
		return failed(err)
	}
	if c.Start != nil {
		return failed(fmt.Errorf("start is given, want none: an image is no packed sequence"))
	}
	if err := in.check(x, m.Params()[0].Value.Dtype()); err != nil {
		return failed(err)
	}
	e := build.EdgeOf(m.Params().Place(), x)
	s := &build.Steps{Call: c, Graph: x.Graph()}
	results := f(s, s.Do(e.In(x)))
	for i, y := range results {
		results[i] = s.Do(e.Out(y))
	}
	if _, err := s.Result(nil, nil); err != nil {
		return failed(err)
	}
	return results, nil
}

// first returns the first of several nodes, with the error.
func first(all G.Nodes, err error) (*G.Node, error) {
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// drop is the rate at which a block drops its branches in training, which is different for each image.
type drop struct {
	rate  float64
	seed  uint64
	block int
}

// drops returns a function that returns the drop of block i of n, whose rate grows linearly from 0 to rate.
func drops(n int, rate float64, seed uint64) func(i int) drop {
	return func(i int) drop { return drop{rate * float64(i) / float64(max(n-1, 1)), seed, i} }
}

// add returns x + branch without what is dropped. A block has up to two branches, 0 and 1.
func (d drop) add(s *build.Steps, x, branch *G.Node, which int) *G.Node {
	if s.Step != nil && d.rate > 0 {
		branch = s.Do(op.DropPath(branch, s.Step, op.DropoutConfig{Rate: d.rate, Seed: d.seed, Layer: 2*d.block + which}))
	}
	return s.Do(op.Add(x, branch))
}

// rate checks a probability.
func rate(name string, v float64) error {
	if !(v >= 0 && v < 1) {
		return fmt.Errorf("%s is %v, want at least 0 and below 1", name, v)
	}
	return nil
}

// counts checks a list of numbers of at least 1, as many as stages.
func counts(name string, list []int, stages int) error {
	if len(list) != stages || stages == 0 {
		return fmt.Errorf("%s is %v, want %d numbers, one for each stage", name, list, max(stages, 1))
	}
	for i, n := range list {
		if n < 1 || n > math.MaxInt32 {
			return fmt.Errorf("%s[%d] is %d, want 1 to 2^31-1", name, i, n)
		}
	}
	return nil
}

// normal draws the weights of linear layers as the references do, from a normal distribution, and sets their biases to zero.
func normal(o build.Options, layers ...*layer.Linear) {
	for _, l := range layers {
		if o.Zeros || l.Err() != nil {
			continue
		}
		l.Weight.Value = o.New(build.TruncatedNormal(o.Rand(l.Weight.Name), deviation), l.Weight.Value.Shape()...)
		if l.Bias != nil {
			l.Bias.Value = o.New(nil, l.Bias.Value.Shape()...)
		}
	}
}

// activate returns f(x).
func activate(s *build.Steps, x *G.Node, f op.Activation) *G.Node { return s.Do(op.Activate(x, f)) }
