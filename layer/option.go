package layer

import (
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Option is an option that every layer has: WithName, WithDtype, WithSeed, WithZeros, and the place, which OnDevice and WithPrecision
// set. What only some layers have is a field of their configuration.
type Option = build.Option

// WithName puts a name in front of the names of the layer's weights. With "head", "weight" becomes "head.weight".
func WithName(name string) Option { return func(o *build.Options) { o.Name = name } }

// WithDtype sets the type of the weights: tensor.Float32 (the default) or tensor.Float64.
func WithDtype(dt tensor.Dtype) Option { return func(o *build.Options) { o.Dtype = dt } }

// WithSeed sets the seed of the initial weights. Each weight is drawn from the seed and its own name, so adding a layer does not
// change the weights of the others.
//
// The same seed and name give the same weights, in every program. So a model can be built twice, for example on the host and on a
// device; and parallel branches need different names or different seeds, or they start equal and stay equal in training. This holds
// for the seed 0 too.
//
// A layer, block or stack that has neither a name nor a seed gets a number instead, counted up from the start of the program. Two
// such layers start with different weights, and a program that makes its layers in the same order gets the same weights in every
// run. If several goroutines make layers, the order is not fixed: give these layers names.
func WithSeed(seed uint64) Option {
	return func(o *build.Options) { o.Seed, o.Seeded = seed, true }
}

// WithZeros sets all weights to zero instead of drawing them. Use it for a model whose weights are read from a file next.
func WithZeros() Option { return func(o *build.Options) { o.Zeros = true } }

// OnDevice makes a layer compute on a GPU; see nn.OnDevice.
func OnDevice(device *op.Device) Option {
	return func(o *build.Options) { o.Device, o.OnDevice = device, true }
}

// WithPrecision sets the precision of a layer on a device; see nn.WithPrecision.
func WithPrecision(p op.Precision) Option { return func(o *build.Options) { o.Precision = p } }

// dtRange returns the range of the initial steps Δ, 0.001 to 0.1 if both ends are 0.
func dtRange(low, high float64) (float64, float64, error) {
	if low == 0 && high == 0 {
		return 0.001, 0.1, nil
	}
	if !(0 < low && low <= high && !math.IsInf(high, 1)) {
		return low, high, fmt.Errorf("the range of Δ is %v to %v, want finite numbers above 0, the first not above the second", low, high)
	}
	return low, high, nil
}
