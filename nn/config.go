package nn

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// Config is the shape of a Mamba block or stack, by the paper's names. A zero field stands for the default.
type Config struct {
	DModel int // width of the residual stream; required
	NLayer int // blocks of a stack; 1 by default. It also scales the start of a block's output, by 1/√NLayer
	DState int // N, the size of a channel's state; 16
	DConv  int // width of the causal convolution; 4
	Expand int // channels inside a block, as a multiple of DModel; 2
	DInner int // channels inside a block, where they are no such multiple; 0 leaves them to Expand
	DtRank int // rank of the projection that Δ comes from; DModel/16, rounded up

	DtMin, DtMax float64 // the range that the steps Δ start in; 0.001 to 0.1
	DtScale      float64 // scale of the start of dt_proj's weight; 1
	DtInitFloor  float64 // no step starts smaller; 1e-4
	NormEps      float64 // what the norms add to the mean of squares; 1e-5

	Bias       bool // in_proj and out_proj have a bias; of other kinds of layers, all projections
	NoConvBias bool // the convolution has no bias

	// What the layers of a stack are: layer i is Pattern[i % len(Pattern)]; without a pattern, all are Mamba blocks.
	Pattern []Kind
	NHead   int // heads of attention, about DModel/64 by default; and of H3, by default as many as channels
	Window  int // steps that attention sees, itself among them; 0 for all. Only a window has a state of fixed size
	DHidden int // channels inside SwiGLU and GeGLU; 8/3 of DModel, rounded up to a multiple of 8
}

// withDefaults fills in the defaults, or returns what is wrong.
func (c Config) withDefaults() (Config, error) {
	fill := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	fillFloat := func(field *float64, value float64) {
		if *field == 0 {
			*field = value
		}
	}
	fill(&c.NLayer, 1)
	fill(&c.DState, 16)
	fill(&c.DConv, 4)
	fill(&c.Expand, 2)
	fill(&c.DtRank, (c.DModel+15)/16)
	fillFloat(&c.DtMin, 0.001)
	fillFloat(&c.DtMax, 0.1)
	fillFloat(&c.DtScale, 1)
	fillFloat(&c.DtInitFloor, 1e-4)
	fillFloat(&c.NormEps, 1e-5)
	for _, f := range []struct {
		name  string
		value int
	}{{"DModel", c.DModel}, {"NLayer", c.NLayer}, {"DState", c.DState}, {"DConv", c.DConv}, {"Expand", c.Expand}, {"DtRank", c.DtRank}} {
		if f.value < 1 {
			return c, fmt.Errorf("nn: %s is %d, want at least 1", f.name, f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value int
		zero  string
	}{{"DInner", c.DInner, "Expand·DModel"}, {"NHead", c.NHead, "the default"}, {"Window", c.Window, "no window"}, {"DHidden", c.DHidden, "the default"}} {
		if f.value < 0 {
			return c, fmt.Errorf("nn: %s is %d, want at least 1, or 0 for %s", f.name, f.value, f.zero)
		}
	}
	for _, kind := range c.Pattern {
		if err := kind.check(); err != nil {
			return c, err
		}
	}
	for _, f := range []struct {
		name  string
		value float64
	}{{"DtMin", c.DtMin}, {"DtMax", c.DtMax}, {"DtScale", c.DtScale}, {"DtInitFloor", c.DtInitFloor}, {"NormEps", c.NormEps}} {
		if !(f.value > 0) || math.IsInf(f.value, 1) {
			return c, fmt.Errorf("nn: %s is %v, want a positive number", f.name, f.value)
		}
	}
	if c.DtMin > c.DtMax {
		return c, fmt.Errorf("nn: DtMin is %v, want at most DtMax, %v", c.DtMin, c.DtMax)
	}
	return c, nil
}

func (c Config) inner() int {
	if c.DInner > 0 {
		return c.DInner
	}
	return c.Expand * c.DModel
}

// fits returns what is wrong with the input of a block or stack.
func (c Config) fits(x *G.Node, dt tensor.Dtype) error {
	if s := x.Shape(); len(s) != 3 || s[2] != c.DModel {
		return fmt.Errorf("nn: x has shape %v, want (batch, length, d_model) = (any, any, %d)", s, c.DModel)
	}
	if x.Dtype() != dt {
		return fmt.Errorf("nn: x is of %v, want %v like the weights", x.Dtype(), dt)
	}
	return nil
}

// Option configures how a model is made: its name, its type, its seed.
type Option = layer.Option

// WithName puts a name in front of the names of the weights: with "encoder", "layers.0.norm.weight" becomes
// "encoder.layers.0.norm.weight".
func WithName(name string) Option { return layer.WithName(name) }

// WithDtype sets the type of the weights and so of the model: tensor.Float32 (the default) or tensor.Float64.
func WithDtype(dt tensor.Dtype) Option { return layer.WithDtype(dt) }

// WithSeed sets the seed of the initial weights.
func WithSeed(seed uint64) Option { return layer.WithSeed(seed) }

// collect returns options and configuration with their defaults, or what is wrong with them.
func collect(cfg Config, opts []Option) (Config, layer.Options, error) {
	o, err := layer.Collect(opts, false)
	if err != nil {
		return cfg, o, fmt.Errorf("nn: %w", err)
	}
	cfg, err = cfg.withDefaults()
	return cfg, o, err
}

// part returns the options of a part of what is called name.
func part(o layer.Options, name string, more ...Option) []Option {
	opts := []Option{layer.WithName(layer.Join(o.Name, name)), layer.WithDtype(o.Dtype), layer.WithSeed(o.Seed)}
	if o.Zeros {
		opts = append(opts, layer.WithZeros())
	}
	return append(opts, more...)
}
