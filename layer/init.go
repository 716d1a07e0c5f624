package layer

import (
	"hash/fnv"
	"math"
	"math/rand/v2"

	"gorgonia.org/tensor"
)

// Rand returns the source of randomness of the weight of that name.
func (o Options) Rand(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(o.Seed, h.Sum64()))
}

// New returns a tensor whose elements are drawn one after another, or zeros with WithZeros.
func (o Options) New(draw func() float64, shape ...int) *tensor.Dense {
	if o.Zeros {
		draw = nil
	}
	size := tensor.Shape(shape).TotalSize()
	if o.Dtype == tensor.Float32 {
		return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(fill(make([]float32, size), draw)))
	}
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(fill(make([]float64, size), draw)))
}

func fill[T float32 | float64](v []T, draw func() float64) []T {
	if draw == nil {
		return v
	}
	for i := range v {
		v[i] = T(draw())
	}
	return v
}

// Uniform draws between -bound and bound.
func Uniform(r *rand.Rand, bound float64) func() float64 {
	return func() float64 { return bound * (2*r.Float64() - 1) }
}

// Constant draws the same value again and again.
func Constant(v float64) func() float64 { return func() float64 { return v } }

// LogUniform draws between low and high, uniform in the logarithm.
func LogUniform(r *rand.Rand, low, high float64) func() float64 {
	low, high = math.Log(low), math.Log(high)
	return func() float64 { return math.Exp(low + r.Float64()*(high-low)) }
}

// InverseSoftplus returns the x whose softplus, log(1 + exp(x)), is y.
func InverseSoftplus(y float64) float64 { return y + math.Log(-math.Expm1(-y)) }
