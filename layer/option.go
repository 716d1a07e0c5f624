package layer

import (
	"fmt"
	"math"
	"sync/atomic"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// Option configures a layer.
type Option func(*Options)

// Options holds the values that options set. Users of layers write options; Options is for those who build layers.
type Options struct {
	Name  string
	Dtype tensor.Dtype
	Seed  uint64
	Bias  bool
	Eps   float64
	Zeros bool

	Place     op.Place     // of the weights
	device    *cuda.Device // of OnDevice
	onDevice  bool
	Precision cuda.Precision

	// Each of these is 0 for the layer's own default.
	StateSize, DtRank int
	DtMin, DtMax      float64
	A                 StartA
	Bilinear          bool
	Heads, Shift      int
	Window            int
	Rotary            float64

	NoSiLU     bool
	Activation op.Activation // SiLU by default

	seeded bool   // WithSeed was given
	number uint64 // of a layer that has neither a name nor a seed; 0 for all others

	count   *size.Bytes // New adds to it instead of drawing weights; nil while weights are drawn
	times   int         // how many times New adds
	counted bool        // the weights fit into memory
}

// WithName puts a name in front of the names of the layer's weights. With "head", "weight" becomes "head.weight".
func WithName(name string) Option { return func(o *Options) { o.Name = name } }

// WithDtype sets the type of the weights: tensor.Float32 (the default) or tensor.Float64.
func WithDtype(dt tensor.Dtype) Option { return func(o *Options) { o.Dtype = dt } }

// WithSeed sets the seed of the initial weights. Each weight is drawn from the seed and its own name, so adding a layer does not
// change the weights of the others.
//
// The same seed and name give the same weights, in every program. So a model can be built twice, for example on the host and on a
// device; and parallel branches need different names or different seeds, or they start equal and stay equal in training. This holds
// for the seed 0 too.
//
// A layer, block or stack that has neither a name nor a seed gets a number instead, counted up from the start of the program. Two
// such layers start with different weights, and a program that makes its layers in the same order gets the same weights in every
// run. If several goroutines make layers, the order is not fixed: give these layers names. An nn.LM without a seed has the seed 0.
func WithSeed(seed uint64) Option { return func(o *Options) { o.Seed, o.seeded = seed, true } }

// WithBias sets whether a layer has a bias.
func WithBias(bias bool) Option { return func(o *Options) { o.Bias = bias } }

// WithEps sets the number that a norm adds to the mean of squares, 1e-5 by default.
func WithEps(eps float64) Option { return func(o *Options) { o.Eps = eps } }

// WithZeros sets all weights to zero instead of drawing them. Use it for a model whose weights are read from a file next.
func WithZeros() Option { return func(o *Options) { o.Zeros = true } }

// OnDevice makes a model compute on a GPU; see nn.OnDevice.
func OnDevice(device *cuda.Device) Option {
	return func(o *Options) { o.device, o.onDevice = device, true }
}

// WithPrecision sets the precision of a model on a device; see nn.WithPrecision.
func WithPrecision(p cuda.Precision) Option { return func(o *Options) { o.Precision = p } }

// WithStateSize sets N, the size of the state of each channel of a state space.
func WithStateSize(n int) Option { return func(o *Options) { o.StateSize = n } }

// WithDtRank sets the rank of the projection that computes the steps Δ of S6.
func WithDtRank(rank int) Option { return func(o *Options) { o.DtRank = rank } }

// WithDtRange sets the range of the initial steps Δ of a state space, 0.001 to 0.1 by default.
func WithDtRange(low, high float64) Option {
	return func(o *Options) { o.DtMin, o.DtMax = low, high }
}

// WithHeads sets the number of heads that the channels are divided into.
func WithHeads(heads int) Option { return func(o *Options) { o.Heads = heads } }

// WithShift sets the number of steps that the shift state space of H3 reads, 4 by default.
func WithShift(steps int) Option { return func(o *Options) { o.Shift = steps } }

// WithoutSiLU removes the SiLU after a convolution.
func WithoutSiLU() Option { return func(o *Options) { o.NoSiLU = true } }

// WithWindow sets the number of steps that attention sees, including the current step. It is at least 2.
func WithWindow(steps int) Option { return func(o *Options) { o.Window = steps } }

// WithRotary sets the base of the rotary positions of attention; 0 turns them off.
func WithRotary(base float64) Option { return func(o *Options) { o.Rotary = base } }

// WithActivation sets the activation of a gated MLP.
func WithActivation(f op.Activation) Option { return func(o *Options) { o.Activation = f } }

var numbers atomic.Uint64

// Collect applies options to the defaults. It returns an error if one of them is nil or invalid. bias is the default of WithBias.
func Collect(opts []Option, bias bool) (Options, error) {
	o := Options{Dtype: tensor.Float32, Bias: bias, Eps: 1e-5, times: 1}
	for i, opt := range opts {
		if opt == nil {
			return o, fmt.Errorf("option %d is nil", i)
		}
		opt(&o)
	}
	if o.Dtype.Type == nil { // printing it panics
		return o, fmt.Errorf("dtype is missing, want float32 or float64")
	}
	if o.Dtype != tensor.Float32 && o.Dtype != tensor.Float64 {
		return o, fmt.Errorf("dtype is %v, want float32 or float64", o.Dtype)
	}
	if o.onDevice {
		var err error
		if o.Place, err = op.On(o.device, o.Precision); err != nil {
			return o, err
		}
	}
	switch {
	case o.Precision.Err() != nil:
		return o, o.Precision.Err()
	case o.Precision != cuda.Strict && o.Place.OnHost():
		return o, fmt.Errorf("precision is %v, which wants a device: OnDevice", o.Precision)
	case !o.Place.OnHost() && o.Dtype != tensor.Float32:
		return o, fmt.Errorf("dtype is %v, want float32 on a device", o.Dtype)
	}
	if o.Name == "" && !o.seeded {
		o.number = numbers.Add(1)
	}
	return o, nil
}

// dtRange returns the range of the initial steps.
func (o Options) dtRange() (low, high float64, err error) {
	if o.DtMin == 0 && o.DtMax == 0 {
		return 0.001, 0.1, nil
	}
	if !(0 < o.DtMin && o.DtMin <= o.DtMax && !math.IsInf(o.DtMax, 1)) {
		err = fmt.Errorf("the range of Δ is %v to %v, want finite numbers above 0, the first not above the second", o.DtMin, o.DtMax)
	}
	return o.DtMin, o.DtMax, err
}

// Part returns the options of a part of the layer: those of the layer that apply to its weights, and more. The part's name comes
// after the layer's.
func (o Options) Part(name string, more ...Option) []Option {
	name = Join(o.Name, name)
	return append([]Option{func(part *Options) {
		part.Name, part.Dtype, part.Zeros = name, o.Dtype, o.Zeros
		part.Seed, part.seeded, part.number = o.Seed, o.seeded, o.number
		part.count, part.times, part.counted = o.count, o.times, o.counted
	}}, more...)
}

// Placed returns an option that puts a part of the layer on the layer's device, with its precision.
func (o Options) Placed() Option {
	return func(part *Options) { part.device, part.onDevice, part.Precision = o.device, o.onDevice, o.Precision }
}

// Join returns the name of a part: name, a dot and part, or part alone if name is empty.
func Join(name, part string) string {
	if name == "" {
		return part
	}
	return name + "." + part
}
