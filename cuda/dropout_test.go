package cuda

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

// The mask has the bits of the host's, for random parameters, in place too.
func TestDropout(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(40, 40))
	for trial := range 30 {
		n := 1 + r.IntN(3000)
		p := Dropout{Rate: []float64{0, 0.1, 0.5, 0.999, 1 - 1e-15}[r.IntN(5)], Seed: r.Uint64(), Layer: r.Uint32(), Each: []int{1, 1, 2, 7, n}[r.IntN(5)]}
		step := int32(r.IntN(5) - 1)
		if trial == 0 {
			step = math.MaxInt32
		}
		x, want := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		kernel.Drop(kernel.Dropout{Rate: p.Rate, Seed: p.Seed, Layer: p.Layer, Step: int(step), Each: p.Each}, want, x)
		at, on, y := putInts(t, s, []int32{step}), putInts(t, s, x), blank[float32](t, s, n)
		do(t, p.Apply(s, on, at, y), p.Apply(s, on, at, on))
		for _, a := range []Array[float32]{y, on} {
			got := make([]float32, n)
			do(t, a.CopyTo(s, got))
			if !slices.Equal(got, want) {
				t.Errorf("trial %d: %+v, step %d: the result differs from the host's", trial, p, step)
			}
		}
	}
	nan, want := make([]float64, 40), make([]float64, 40)
	for i := range nan {
		nan[i] = math.NaN()
	}
	on := put[float32](t, s, nan)
	do(t, Dropout{Rate: 0.5, Each: 1}.Apply(s, on, putInts(t, s, []int32{3}), on))
	kernel.Drop(kernel.Dropout{Rate: 0.5, Step: 3, Each: 1}, want, nan)
	for i, v := range get(t, s, on) {
		if (v == 0) != (want[i] == 0) {
			t.Errorf("a NaN became %v at %d, want %v", v, i, want[i])
		}
	}
}

// The mask of a captured call is that of the step in memory.
func TestDropoutCaptured(t *testing.T) {
	s := open(t)
	const n = 100
	p := Dropout{Rate: 0.5, Seed: 3, Layer: 4, Each: 1}
	x, step, y := filled(t, s, n, 1), putInts(t, s, []int32{0}), blank[float32](t, s, n)
	do(t, p.Apply(s, x, step, y))
	c, err := s.Capture(func() error { return p.Apply(s, x, step, y) })
	do(t, err)
	for i := range 3 {
		do(t, step.CopyFrom(s, []int32{int32(i)}), c.Launch(s))
		want := make([]float64, n)
		kernel.Drop(kernel.Dropout{Rate: 0.5, Seed: 3, Layer: 4, Step: i, Each: 1}, want, slices.Repeat([]float64{1}, n))
		if !slices.Equal(get(t, s, y), want) {
			t.Errorf("step %d: the mask is another one", i)
		}
	}
}

func TestDropoutErrors(t *testing.T) {
	s := &Stream{}
	some, step := Array[float32]{stream: s, n: 8}, Array[int32]{stream: s, n: 1}
	for want, err := range map[string]error{
		"Rate is 1, want at least 0 and below 1":   Dropout{Rate: 1, Each: 1}.Apply(s, some, step, some),
		"Rate is NaN, want at least 0":             Dropout{Rate: math.NaN(), Each: 1}.Apply(s, some, step, some),
		"Rate is -0.1, want at least 0":            Dropout{Rate: -0.1, Each: 1}.Apply(s, some, step, some),
		"Each is 0, want at least 1":               Dropout{}.Apply(s, some, step, some),
		"x is absent":                              Dropout{Each: 1}.Apply(s, Array[float32]{}, step, some),
		"step has 0 elements, want 1":              Dropout{Each: 1}.Apply(s, some, Array[int32]{}, some),
		"y has 7 elements, want 8":                 Dropout{Each: 1}.Apply(s, some, step, some.Slice(0, 7)),
		"mean pooling: Length is -1":               (&MeanPool{Length: -1}).Forward(s, some, some),
		"mean pooling: x has 8 elements, want 12":  (&MeanPool{Batch: 2, Length: 3, Channels: 2}).Forward(s, some, some),
		"mean pooling: y has 0 elements, want 4":   (&MeanPool{Batch: 2, Length: 2, Channels: 2}).Forward(s, some, Array[float32]{}),
		"mean pooling: dx has 0 elements, want 8":  (&MeanPool{Batch: 2, Length: 2, Channels: 2}).Backward(s, some, Array[float32]{}),
		"mean pooling: Mask has 1 elements, want ": (&MeanPool{Batch: 2, Length: 2, Channels: 2, Mask: of[uint8](some.Slice(0, 1))}).Backward(s, some, some),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}

// TestMeanPool compares the mean and its gradient with the host's, for random sizes and masks.
func TestMeanPool(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(41, 41))
	for trial := range 20 {
		h := &kernel.MeanPool{Batch: 1 + r.IntN(4), Length: []int{1, 5, poolSteps, 3*poolSteps + 1}[r.IntN(4)], Channels: 1 + r.IntN(150)}
		p := &MeanPool{Batch: h.Batch, Length: h.Length, Channels: h.Channels}
		x, dy := numbers[float32](r, h.Batch*h.Length*h.Channels, 1), numbers[float32](r, h.Batch*h.Channels, 1)
		if r.IntN(3) > 0 {
			h.Mask = make([]bool, h.Batch*h.Length)
			mask := make([]uint8, len(h.Mask))
			for i := range mask {
				if trial%2 == 0 && i/h.Length == 0 || r.IntN(2) == 0 { // without a mark in some sequences
					x[i*h.Channels] = math.NaN()
					continue
				}
				h.Mask[i], mask[i] = true, uint8(1+r.IntN(255))
			}
			p.Mask = putInts(t, s, mask)
		}
		y, dx := make([]float64, len(dy)), make([]float64, len(x))
		kernel.MeanPoolForward(h, y, x)
		kernel.MeanPoolBackward(h, dx, dy)
		ay, adx := blank[float32](t, s, len(y)), blank[float32](t, s, len(dx))
		do(t, p.Forward(s, put[float32](t, s, x), ay), p.Backward(s, put[float32](t, s, dy), adx))
		near(t, "y", get(t, s, ay), y, 1e-7)
		near(t, "dx", get(t, s, adx), dx, 1e-7)
	}
	none := &MeanPool{Batch: 2, Channels: 3}
	y := blank[float32](t, s, 6)
	do(t, none.Forward(s, Array[float32]{}, y), none.Backward(s, y, Array[float32]{}))
	near(t, "the mean of no step", get(t, s, y), make([]float64, 6), 0)
}

func BenchmarkDropout(b *testing.B) {
	s := open(b)
	const n = benchRows * benchWidth
	x, step := zeros[float32](b, s, n), putInts(b, s, []int32{1})
	measure(b, s, 8*n, func() error { return Dropout{Rate: 0.1, Seed: 1, Each: 1}.Apply(s, x, step, x) })
}

func BenchmarkMeanPool(b *testing.B) {
	s := open(b)
	p := &MeanPool{Batch: 8, Length: benchRows / 8, Channels: benchWidth}
	x, y := zeros[float32](b, s, benchRows*benchWidth), zeros[float32](b, s, 8*benchWidth)
	b.Run("forward", func(b *testing.B) { measure(b, s, 4*benchRows*benchWidth, func() error { return p.Forward(s, x, y) }) })
	b.Run("backward", func(b *testing.B) { measure(b, s, 4*benchRows*benchWidth, func() error { return p.Backward(s, y, x) }) })
}
