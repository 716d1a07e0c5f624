package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// eager makes FP16x3 compute every product in float16, in parts of k and panels of the given sizes, until the test ends.
func eager(t testing.TB, part, panel int) {
	old := []int{fp16x3Least, fp16x3Narrow, fp16x3Part, fp16x3Panel}
	t.Cleanup(func() { fp16x3Least, fp16x3Narrow, fp16x3Part, fp16x3Panel = old[0], old[1], old[2], old[3] })
	fp16x3Least, fp16x3Narrow, fp16x3Part, fp16x3Panel = 0, 0, part, panel
}

// TestFP16x3 compares products with float64: the layouts, parts of k, panels of rows, strides that are no multiples of 16 bytes, long rows.
func TestFP16x3(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(41, 41))
	for i := range 24 {
		eager(t, 1+r.IntN(60), r.IntN(2)<<30)
		m, n, k := 1+r.IntN(300), 1+r.IntN(150), 1+r.IntN(70)
		if i < 8 { // k is more than a warp reads at once
			m, n, k = 11, 7, 2500-300*i
		}
		draw := func(rows, width int, transposed bool) (Matrix[float32], func(i, j int) float64) {
			x := Matrix[float32]{Transposed: transposed}
			lr, lw := x.rowsAndWidth(rows, width)
			x.Stride = lw + r.IntN(5)
			if i%4 > 0 {
				x.Stride = multiple(lw, 4)
			}
			v := numbers[float32](r, lr*x.Stride, 1)
			x.Data = put[float32](t, s, v)
			return x, func(i, j int) float64 {
				if x.Transposed {
					i, j = j, i
				}
				return v[i*x.Stride+j]
			}
		}
		a, atA := draw(m, k, i%3 == 1)
		b, atB := draw(k, n, i%3 == 2)
		alpha, beta, stride := []float32{1, -0.75}[r.IntN(2)], float32(r.IntN(2)), n+r.IntN(4)
		before := numbers[float32](r, m*stride, 1)
		c, again := put[float32](t, s, before), put[float32](t, s, before)
		for _, c := range []Array[float32]{c, again} {
			do(t, MatMulScaled(s, FP16x3, m, n, k, alpha, a, b, beta, matrix(c, stride)))
		}
		want := productOf(m, n, k, alpha, atA, atB, beta, before, stride)
		near(t, fmt.Sprint(a.Transposed, b.Transposed, m, n, k, alpha, beta, fp16x3Part, fp16x3Panel), get(t, s, c), want, 1e-6)
		if !slices.Equal(get(t, s, c), get(t, s, again)) {
			t.Error("two runs differ")
		}
	}
}

// TestFP16x3Extremes multiplies rows and columns of very different magnitudes, down to denormal numbers and zeros, and numbers that are not
// finite, which make all results of their row or column NaN and change no others.
func TestFP16x3Extremes(t *testing.T) {
	s := open(t)
	eager(t, 64, 1<<30)
	r := rand.New(rand.NewPCG(42, 42))
	const m, n, k = 20, 24, 40
	for layout := range 3 {
		a, b := Matrix[float32]{Stride: k, Transposed: layout/2 == 1}, Matrix[float32]{Stride: n, Transposed: layout%2 == 1}
		at, bt := func(i, l int) int { return i*k + l }, func(l, j int) int { return l*n + j }
		if a.Transposed {
			a.Stride, at = m, func(i, l int) int { return l*m + i }
		}
		if b.Transposed {
			b.Stride, bt = k, func(l, j int) int { return j*k + l }
		}
		x, y, mostX, mostY := make([]float64, m*k), make([]float64, k*n), make([]float64, m), make([]float64, n)
		exponents := []float64{0, 30, -30, 38, -38, -42, 8, -8}
		draw := func(e float64) float64 {
			v := math.Pow(10, e) * math.Exp2(-24*r.Float64()*float64(r.IntN(2))) * (2*r.Float64() - 1)
			return float64(float32(v))
		}
		for l := range k {
			for i := range m {
				v := draw(exponents[i%8])
				x[at(i, l)], mostX[i] = v, max(mostX[i], math.Abs(v))
			}
			for j := range n {
				v := draw(-exponents[j%8])
				if j == 9 || -exponents[j%8] > 38 {
					v = 0
				}
				y[bt(l, j)], mostY[j] = v, max(mostY[j], math.Abs(v))
			}
		}
		c := blank[float32](t, s, m*n)
		run := func() []float64 {
			a.Data, b.Data = put[float32](t, s, x), put[float32](t, s, y)
			do(t, MatMul(s, FP16x3, m, n, k, a, b, 0, matrix(c, n)))
			return get(t, s, c)
		}
		got := run()
		for i := range m {
			for j := range n {
				want, size := 0.0, 0.0
				for l := range k {
					p := x[at(i, l)] * y[bt(l, j)]
					want, size = want+p, size+math.Abs(p)
				}
				bound := 0x1p-20*size + 0x1p-38*k*max(mostX[i], 0x1p-112)*mostY[j] + 0x1p-148
				if math.Abs(want) > math.MaxFloat32 {
					want, bound = math.Copysign(math.Inf(1), want), 0
				}
				if g := got[i*n+j]; !(math.Abs(g-want) <= bound || g == want) {
					t.Errorf("layout %d, row %d, column %d: %v, want %v +- %.2g", layout, i, j, g, want, bound)
				}
			}
		}
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			x[at(3, 7)], y[bt(39, 5)] = bad, bad
			for i, g := range run() {
				if in := i/n == 3 || i%n == 5; in != math.IsNaN(g) || !in && g != got[i] {
					t.Errorf("layout %d, %v in row 3 and column 5: row %d, column %d is %v, was %v", layout, bad, i/n, i%n, g, got[i])
				}
			}
			x[at(3, 7)], y[bt(39, 5)] = 0, 0
			got = run()
		}
	}
}

// TestFP16x3Table checks that small and narrow products are computed in float32, and others not, also in a captured graph.
func TestFP16x3Table(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(43, 43))
	const n = 96
	x, y := put[float32](t, s, numbers[float32](r, n*n, 1)), put[float32](t, s, numbers[float32](r, n*n, 1))
	product := func(p Precision) []float64 {
		c := blank[float32](t, s, n*n)
		run := func() error { return MatMul(s, p, n, n, n, matrix(x, n), transposed(y, n), 0, matrix(c, n)) }
		do(t, run())
		first := get(t, s, c)
		captured, err := s.Capture(run)
		do(t, err, c.Fill(s, 0), captured.Launch(s))
		if !slices.Equal(get(t, s, c), first) {
			t.Errorf("%v: captured, the product differs", p)
		}
		do(t, captured.Close())
		return first
	}
	strict := product(Strict)
	for _, c := range []struct {
		least, narrow int
		same          bool
	}{{fp16x3Least, fp16x3Narrow, true}, {n * n * n, n, false}, {n*n*n + 1, n, true}, {n * n * n, n + 1, true}} {
		eager(t, 1024, 1<<28)
		fp16x3Least, fp16x3Narrow = c.least, c.narrow
		if same := slices.Equal(product(FP16x3), strict); same != c.same {
			t.Errorf("from %d multiplications and a size of %d on: the bits of float32 are %v, want %v", c.least, c.narrow, same, c.same)
		}
	}
}
