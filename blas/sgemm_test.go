package blas

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/cpu"
)

func TestSgemm(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			x := drawCall(t)
			want, magnitude := x.reference()
			if x.beta == 0 {
				for i := range x.c.data {
					if i%x.ldc < x.n {
						x.c.data[i] = float32(math.NaN()) // must not be read
					}
				}
			}
			a, b, c := x.a.clone(), x.b.clone(), x.c.clone()
			x.run(Implementation{}.Sgemm)
			if err := x.check(x.c.data, want, magnitude); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(a.all, x.a.all) || !slices.Equal(b.all, x.b.all) {
				t.Fatalf("%v: an operand was changed", x)
			}
			if !x.c.intact() || !x.gaps(c.data, x.c.data) {
				t.Fatalf("%v: memory outside of C was changed", x)
			}
		})
	})
}

// NaN and infinities come through as in float64, and only to the elements whose sums they are in. (gonum leaves out terms in
// which A is zero.)
func TestSgemmSpecialValues(t *testing.T) {
	special := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 0, 1e-44, 1e-30, 1e15}
	eachLevel(t, func(t *testing.T) {
		if level == cpu.Generic {
			t.Skip("gonum's product is another")
		}
		rapid.Check(t, func(t *rapid.T) {
			x := drawCall(t)
			x.alpha = 1
			r := newFill(rapid.Uint64().Draw(t, "places"))
			for _, v := range [][]float32{x.a.data, x.b.data} {
				for range rapid.IntRange(0, 3).Draw(t, "how many") {
					v[r.IntN(len(v))] = special[r.IntN(len(special))]
				}
			}
			want, magnitude := x.reference()
			for i := range magnitude {
				magnitude[i] += float64(x.k) * 0x1p-126 // what denormal products lose
			}
			x.run(Implementation{}.Sgemm)
			if err := x.check(x.c.data, want, magnitude); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// With alpha 0, and with nothing to sum, A and B are not read: C is beta·C, whatever numbers they hold.
func TestSgemmWithoutProduct(t *testing.T) {
	nan := float32(math.NaN())
	eachLevel(t, func(t *testing.T) {
		for _, beta := range []float32{0, 1, -0.3} {
			for _, k := range []int{0, 1, 40} {
				for _, size := range [][2]int{{1, 1}, {1, 30}, {30, 1}, {5, 7}, {40, 50}} {
					for _, tA := range transposes {
						for _, tB := range transposes {
							m, n := size[0], size[1]
							a, b, c, want := make([]float32, m*max(k, 1)), make([]float32, max(k, 1)*n), normal(m*n), make([]float32, m*n)
							alpha := float32(0)
							if k == 0 {
								alpha = 1
							}
							for _, v := range [][]float32{a, b} {
								for i := range v {
									v[i] = nan
								}
							}
							for i := range c {
								if want[i] = beta * c[i]; beta == 0 {
									c[i] = nan
								}
							}
							_, lda, _ := stored(tA, m, k)
							_, ldb, _ := stored(tB, k, n)
							Implementation{}.Sgemm(tA, tB, m, n, k, alpha, a, max(lda, 1), b, max(ldb, 1), beta, c, n)
							if !slices.Equal(c, want) {
								t.Fatalf("%c%c, (%d, %d) by (%d, %d), alpha %v, beta %v: C is %v, want %v", tA, tB, m, k, k, n, alpha, beta, c, want)
							}
						}
					}
				}
			}
			for _, tA := range transposes {
				const m, n = 9, 20
				in, out := n, m
				if tA != blas.NoTrans {
					in, out = m, n
				}
				x, y, want := make([]float32, in), normal(out), make([]float32, out)
				x[0] = nan
				for i := range y {
					if want[i] = beta * y[i]; beta == 0 {
						y[i] = nan
					}
				}
				Implementation{}.Sgemv(tA, m, n, 0, normal(m*n), n, x, 1, beta, y, 1)
				if !slices.Equal(y, want) {
					t.Fatalf("Sgemv, %c, alpha 0, beta %v: y is %v, want %v", tA, beta, y, want)
				}
			}
		}
	})
}

// Products of many blocks and long sums, too large for random sizes.
func TestSgemmLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("long sums in float64")
	}
	for _, tB := range []blas.Transpose{blas.NoTrans, blas.Trans} {
		x := call{tA: blas.NoTrans, tB: tB, m: 26, n: 1700, k: 4200, alpha: 1, beta: 1, lda: 4200, ldb: 1700, ldc: 1700}
		if tB == blas.Trans {
			x.ldb = x.k
		}
		x.a, x.b, x.c = newMatrix(x.m*x.k, 0), newMatrix(x.n*x.k, 0), newMatrix(x.m*x.n, 0)
		for i, v := range []matrix{x.a, x.b, x.c} {
			newFill(uint64(i)).normal(v.data)
		}
		want, magnitude := x.reference()
		c := x.c.clone()
		eachLevel(t, func(t *testing.T) {
			x.c = c.clone()
			x.run(Implementation{}.Sgemm)
			if err := x.check(x.c.data, want, magnitude); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSgemmDeterministic(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	eachLevel(t, func(t *testing.T) {
		for _, x := range []call{
			{tA: blas.NoTrans, tB: blas.Trans, m: 1, n: 3072, k: 768},      // rows of B as they lie
			{tA: blas.NoTrans, tB: blas.Trans, m: 13, n: 2011, k: 333},     //
			{tA: blas.NoTrans, tB: blas.NoTrans, m: 2048, n: 1, k: 1001},   // a column
			{tA: blas.NoTrans, tB: blas.NoTrans, m: 5, n: 2001, k: 999},    // B not packed
			{tA: blas.NoTrans, tB: blas.NoTrans, m: 301, n: 407, k: 1203},  // packed
			{tA: blas.Trans, tB: blas.NoTrans, m: 807, n: 401, k: 203},     //
			{tA: blas.Trans, tB: blas.Trans, m: 107, n: 1601, k: 3001},     // packed strips of A, long sums
			{tA: blas.NoTrans, tB: blas.NoTrans, m: 100, n: 1600, k: 4100}, // long sums
			{tA: blas.NoTrans, tB: blas.Trans, m: 1030, n: 1200, k: 90},    // several blocks of rows
			{tA: blas.NoTrans, tB: blas.NoTrans, m: 517, n: 48, k: 801},    // one panel
		} {
			a, b, before := normal(x.m*x.k), normal(x.k*x.n), normal(x.m*x.n)
			var first []float32
			for _, procs := range []int{1, 2, 3, 5, 8, 16} {
				runtime.GOMAXPROCS(procs)
				c := slices.Clone(before)
				_, lda, _ := stored(x.tA, x.m, x.k)
				_, ldb, _ := stored(x.tB, x.k, x.n)
				Implementation{}.Sgemm(x.tA, x.tB, x.m, x.n, x.k, 1, a, lda, b, ldb, 0.5, c, x.n)
				if first == nil {
					first = c
				}
				if !slices.Equal(first, c) {
					t.Errorf("%v: %d processors give another result than one", x, procs)
				}
			}
		}
	})
}

// Goroutines may share the implementation.
func TestSgemmConcurrent(t *testing.T) {
	const n = 200
	a, b, want := normal(n*n), normal(n*n), make([]float32, n*n)
	Implementation{}.Sgemm(blas.Trans, blas.Trans, n, n, n, 1, a, n, b, n, 0, want, n)
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for range 10 {
				c := make([]float32, n*n)
				Implementation{}.Sgemm(blas.Trans, blas.Trans, n, n, n, 1, a, n, b, n, 0, c, n)
				if !slices.Equal(want, c) {
					t.Fatal("another result beside other products")
				}
			}
		})
	}
}

// Bad arguments are what they are to gonum.
func TestPanics(t *testing.T) {
	panics := func(f func()) (what any) {
		defer func() { what = recover() }()
		f()
		return nil
	}
	anyTranspose := rapid.SampledFrom([]blas.Transpose{blas.NoTrans, blas.Trans, blas.ConjTrans, 0, 'x'})
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			tA, tB := anyTranspose.Draw(t, "tA"), anyTranspose.Draw(t, "tB")
			in := func(name string, from, to int) int { return rapid.IntRange(from, to).Draw(t, name) }
			m, n, k := in("m", -1, 3), in("n", -1, 3), in("k", -1, 3)
			lda, ldb, ldc := in("lda", -1, 4), in("ldb", -1, 4), in("ldc", -1, 4)
			la, lb, lc := in("len(a)", 0, 12), in("len(b)", 0, 12), in("len(c)", 0, 12)
			alpha, beta := float32(in("alpha", 0, 1)), float32(in("beta", 0, 1))
			run := func(f gemmFunc) any {
				return panics(func() {
					f(tA, tB, m, n, k, alpha, make([]float32, la), lda, make([]float32, lb), ldb, beta, make([]float32, lc), ldc)
				})
			}
			if got, want := run(Implementation{}.Sgemm), run(gonum.Implementation{}.Sgemm); got != want {
				t.Fatalf("Sgemm: %v, gonum: %v", got, want)
			}

			incX, incY := in("incX", -2, 2), in("incY", -2, 2)
			gemv := func(f func(tA blas.Transpose, m, n int, alpha float32, a []float32, lda int, x []float32, incX int, beta float32, y []float32, incY int)) any {
				return panics(func() {
					f(tA, m, n, alpha, make([]float32, la), lda, make([]float32, lb), incX, beta, make([]float32, lc), incY)
				})
			}
			if got, want := gemv(Implementation{}.Sgemv), gemv(gonum.Implementation{}.Sgemv); got != want {
				t.Fatalf("Sgemv: %v, gonum: %v", got, want)
			}
		})
	})
}

func TestSgemv(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			x := drawCall(t)
			// The matrix is x.a as it lies; the product with a vector is one with a matrix of one column.
			rows, cols, _ := stored(x.tA, x.m, x.k)
			x.tB, x.n, x.ldb, x.ldc = blas.NoTrans, 1, 1, 1
			incX, incY := rapid.SampledFrom([]int{1, 1, 2}).Draw(t, "incX"), rapid.SampledFrom([]int{1, 1, 3}).Draw(t, "incY")
			x.b, x.c = newMatrix(x.k, 3), newMatrix(x.m, 5)
			fill := newFill(rapid.Uint64().Draw(t, "vectors"))
			fill.normal(x.b.data)
			fill.normal(x.c.data)
			want, magnitude := x.reference()
			v, y := spread(x.b.data, incX), spread(x.c.data, incY)
			Implementation{}.Sgemv(x.tA, rows, cols, x.alpha, x.a.data, x.lda, v.data, incX, x.beta, y.data, incY)
			for i := range x.c.data {
				x.c.data[i] = y.data[i*incY]
			}
			if err := x.check(x.c.data, want, magnitude); err != nil {
				t.Fatal(err)
			}
			if !y.intact() || !v.intact() || !x.a.intact() {
				t.Fatal("memory outside of y was changed")
			}
		})
	})
}

// spread returns v with a distance between its elements.
func spread(v []float32, inc int) matrix {
	m := newMatrix((len(v)-1)*inc+1, 2)
	for i, x := range v {
		m.data[i*inc] = x
	}
	return m
}

// poolsForget is set where sync.Pool drops what it is given now and then.
var poolsForget bool

func TestNoGarbage(t *testing.T) {
	if poolsForget {
		t.Skip("the race detector makes pools forget at random")
	}
	if level == cpu.Generic {
		t.Skip("gonum's product is another")
	}
	// On several processors it is chance how many of them a product uses, and so how many spaces it has needed before.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, c := normal(300*300), make([]float32, 300*300)
	for _, m := range []int{1, 8, 300} {
		product := func() {
			Implementation{}.Sgemm(blas.NoTrans, blas.Trans, m, 300, 300, 1, a, 300, a, 300, 0, c, 300)
		}
		// Another test's garbage collection may empty the pool of jobs, hence an average below one.
		if n := testing.AllocsPerRun(20, product); n >= 1 {
			t.Errorf("%d rows: %v allocations", m, n)
		}
		// What is packed into is kept over collections, between which a training step may use it once.
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&before)
		product()
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<10 {
			t.Errorf("%d rows: %d bytes after garbage collections", m, n)
		}
	}
}
