package kernel

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

// At each level, the sum of squares equals a plain sum in float64 to within rounding. It is the same bit for bit for any number of
// processors.
func TestSquareSum(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(4, 1))
	for _, n := range []int{0, 1, 15, 17, piece - 1, piece, 3*piece + 5} {
		x := make([]float32, n)
		want := 0.0
		for i := range x {
			x[i] = float32(r.NormFloat64())
			want += float64(x[i]) * float64(x[i])
		}
		eachLevel(t, func(t *testing.T) {
			runtime.GOMAXPROCS(1)
			got := SquareSum(x)
			if math.Abs(got-want) > 1e-12*want {
				t.Errorf("%d numbers: %v, want %v", n, got, want)
			}
			for _, procs := range []int{2, 5} {
				runtime.GOMAXPROCS(procs)
				if again := SquareSum(x); again != got {
					t.Errorf("%d numbers, GOMAXPROCS %d: %v, want %v", n, procs, again, got)
				}
			}
		})
	}
}

// A step is the same bit for bit at each level, for any number of processors, and for a tensor cut in two at any place. It clears
// the gradient.
func TestAdamWCuts(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(4, 2))
	const n = 2*piece + 37
	draw := func() []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	w, g, m, v := draw(), draw(), draw(), draw()
	for i := range v {
		v[i] *= v[i]
	}
	w[5], g[5], m[5], v[5] = 1e-38, 1e-30, 1e-42, 1e-44 // w, m and v are denormal, and g² underflows
	w[6], g[6], m[6], v[6] = 0, 0, 0, 0
	a := AdamW[float32]{Scale: 0.7, Beta1: 0.9, Rest1: 0.1, Beta2: 0.999, Rest2: 0.001, Rate: 0.01, Root: 1.5, Eps: 1e-8, Keep: 0.999}
	step := func(cut int) [4][]float32 {
		all := [4][]float32{slices.Clone(w), slices.Clone(g), slices.Clone(m), slices.Clone(v)}
		a.Step(all[0][:cut], all[1][:cut], all[2][:cut], all[3][:cut])
		a.Step(all[0][cut:], all[1][cut:], all[2][cut:], all[3][cut:])
		return all
	}
	plain := [4][]float32{slices.Clone(w), slices.Clone(g), slices.Clone(m), slices.Clone(v)}
	a.loop(plain[0], plain[1], plain[2], plain[3])
	clear(plain[1])
	eachLevel(t, func(t *testing.T) {
		runtime.GOMAXPROCS(1)
		want := step(0)
		for i := range want {
			if !slices.Equal(want[i], plain[i]) {
				t.Fatalf("array %d differs from the plain loop's", i)
			}
		}
		if slices.ContainsFunc(want[1], func(x float32) bool { return x != 0 }) {
			t.Error("the gradient is not cleared")
		}
		stays := [4][]float32{slices.Clone(w), slices.Clone(g), slices.Clone(m), slices.Clone(v)}
		a.Steps([]AdamWPart[float32]{{Keep: a.Keep, Stays: true, W: stays[0], G: stays[1], M: stays[2], V: stays[3]}})
		for i := range want {
			if i == 1 && !slices.Equal(stays[i], g) || i != 1 && !slices.Equal(stays[i], want[i]) {
				t.Errorf("array %d differs where the gradient stays", i)
			}
		}
		for _, procs := range []int{1, 2, 5} {
			runtime.GOMAXPROCS(procs)
			for _, cut := range []int{0, 1, 13, piece, n - 3, n} {
				got := step(cut)
				for i := range got {
					if !slices.Equal(got[i], want[i]) {
						t.Fatalf("GOMAXPROCS %d, cut at %d: array %d differs", procs, cut, i)
					}
				}
			}
		}
	})
}
