package layer

import (
	"math"
	"slices"
	"testing"

	"gorgonia.org/tensor"
)

func doubles(v *tensor.Dense) []float64 {
	if d, ok := v.Data().([]float64); ok {
		return d
	}
	var s []float64
	for _, x := range v.Data().([]float32) {
		s = append(s, float64(x))
	}
	return s
}

// moments returns what tells a distribution.
func moments(v []float64) (low, high, mean, deviation float64) {
	low, high = slices.Min(v), slices.Max(v)
	for _, x := range v {
		mean += x / float64(len(v))
	}
	for _, x := range v {
		deviation += (x - mean) * (x - mean) / float64(len(v))
	}
	return low, high, mean, math.Sqrt(deviation)
}

// Linear layers start uniform within ±1/√fan_in, convolutions within ±1/√width: the bounds are kept and reached, mean and
// deviation are those of a uniform distribution. In both types.
func TestUniformStart(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		linear := NewLinear(LinearConfig{In: 64, Out: 200, Bias: true}, WithDtype(dt))
		conv := NewConv1D(Conv1DConfig{Channels: 2000, Width: 5}, WithDtype(dt))
		for _, c := range []struct {
			p     *Param
			bound float64
		}{{linear.Weight, 1. / 8}, {linear.Bias, 1. / 8}, {conv.Parts.Weight, 1 / math.Sqrt(5)}, {conv.Parts.Bias, 1 / math.Sqrt(5)}} {
			v := doubles(c.p.Value)
			low, high, mean, deviation := moments(v)
			slack := 5 / math.Sqrt(float64(len(v))) // five standard errors, or nearly
			if low < -c.bound*(1+1e-7) || high > c.bound*(1+1e-7) {
				t.Errorf("%v %s is within %v and %v, want within ±%v", dt, c.p.Name, low, high, c.bound)
			}
			if low > -c.bound*(1-slack) || high < c.bound*(1-slack) {
				t.Errorf("%v %s is within %v and %v, which leaves out much of ±%v", dt, c.p.Name, low, high, c.bound)
			}
			if math.Abs(mean) > c.bound*slack {
				t.Errorf("%v %s has a mean of %v, want about 0", dt, c.p.Name, mean)
			}
			if want := c.bound / math.Sqrt(3); math.Abs(deviation-want) > want*slack {
				t.Errorf("%v %s has a deviation of %v, want about %v", dt, c.p.Name, deviation, want)
			}
		}
	}
}

func TestEmbeddingStart(t *testing.T) {
	v := doubles(NewEmbedding(EmbeddingConfig{Vocabulary: 100, Channels: 100}).Weight.Value)
	low, high, mean, deviation := moments(v)
	if math.Abs(mean) > 0.001 || math.Abs(deviation-0.02) > 0.001 {
		t.Errorf("mean %v, deviation %v, want 0 and 0.02", mean, deviation)
	}
	if high < 0.06 || low > -0.06 { // a normal distribution leaves three deviations about 13 times each way
		t.Errorf("the largest are %v and %v: no normal distribution", low, high)
	}
}

func TestRMSNormStart(t *testing.T) {
	for _, x := range doubles(NewRMSNorm(RMSNormConfig{Channels: 9}).Weight.Value) {
		if x != 1 {
			t.Fatalf("a weight starts at %v, want 1", x)
		}
	}
}

// A seed is a start; another seed, or another name, is another one.
func TestSeed(t *testing.T) {
	start := func(opts ...Option) []float64 {
		return doubles(NewLinear(LinearConfig{In: 4, Out: 4}, opts...).Weight.Value)
	}
	first := start(WithSeed(7), WithName("a"))
	if !slices.Equal(first, start(WithName("a"), WithSeed(7))) {
		t.Error("the same seed gives other weights")
	}
	if !slices.Equal(start(WithName("a")), start(WithName("a"), WithSeed(0))) {
		t.Error("the default seed is not 0")
	}
	for what, other := range map[string][]float64{
		"another seed": start(WithSeed(8), WithName("a")),
		"another name": start(WithSeed(7), WithName("b")),
	} {
		for i := range first {
			if first[i] == other[i] {
				t.Errorf("%s gives the same element %d", what, i)
			}
		}
	}
	l := NewLinear(LinearConfig{In: 4, Out: 4, Bias: true})
	if slices.Equal(doubles(l.Weight.Value)[:4], doubles(l.Bias.Value)) {
		t.Error("weight and bias start with the same numbers")
	}
	double := doubles(NewLinear(LinearConfig{In: 4, Out: 4}, WithSeed(7), WithName("a"), WithDtype(tensor.Float64)).Weight.Value)
	for i, x := range double {
		if float64(float32(x)) != first[i] {
			t.Errorf("element %d is %v in float32, want %v rounded", i, first[i], x)
		}
	}
}

// What is made before, and what else a layer has, changes nothing.
func TestStartIsIndependentOfOrder(t *testing.T) {
	build := func(name string) []float64 {
		if name == "conv" {
			return doubles(NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, WithSeed(3), WithName(name)).Parts.Weight.Value)
		}
		return doubles(NewLinear(LinearConfig{In: 6, Out: 4}, WithSeed(3), WithName(name)).Weight.Value)
	}
	a, b := build("linear"), build("conv")
	b2, a2 := build("conv"), build("linear")
	if !slices.Equal(a, a2) || !slices.Equal(b, b2) {
		t.Error("the order in which layers are made changes their weights")
	}
	with := NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, WithSeed(3), WithName("conv"))
	without := NewConv1D(Conv1DConfig{Channels: 6, Width: 4, NoBias: true}, WithSeed(3), WithName("conv"))
	if !slices.Equal(doubles(with.Parts.Weight.Value), doubles(without.Parts.Weight.Value)) {
		t.Error("a bias changes the weight's start")
	}
}

// WithZeros draws nothing.
func TestZeros(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		for _, x := range doubles(NewLinear(LinearConfig{In: 3, Out: 4}, WithZeros(), WithDtype(dt)).Weight.Value) {
			if x != 0 {
				t.Fatalf("a weight of %v starts at %v, want 0", dt, x)
			}
		}
	}
}
