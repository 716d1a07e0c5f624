package layer

import (
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/cuda/graph"
	"github.com/gomamba/mamba/op"
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

	Device    *graph.Context // nil for the host
	Precision cuda.Precision

	// 0 where the layer's own default is meant.
	StateSize, DtRank int
	DtMin, DtMax      float64
	A                 StartA
	Bilinear          bool
	Heads, Shift      int
	Window            int
	Rotary            float64

	NoSiLU     bool
	Activation op.Activation // SiLU is the default

	deviceErr error
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

// OnDevice has a model compute on a GPU; see nn.OnDevice.
func OnDevice(device *cuda.Device) Option {
	return func(o *Options) {
		if o.Device, o.deviceErr = graph.On(device); o.deviceErr != nil {
			o.Device = nil
		}
	}
}

// WithPrecision sets how a model on a device computes; see nn.WithPrecision.
func WithPrecision(p cuda.Precision) Option { return func(o *Options) { o.Precision = p } }

// WithStateSize sets N, the size of the state of each channel of a state space.
func WithStateSize(n int) Option { return func(o *Options) { o.StateSize = n } }

// WithDtRank sets the rank of the projection that the steps Δ of S6 come from.
func WithDtRank(rank int) Option { return func(o *Options) { o.DtRank = rank } }

// WithDtRange sets the range that the steps Δ of a state space start in, 0.001 to 0.1 by default.
func WithDtRange(low, high float64) Option {
	return func(o *Options) { o.DtMin, o.DtMax = low, high }
}

// WithHeads sets the number of heads that the channels are cut into.
func WithHeads(heads int) Option { return func(o *Options) { o.Heads = heads } }

// WithShift sets the number of steps that the shift state space of H3 reads, 4 by default.
func WithShift(steps int) Option { return func(o *Options) { o.Shift = steps } }

// WithoutSiLU leaves a convolution without the SiLU that otherwise follows it.
func WithoutSiLU() Option { return func(o *Options) { o.NoSiLU = true } }

// WithWindow sets how many steps attention sees, itself among them, at least 2.
func WithWindow(steps int) Option { return func(o *Options) { o.Window = steps } }

// WithRotary sets the base of the rotary positions of attention; 0 is none.
func WithRotary(base float64) Option { return func(o *Options) { o.Rotary = base } }

// WithActivation sets the activation of a gated MLP.
func WithActivation(f op.Activation) Option { return func(o *Options) { o.Activation = f } }

// Collect applies options to the defaults, and reports what is wrong with them.
func Collect(opts []Option, bias bool) (Options, error) {
	o := Options{Dtype: tensor.Float32, Bias: bias, Eps: 1e-5}
	for _, opt := range opts {
		opt(&o)
	}
	if o.Dtype != tensor.Float32 && o.Dtype != tensor.Float64 {
		return o, fmt.Errorf("dtype is %v, want float32 or float64", o.Dtype)
	}
	switch {
	case o.deviceErr != nil:
		return o, o.deviceErr
	case o.Precision < cuda.Strict || o.Precision > cuda.BF16:
		return o, fmt.Errorf("precision is %d, want cuda.Strict, cuda.TF32 or cuda.BF16", int(o.Precision))
	case o.Precision != cuda.Strict && o.Device == nil:
		return o, fmt.Errorf("precision is %v, which wants a device: OnDevice", o.Precision)
	case o.Device != nil && o.Dtype != tensor.Float32:
		return o, fmt.Errorf("dtype is %v, want float32 on a device", o.Dtype)
	}
	return o, nil
}

// dtRange returns the range of the steps, and what is wrong with it.
func (o Options) dtRange() (low, high float64, err error) {
	if o.DtMin == 0 && o.DtMax == 0 {
		return 0.001, 0.1, nil
	}
	if !(0 < o.DtMin && o.DtMin <= o.DtMax && !math.IsInf(o.DtMax, 1)) {
		err = fmt.Errorf("the range of Δ is %v to %v, want finite numbers above 0, the first not above the second", o.DtMin, o.DtMax)
	}
	return o.DtMin, o.DtMax, err
}

// Part returns the options of a part of the layer, which has their type, seed and name in front of its own.
func (o Options) Part(name string, more ...Option) []Option {
	opts := []Option{WithName(Join(o.Name, name)), WithDtype(o.Dtype), WithSeed(o.Seed)}
	if o.Zeros {
		opts = append(opts, WithZeros())
	}
	return append(opts, more...)
}

// Placed is where and how the layer computes, as an option for its parts.
func (o Options) Placed() Option {
	return func(part *Options) { part.Device, part.Precision = o.Device, o.Precision }
}

// Join returns the name of a part of what is called name.
func Join(name, part string) string {
	if name == "" {
		return part
	}
	return name + "." + part
}
