package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// float16 returns random bits of a float16 with one of some exponents, 0 for a denormal number, and its value.
func float16(r *rand.Rand, exponents []int) (bits uint16, x float64) {
	m, e, sign := r.IntN(1024), exponents[r.IntN(len(exponents))], r.IntN(2)
	x = math.Ldexp(float64(m), -24)
	if e > 0 {
		x = math.Ldexp(1+float64(m)/1024, e-15)
	}
	return uint16(sign<<15 | e<<10 | m), x * float64(1-2*sign)
}

// randomWeights returns a matrix on the device whose numbers, or scales, have these exponents of float16, and its numbers.
func randomWeights(t testing.TB, s *Stream, r *rand.Rand, typ WeightType, out, in int, exponents ...int) (w *Weights, wide []float64) {
	t.Helper()
	var data, scales []byte
	var scale float64
	for i := range out * in {
		switch typ {
		case WeightInt8:
			if i%32 == 0 {
				var bits uint16
				bits, scale = float16(r, exponents)
				scales = binary.LittleEndian.AppendUint16(scales, bits)
			}
			q := int8([]int{127, -127, -128, r.IntN(256) - 128}[min(r.IntN(12), 3)])
			data, wide = append(data, byte(q)), append(wide, scale*float64(q))
		case WeightF16:
			bits, x := float16(r, exponents)
			data, wide = binary.LittleEndian.AppendUint16(data, bits), append(wide, x)
		default:
			half := ToBFloat16(float32(r.NormFloat64()))
			data, wide = binary.LittleEndian.AppendUint16(data, uint16(half)), append(wide, float64(half.Float32()))
		}
	}
	w, err := NewWeights(s, typ, out, in, append(data, scales...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Free)
	return w, wide
}

var allWeightTypes = []WeightType{WeightInt8, WeightF16, WeightBF16}

// TestWeights compares wide copies and rows of narrow weights with the numbers, and products of them with float64, for few rows and many.
func TestWeights(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(31, 31))
	for trial := range times(24, 6) {
		typ := allWeightTypes[trial%3]
		out, in := 1+r.IntN(70), 32*(1+r.IntN(12))
		if typ != WeightInt8 && trial%2 == 0 {
			in = 1 + r.IntN(50)
		}
		what := fmt.Sprintf("trial %d, %v, (%d, %d): ", trial, typ, out, in)
		w, exact := randomWeights(t, s, r, typ, out, in, 0, 1, 9, 12, 13, 14, 15, 29)
		a, half := blank[float32](t, s, out*in), blank[BFloat16](t, s, out*in)
		do(t, Widen(s, w, a), Widen(s, w, half))
		if got := get(t, s, a); !slices.Equal(got, exact) {
			t.Errorf("%sthe wide copy differs", what)
		}
		for i, got := range get(t, s, half) {
			if want := float64(ToBFloat16(float32(exact[i])).Float32()); got != want {
				t.Fatalf("%selement %d in bfloat16 is %v, want %v", what, i, got, want)
			}
		}
		if !w.Half().Absent() && !slices.Equal(get(t, s, w.Half()), exact) {
			t.Errorf("%sthe array in bfloat16 differs", what)
		}
		ids := []int32{int32(out - 1), 0, -1, int32(out), int32(r.IntN(out))}
		rows, want := blank[float32](t, s, len(ids)*in), make([]float64, len(ids)*in)
		do(t, WeightRows(s, w, putInts(t, s, ids), rows))
		for i, id := range ids {
			if id >= 0 && int(id) < out {
				copy(want[i*in:(i+1)*in], exact[int(id)*in:])
			}
		}
		if !slices.Equal(get(t, s, rows), want) {
			t.Errorf("%srows differ", what)
		}
		for _, batch := range []int{1, 1 + r.IntN(9), weightsMany + r.IntN(30), weightsMost + 3} {
			x := numbers[float32](r, batch*in, 1)
			var bias []float64
			if r.IntN(2) == 0 {
				bias = numbers[float32](r, out, 1)
			}
			for _, p := range []Precision{Strict, BF16} {
				l := &Linear{Rows: batch, In: in, Out: out, Precision: p, X: put[float32](t, s, x), Bias: put[float32](t, s, bias), Narrow: w}
				y := blank[float32](t, s, batch*out)
				do(t, l.Forward(s, y))
				part := 1e-4 // of the sum of magnitudes
				if p == BF16 || typ == WeightBF16 || typ == WeightInt8 && batch > weightsMost {
					part = 1e-2
				}
				for i, got := range get(t, s, y) {
					var sum, size float64
					for k := range in {
						v := x[i/out*in+k] * exact[i%out*in+k]
						sum, size = sum+v, size+math.Abs(v)
					}
					if bias != nil {
						sum += bias[i%out]
					}
					if !(math.Abs(got-sum) <= part*size+1e-6*math.Abs(sum)) {
						t.Fatalf("%sbatch %d in %v, result %d is %v, want %v", what, batch, p, i, got, sum)
					}
				}
			}
		}
	}
}

// TestWeightsStep compares steps with narrow weights with those of the same numbers in float32.
func TestWeightsStep(t *testing.T) {
	s := open(t)
	if s.device.kernels < 80 {
		t.Skip("the kernels of compute capability 7.0 have no steps with narrow weights")
	}
	r := rand.New(rand.NewPCG(37, 37))
	for trial := range times(12, 4) {
		typ, unit := allWeightTypes[trial%2], 32
		if typ == WeightF16 {
			unit = 8
		}
		step := Step[float32]{
			Batch: 1 + r.IntN(10), Model: unit * (1 + r.IntN(1+320/unit)), Channels: unit * (1 + r.IntN(1+128/unit)), State: 1 + r.IntN(20),
			Width: []int{4, 4, 1, 2, 7}[r.IntN(5)], Rank: 1 + r.IntN(40), Eps: 1e-5,
		}
		tolerance := 1e-4
		precision := Strict
		if trial%4 == 2 { // many sequences, in int8; rows longer than the kernels read ahead
			step.Batch, tolerance, precision = weightsMany+r.IntN(60), 1e-2, BF16
			if step.Model = 800; trial > 4 {
				step.Channels = 1568
			}
		}
		up := func(n int) Array[float32] { return put[float32](t, s, numbers[float32](r, n, 0.5)) }
		b, m, c, st := step.Batch, step.Model, step.Channels, step.State
		step.X, step.Norm, step.Conv, step.DtProj, step.DtBias = up(b*m), up(m), up(c*step.Width), up(c*step.Rank), up(c)
		step.ALog, step.D, step.Context, step.Scan = up(c*st), up(c), up(b*(step.Width-1)*c), up(b*c*st)
		if r.IntN(2) == 0 {
			step.InBias, step.ConvBias, step.OutBias = up(2*c), up(c), up(m)
		}
		few := step
		narrow := WeightsStep{Step: &few, Precision: precision}
		for _, w := range []struct {
			narrow  **Weights
			wide    *Array[float32]
			out, in int
		}{{&narrow.In, &step.InProj, 2 * c, m}, {&narrow.X, &step.XProj, step.columns(), c}, {&narrow.Out, &step.OutProj, m, c}} {
			exponents := []int{1, 2, 3} // numbers of at most 0.03
			if typ == WeightF16 {
				exponents = []int{0, 8, 9, 10}
			}
			*w.narrow, _ = randomWeights(t, s, r, typ, w.out, w.in, exponents...)
			*w.wide = blank[float32](t, s, w.out*w.in)
			do(t, Widen(s, *w.narrow, *w.wide))
		}
		what := fmt.Sprintf("trial %d, %v, batch %d, model %d, channels %d, state %d, width %d, rank %d: ", trial, typ, b, m, c, st, step.Width, step.Rank)
		result := func() StepResult {
			return StepResult{blank[float32](t, s, b*m), blank[float32](t, s, b*(step.Width-1)*c), blank[float32](t, s, b*c*st)}
		}
		want, got := result(), result()
		if !narrow.Runs(s) {
			t.Fatalf("%sno kernels", what)
		}
		do(t, step.Forward(s, want.Y, want.Context, want.Scan), narrow.Forward(s, got, true))
		near(t, what+"y", get(t, s, got.Y), get(t, s, want.Y), tolerance)
		near(t, what+"context", get(t, s, got.Context), get(t, s, want.Context), tolerance)
		near(t, what+"state", get(t, s, got.Scan), get(t, s, want.Scan), tolerance)
	}
}

// TestWeightsErrors checks the errors of wrong arguments.
func TestWeightsErrors(t *testing.T) {
	s := open(t)
	w, _ := randomWeights(t, s, rand.New(rand.NewPCG(1, 1)), WeightInt8, 3, 32, 10)
	a := blank[float32](t, s, 96)
	for want, f := range map[string]func() error{
		"the type is 3, want WeightInt8":           func() error { _, err := NewWeights(s, 3, 1, 32, nil); return err },
		"out is 0, want at least 1":                func() error { _, err := NewWeights(s, WeightF16, 0, 32, nil); return err },
		"in is 33, want a multiple of 32 for int8": func() error { _, err := NewWeights(s, WeightInt8, 1, 33, nil); return err },
		"data has 0 bytes, want 34":                func() error { _, err := NewWeights(s, WeightInt8, 1, 32, nil); return err },
		"to has 95 elements, want 96":              func() error { return Widen(s, w, a.Slice(0, 95)) },
		"the weights are missing":                  func() error { return Widen(s, nil, a) },
		"the weights are (3, 32), want (32, 3)":    func() error { return (&Linear{Rows: 1, In: 3, Out: 32, X: a, Narrow: w}).Forward(s, a) },
		"narrow weights have no gradient":          func() error { return (&Linear{Rows: 1, In: 32, Out: 3, X: a, Narrow: w}).Backward(s, a, a, a, a) },
		"want a step for which Runs is true":       func() error { return new(WeightsStep).Forward(s, StepResult{}, true) },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
