package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// onlyWide makes all products that the kernels of wide.cuh can compute use them, with tiles of some columns and k in parts of some numbers, until the test ends.
func onlyWide(t testing.TB, columns, each int) {
	before := chooseWide
	t.Cleanup(func() { chooseWide = before })
	chooseWide = func(multiprocessors, m, n, k int, adds bool) (widePlan, bool) {
		return widePlan{columns, each, (k + each - 1) / each}, true
	}
}

// openHopper opens a device with the kernels for compute capability 9.0.
func openHopper(t testing.TB) *Stream {
	s := open(t)
	if !s.device.hopper {
		t.Skip("the device has not the kernels for compute capability 9.0")
	}
	return s
}

// wideLayouts are whether a and b of a product are transposed.
var wideLayouts = [][2]bool{{false, true}, {false, false}, {true, false}}

// TestWide compares products with float64: the layouts, tiles, parts of k, odd sizes.
func TestWide(t *testing.T) {
	s := openHopper(t)
	r := rand.New(rand.NewPCG(51, 51))
	for i := range 36 {
		layout, tile := wideLayouts[i%3], wideTiles[i/3%len(wideTiles)]
		m, n, k := 1+r.IntN(300), 1+r.IntN(400), 1+r.IntN(150)
		switch {
		case i < 6:
			m, n, k = wideRows, tile.columns, wideDeep
		case i < 9: // several tiles for each block of threads
			m, n, k = 1300, 420, 40
		}
		each := (k + wideDeep - 1) / wideDeep * wideDeep
		if r.IntN(2) == 0 {
			each = wideDeep * (1 + r.IntN(3))
		}
		if layout[0] {
			m = multiple(m, 4)
		}
		if !layout[1] {
			n = multiple(n, 4)
		}
		draw := func(rows, width int, transposed bool) (Matrix[float32], func(i, j int) float64) {
			x := Matrix[float32]{Transposed: transposed}
			lr, lw := x.rowsAndWidth(rows, width)
			x.Stride = multiple(lw, 4) + 4*r.IntN(2)
			v := numbers[float32](r, strided(lr, x.Stride, lw), 1) // nothing after the last number
			x.Data = put[float32](t, s, v)
			return x, func(i, j int) float64 {
				if x.Transposed {
					i, j = j, i
				}
				return v[i*x.Stride+j]
			}
		}
		a, atA := draw(m, k, layout[0])
		b, atB := draw(k, n, layout[1])
		beta, stride := []float32{0, 1, -0.5}[r.IntN(3)], n+r.IntN(4)
		before := numbers[float32](r, m*stride, 1)
		if beta == 0 {
			before[0] = math.NaN()
		}
		c, again := put[float32](t, s, before), put[float32](t, s, before)
		t.Run(fmt.Sprint(layout, tile.columns, m, n, k, each, beta), func(t *testing.T) {
			onlyWide(t, tile.columns, each)
			for _, c := range []Array[float32]{c, again} {
				if done, err := wide(s, m, n, k, 1, a, b, beta, matrix(c, stride)); !done || err != nil {
					t.Fatal(done, err)
				}
			}
			if beta == 0 {
				before[0] = 0
			}
			want := productOf(m, n, k, 1, atA, atB, beta, before, stride)
			near(t, "c", get(t, s, c), want, 1e-6)
			if !slices.EqualFunc(get(t, s, c), get(t, s, again), same) {
				t.Error("two runs differ")
			}
		})
	}
}

// TestWideSpecial multiplies numbers that are not finite, the largest ones, which bfloat16 does not hold, very small ones, and zeros of both signs, in all parts of a tile and of k.
func TestWideSpecial(t *testing.T) {
	s := openHopper(t)
	r := rand.New(rand.NewPCG(52, 52))
	special := []float64{math.Inf(1), math.Inf(-1), math.NaN(), math.MaxFloat32, -math.MaxFloat32, 0x1p-126, 0x1p-149, math.Copysign(0, -1), 1e30, -1e-30}
	for i, layout := range append(wideLayouts, wideLayouts...) {
		const m, n, k = 152, 204, 70
		a, b := Matrix[float32]{Stride: 72, Transposed: layout[0]}, Matrix[float32]{Stride: n, Transposed: layout[1]}
		at, bt := func(i, l int) int { return i*72 + l }, func(l, j int) int { return l*n + j }
		if a.Transposed {
			a.Stride, at = m, func(i, l int) int { return l*m + i }
		}
		if b.Transposed {
			b.Stride, bt = 72, func(l, j int) int { return j*72 + l }
		}
		x, y := make([]float64, 72*m), make([]float64, 72*n)
		for l := range k {
			for i := range m {
				x[at(i, l)] = float64(r.IntN(9) - 4)
			}
			for j := range n {
				y[bt(l, j)] = float64(r.IntN(9)-4) * math.Exp2(float64(r.IntN(7)-3))
			}
		}
		for _, v := range special {
			x[at(r.IntN(m), r.IntN(k))], y[bt(r.IntN(k), r.IntN(n))] = v, v
		}
		a.Data, b.Data = put[float32](t, s, x), put[float32](t, s, y)
		each := []int{96, 32}[i/3]
		onlyWide(t, wideTiles[i%len(wideTiles)].columns, each)
		c := blank[float32](t, s, m*n)
		do(t, MatMul(s, Strict, m, n, k, a, b, 0, matrix(c, n)))
		got := get(t, s, c)
		for i := range m {
			for j := range n {
				want, size, all := 0., 0., float32(0)
				for from := 0; from < k; from += each { // in float32, as parts are added
					sum := float32(0)
					for l := from; l < min(from+each, k); l++ {
						p := x[at(i, l)] * y[bt(l, j)]
						want, size, sum = want+p, size+math.Abs(p), float32(float64(sum)+p)
					}
					all += sum
				}
				g := got[i*n+j]
				if f := float64(all); math.IsInf(f, 0) || math.IsNaN(f) {
					if !same(g, f) {
						t.Errorf("%v, row %d, column %d: %v, want %v", layout, i, j, g, f)
					}
				} else if !(math.Abs(g-want) <= 0x1p-21*size+0x1p-130) {
					t.Errorf("%v, row %d, column %d: %v, want %v", layout, i, j, g, want)
				}
			}
		}
	}
}

// TestWideTable checks which products use the kernels: also in a captured graph, and after a change of the operands' numbers.
func TestWideTable(t *testing.T) {
	s := openHopper(t)
	r := rand.New(rand.NewPCG(53, 53))
	onlyWide(t, wideTiles[0].columns, 64)
	const m, n, k = 140, 60, 100
	x, y := put[float32](t, s, numbers[float32](r, 104*m, 1)), put[float32](t, s, numbers[float32](r, 104*n, 1))
	product := func(p Precision) []float64 {
		c := blank[float32](t, s, m*n)
		run := func() error { return MatMul(s, p, m, n, k, matrix(x, 104), transposed(y, 104), 0, matrix(c, n)) }
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
	ours := product(Strict)
	if !slices.Equal(product(FP16x3), ours) {
		t.Error("FP16x3 computes small products in another way than float32")
	}
	s.device.hopper = false
	other := product(Strict)
	s.device.hopper = true
	near(t, "our kernels and cuBLAS", ours, other, 1e-6)
	for what, c := range map[string]struct {
		alpha  float32
		a, b   Matrix[float32]
		isWide bool
	}{
		"along":               {1, matrix(x, 104), transposed(y, 104), true},
		"alpha":               {2, matrix(x, 104), transposed(y, 104), false},
		"rows of 101 numbers": {1, matrix(x, 101), transposed(y, 104), false},
		"columns of 101":      {1, matrix(x, 104), transposed(y, 101), false},
		"a begins at 4 bytes": {1, matrix(part(x, 1), 100), transposed(y, 104), false},
		"b begins at 4 bytes": {1, matrix(x, 104), transposed(part(y, 1), 100), false},
		"across":              {1, matrix(x, 104), matrix(y, 60), true},
		"across, rows of 61":  {1, matrix(x, 104), matrix(y, 61), false},
		"both across":         {1, transposed(x, 144), matrix(y, 60), true},
		"both across, from 4": {1, transposed(part(x, 1), 140), matrix(y, 60), false},
		"both are transposed": {1, transposed(x, m), transposed(y, 104), false},
	} {
		to := blank[float32](t, s, m*n)
		if done, err := wide(s, m, n, k, c.alpha, c.a, c.b, 0, matrix(to, n)); done != c.isWide || err != nil {
			t.Errorf("%s: %v, %v, want %v", what, done, err, c.isWide)
		}
	}
	for _, odd := range [][2]int{{m - 1, n}, {m, n - 1}} {
		if done, err := wide(s, odd[0], odd[1], k, 1, transposed(x, 140), matrix(y, 60), 0, matrix(blank[float32](t, s, m*n), n)); done || err != nil {
			t.Errorf("%v: %v, %v, want false: rows end within 16 bytes", odd, done, err)
		}
	}
}

// TestChooseWide checks that each plan covers k with parts that are not empty.
func TestChooseWide(t *testing.T) {
	r := rand.New(rand.NewPCG(54, 54))
	for range 2000 {
		size := func() int { return 1 + int(math.Exp2(16*r.Float64())) }
		m, n, k := size(), size(), size()
		p, ok := chooseWide(132, m, n, k, r.IntN(2) == 0)
		if !ok {
			continue
		}
		if m <= wideRows/2 {
			t.Errorf("%d x %d x %d: %+v for few rows", m, n, k, p)
		}
		if p.each%wideDeep != 0 || p.parts*p.each < k || (p.parts-1)*p.each >= k || p.parts > mostParts || !slices.ContainsFunc(wideTiles, func(t wideTile) bool { return t.columns == p.columns }) {
			t.Errorf("%d x %d x %d: %+v", m, n, k, p)
		}
	}
}
