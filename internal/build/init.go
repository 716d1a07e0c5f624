package build

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
)

// Rand returns the source of random numbers for the weight of that name. It depends on the name and on the seed; or on the layer's
// number if it has no name and no seed.
func (o Options) Rand(name string) *rand.Rand {
	h := fnv.New64a()
	if o.number > 0 {
		fmt.Fprintf(h, "%d\x00", o.number) // no weight of a named layer has such a name
	}
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(o.Seed, h.Sum64()))
}

// New returns a tensor of a shape. Its elements are drawn in order, or are zeros with WithZeros or if draw is nil.
//
// It returns nil with Empty, or if the shape has a size below 1 or needs more memory than the machine has.
func (o Options) New(draw func() float64, shape ...int) *tensor.Dense {
	dt := tensor.Float64
	if o.Dtype == tensor.Float32 {
		dt = tensor.Float32
	}
	bytes := size.Of(dt.Size(), shape...)
	switch {
	case o.Empty && !o.counting():
		return nil
	case o.counting():
		if o.Empty {
			bytes = 0
		}
		*o.count = o.count.Plus(bytes.Plus(Overhead).Times(o.times))
		shape = []int{1}
	case bytes == 0 || bytes.Fits("") != nil:
		return nil
	}
	if o.Zeros || o.counting() {
		draw = nil
	}
	if dt == tensor.Float32 {
		return drawn[float32](draw, shape)
	}
	return drawn[float64](draw, shape)
}

func drawn[T float32 | float64](draw func() float64, shape tensor.Shape) *tensor.Dense {
	v := make([]T, shape.TotalSize())
	size.HugePages(v)
	for i := range v {
		if draw != nil {
			v[i] = T(draw())
		}
	}
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v))
}

// Overhead is about what a weight needs beside its elements: a Param, a tensor, names.
const Overhead size.Bytes = 512

// counting reports whether New counts bytes instead of drawing weights.
func (o Options) counting() bool { return o.count != nil }

// Repeated returns the options for one of n equal parts of the layer, and how many of them to make: 1 while Build counts bytes,
// where it stands for all, and n otherwise.
func (o Options) Repeated(n int) (part Options, parts int) {
	if !o.counting() {
		return o, n
	}
	o.times = size.Product(o.times, n)
	return o, 1
}

// Count returns an option with which New adds the bytes of weights to bytes, and draws nothing.
func Count(bytes *size.Bytes) Option {
	return func(o *Options) { o.count, o.times, o.Zeros = bytes, 1, true }
}

// measure calls f with options that count the bytes of weights, and returns an error if they do not fit into memory.
func (o Options) measure(what string, sizes []any, f func(Options) error) error {
	var bytes size.Bytes
	Count(&bytes)(&o)
	o.ToHost() // nothing is to be put there
	if err := f(o); err != nil {
		return err
	}
	if err := bytes.Fits("the weights"); err != nil {
		var list []string
		for i := 0; i < len(sizes); i += 2 {
			list = append(list, fmt.Sprintf("%v is %v", sizes[i], sizes[i+1]))
		}
		return fmt.Errorf("%s: %s: %w", what, strings.Join(list, ", "), err)
	}
	return nil
}

// Uniform returns a function that draws numbers between -bound and bound.
func Uniform(r *rand.Rand, bound float64) func() float64 {
	return func() float64 { return bound * (2*r.Float64() - 1) }
}

// TruncatedNormal returns a function that draws normal numbers of a standard deviation, leaving out those beyond ±2.
func TruncatedNormal(r *rand.Rand, deviation float64) func() float64 {
	return func() float64 {
		for {
			if v := deviation * r.NormFloat64(); math.Abs(v) <= 2 {
				return v
			}
		}
	}
}

// Constant returns a function that returns v.
func Constant(v float64) func() float64 { return func() float64 { return v } }

// LogUniform returns a function that draws numbers between low and high whose logarithms are uniform.
func LogUniform(r *rand.Rand, low, high float64) func() float64 {
	low, high = math.Log(low), math.Log(high)
	return func() float64 { return math.Exp(low + r.Float64()*(high-low)) }
}

// InverseSoftplus returns the x whose softplus, log(1 + exp(x)), is y.
func InverseSoftplus(y float64) float64 { return y + math.Log(-math.Expm1(-y)) }
