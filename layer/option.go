package layer

import (
	"fmt"

	"gorgonia.org/tensor"
)

// Option configures a layer.
type Option func(*Options)

// Options is what the options of a layer amount to. Users write options; Options is for those who build layers.
type Options struct {
	Name  string
	Dtype tensor.Dtype
	Seed  uint64
	Bias  bool
	Eps   float64
	Zeros bool
}

// WithName puts a name in front of the names of the layer's weights: with "head", "weight" becomes "head.weight".
func WithName(name string) Option { return func(o *Options) { o.Name = name } }

// WithDtype sets the type of the weights, tensor.Float32 (the default) or tensor.Float64.
func WithDtype(dt tensor.Dtype) Option { return func(o *Options) { o.Dtype = dt } }

// WithSeed sets the seed of the initial weights. Each weight is drawn from the seed and its own name, so that adding a
// layer changes no other.
func WithSeed(seed uint64) Option { return func(o *Options) { o.Seed = seed } }

// WithBias says whether a layer has a bias.
func WithBias(bias bool) Option { return func(o *Options) { o.Bias = bias } }

// WithEps sets the number that a norm adds to the mean of squares, 1e-5 by default.
func WithEps(eps float64) Option { return func(o *Options) { o.Eps = eps } }

// WithZeros starts all weights at zero instead of drawing them: for a model whose weights are about to be read.
func WithZeros() Option { return func(o *Options) { o.Zeros = true } }

// Collect applies options to the defaults, and reports what is wrong with them.
func Collect(opts []Option, bias bool) (Options, error) {
	o := Options{Dtype: tensor.Float32, Bias: bias, Eps: 1e-5}
	for _, opt := range opts {
		opt(&o)
	}
	if o.Dtype != tensor.Float32 && o.Dtype != tensor.Float64 {
		return o, fmt.Errorf("dtype is %v, want float32 or float64", o.Dtype)
	}
	return o, nil
}

// Join returns the name of a part of what is called name.
func Join(name, part string) string {
	if name == "" {
		return part
	}
	return name + "." + part
}
