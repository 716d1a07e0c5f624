package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
)

// vectorFunctions lists the elementwise functions of x, their definitions in float64, and the largest error allowed in float32. The error is
// either in units in the last place (for a denormal result, of the smallest float32) or absolute: a result must be within one of the two
// bounds. A derivative that is zero at another x than 0 has only an absolute bound.
var vectorFunctions = []struct {
	name     string
	of       func(y, x []float32)
	want     func(x float64) float64
	ulps     float64
	absolute float64
}{
	{"negExp", negExpOf[float32], func(x float64) float64 { return -math.Exp(x) }, 2, 0},
	{"sigmoid", sigmoidOf[float32], sigmoid64, 3, 3e-38},
	{"silu", siluOf[float32], func(x float64) float64 { return x * sigmoid64(x) }, 3, 3e-37},
	{"silu slope", slopeOf(siluBack[float32]), func(x float64) float64 {
		s := sigmoid64(x)
		return s * (1 + x*sigmoid64(-x))
	}, 0, 1e-6},
	{"negExp slope", slopeOf(negExpBack[float32]), func(x float64) float64 { return -math.Exp(x) }, 2, 0},
	{"scan's softplus", scanSoftplus, softplus64, 3, 0},
	{"scan's softplus slope", scanSoftplusSlope, sigmoid64, 3, 3e-38},
}

func sigmoid64(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

func softplus64(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

// stepOf returns a scan of one step in which Δ is softplus(x), and its output is Δ. There is a channel for each x.
func stepOf(x []float32) *Scan[float32] {
	one := Projection[float32]{Data: []float32{1}, Groups: 1}
	s := &Scan[float32]{Batch: 1, Length: 1, Channels: len(x), State: 1, Delta: append([]float32(nil), x...), U: like(x), A: like(x), B: one, C: one, Softplus: true}
	for i := range x {
		s.U[i], s.A[i] = 1, -1
	}
	return s
}

func scanSoftplus(y, x []float32) {
	if len(x) > 0 {
		stepOf(x).Forward(y, nil)
	}
}

func scanSoftplusSlope(y, x []float32) {
	if len(x) > 0 {
		s := stepOf(x)
		grad := s.newGrad()
		s.Backward(s.U, nil, grad)
		copy(y, grad.Delta)
	}
}

// slopeOf turns a backward function into a function of x: the derivative.
func slopeOf(back func(dx, dy, x []float32)) func(y, x []float32) {
	return func(y, x []float32) {
		dy := make([]float32, len(x))
		for i := range dy {
			dy[i] = 1
		}
		back(y, dy, x)
	}
}

// errorOf returns the error of got in units in the last place of float32(want), and the absolute error.
func errorOf(got float32, want float64) (ulps, absolute float64) {
	w := math.Abs(want)
	if float32(want) == got || math.IsNaN(want) && got != got {
		absolute = math.Abs(float64(got) - want)
		if math.IsInf(want, 0) || got != got || w > math.MaxFloat32 {
			return 0, 0
		}
	} else {
		absolute = math.Abs(float64(got) - want)
	}
	_, e := math.Frexp(w)
	return absolute / math.Ldexp(1, max(e-24, -149)), absolute
}

// Every 40009th float32, of all there are.
func TestVectorFunctions(t *testing.T) {
	const step = 40009
	eachLevel(t, func(t *testing.T) {
		var x []float32
		for b := uint64(0); b < 1<<32; b += step {
			x = append(x, math.Float32frombits(uint32(b)))
		}
		for v := float32(-110); v < 110; v += 0.0017 {
			x = append(x, v)
		}
		x = append(x, 0, float32(math.Copysign(0, -1)), 88.72283, 88.72284, 88.9, 89, 90, -87.33655, -87.4, -103.97, -103.98, -104.5, -106)
		y := make([]float32, len(x))
		for _, f := range vectorFunctions {
			f.of(y, x)
			worst, at, worstAbsolute := 0.0, float32(0), 0.0
			for i, v := range x {
				want := f.want(float64(v))
				if math.IsInf(float64(v), 0) {
					continue
				}
				ulps, absolute := errorOf(y[i], want)
				if worst < ulps && absolute > f.absolute {
					worst, at = ulps, v
				}
				worstAbsolute = max(worstAbsolute, absolute)
				if !(ulps <= f.ulps || absolute <= f.absolute) {
					t.Fatalf("%s(%v) = %v, want %v: %.3g units in the last place", f.name, v, y[i], want, ulps)
				}
			}
			t.Logf("%s: %.3f units in the last place, at %v; absolute %.3g", f.name, worst, at, worstAbsolute)
		}
	})
}

func TestVectorFunctionsAtInfinity(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachLevel(t, func(t *testing.T) {
		for i, want := range [][2]float32{ // of -Inf and Inf
			{0, -inf}, {0, 1}, {nan, inf}, {nan, nan}, {0, -inf}, {0, inf}, {0, 1},
		} {
			f := vectorFunctions[i]
			y := make([]float32, 3)
			f.of(y, []float32{-inf, inf, nan})
			for j, w := range append(want[:], nan) {
				if y[j] != w && (y[j] == y[j] || w == w) {
					t.Errorf("%s of -Inf, Inf, NaN = %v, want %v", f.name, y, append(want[:], nan))
				}
			}
		}
	})
}

// window returns n elements of a wider slice, at any alignment, and a function that fails the test if an element around them was written.
func window(t *rapid.T, r *rand.Rand, n int, name string) (v []float32, intact func()) {
	const canary = 1234.5
	before := rapid.IntRange(0, 17).Draw(t, name+" offset")
	wide := make([]float32, before+n+40)
	for i := range wide {
		wide[i] = canary
	}
	v = wide[before : before+n : before+n]
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v, func() {
		for i, x := range wide {
			if (i < before || i >= before+n) && x != canary {
				t.Fatalf("%s: element %d of %d was written", name, i-before, n)
			}
		}
	}
}

// Every function computes for each element the same as for the element alone, at any length and alignment, also if it writes over its
// operand. Nothing else is written.
func TestVectorAnyLength(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.OneOf(rapid.IntRange(0, 70), rapid.IntRange(0, 300)).Draw(t, "n")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			a, aIntact := window(t, r, n, "a")
			b, bIntact := window(t, r, n, "b")
			c, cIntact := window(t, r, n, "c")
			check := func(name string, all, each func(c, a, b []float32)) {
				before, want := append([]float32(nil), c...), append([]float32(nil), c...)
				for i := range n {
					each(want[i:i+1], a[i:i+1], b[i:i+1])
				}
				copy(c, before)
				all(c, a, b)
				for i := range want {
					if c[i] != want[i] {
						t.Fatalf("%s: element %d of %d is %v, alone %v", name, i, n, c[i], want[i])
					}
				}
				aIntact()
				bIntact()
				cIntact()
			}
			for _, f := range vectorFunctions {
				of := func(c, a, _ []float32) { f.of(c, a) }
				check(f.name, of, of)
				check(f.name+" in place", func(c, a, b []float32) { copy(c, a); f.of(c, c) }, of)
			}
			for name, back := range map[string]func(dx, dy, x []float32){
				"negExpBack": negExpBack[float32], "siluBack": siluBack[float32],
				"sumOf": sumOf[float32], "addProduct": addProduct[float32],
				"axpy":    func(c, a, _ []float32) { axpy(c, a, 1.25) },
				"scaleOf": func(c, a, _ []float32) { scaleOf(c, a, 1.25) },
			} {
				check(name, back, back)
			}
		})
	})
}

// The functions of two operands equal their definition.
func TestVectorArithmetic(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		a, b := []float32{1, -2, 3, 0.5, 7}, []float32{10, 20, -30, 40, 0}
		for _, test := range []struct {
			name string
			of   func(y []float32)
			want []float32
		}{
			{"sumOf", func(y []float32) { sumOf(y, a, b) }, []float32{11, 18, -27, 40.5, 7}},
			{"addProduct", func(y []float32) { addProduct(y, a, b) }, []float32{11, -39, -89, 21, 1}},
			{"axpy", func(y []float32) { axpy(y, b, 2) }, []float32{21, 41, -59, 81, 1}},
			{"scaleOf", func(y []float32) { scaleOf(y, b, 2) }, []float32{20, 40, -60, 80, 0}},
			{"negExpBack", func(y []float32) { negExpBack(y, a, make([]float32, 5)) }, []float32{-1, 2, -3, -0.5, -7}},
			{"siluBack", func(y []float32) { siluBack(y, a, make([]float32, 5)) }, []float32{0.5, -1, 1.5, 0.25, 3.5}},
		} {
			y := []float32{1, 1, 1, 1, 1}
			test.of(y)
			if fmt.Sprint(y) != fmt.Sprint(test.want) {
				t.Errorf("%s: %v, want %v", test.name, y, test.want)
			}
		}
	})
}

func BenchmarkVector(b *testing.B) {
	x := narrow(normals(rand.New(rand.NewPCG(1, 1)), piece))
	y := like(x)
	run := func(name string, bytes int, of func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(bytes * len(x)))
			benchtest.Processors(b)
			for b.Loop() {
				of()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(x)), "ns/element")
		})
	}
	run("copy", 8, func() { copy(y, x) })
	for _, f := range vectorFunctions[:3] {
		run(f.name, 8, func() { f.of(y, x) })
	}
	run("siluBack", 12, func() { siluBack(y, x, x) })
	run("sum", 12, func() { sumOf(y, x, x) })
	run("axpy", 12, func() { axpy(y, x, 0) })
}
