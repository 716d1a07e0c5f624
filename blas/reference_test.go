package blas

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas"
	"pgregory.net/rapid"
)

// call is the arguments of Sgemm.
type call struct {
	tA, tB        blas.Transpose
	m, n, k       int
	alpha, beta   float32
	a, b, c       matrix
	lda, ldb, ldc int
}

func (x call) String() string {
	return fmt.Sprintf("%c%c m %d n %d k %d, ld %d %d %d, alpha %v beta %v", x.tA, x.tB, x.m, x.n, x.k, x.lda, x.ldb, x.ldc, x.alpha, x.beta)
}

// matrix is memory with canaries around it.
type matrix struct{ all, data []float32 }

const (
	canaries = 64
	canary   = 12345678
)

// newMatrix returns n elements that begin shift elements past where an allocation of any alignment would.
func newMatrix(n, shift int) matrix {
	all := make([]float32, canaries+shift+n+canaries)
	for i := range all {
		all[i] = canary
	}
	from := canaries + shift
	return matrix{all, all[from : from+n : from+n]}
}

func (m matrix) intact() bool {
	for i, v := range m.all {
		from := cap(m.all) - canaries - len(m.data)
		if (i < from || i >= from+len(m.data)) && v != canary {
			return false
		}
	}
	return true
}

func (m matrix) clone() matrix {
	all := append([]float32(nil), m.all...)
	from := len(all) - canaries - len(m.data)
	return matrix{all[:len(all):len(all)], all[from : from+len(m.data) : from+len(m.data)]}
}

// transposes are all that Sgemm takes.
var transposes = []blas.Transpose{blas.NoTrans, blas.Trans, blas.ConjTrans}

// size draws sizes around those of vectors, tiles, panels and blocks.
func size(t *rapid.T, name string) int {
	switch rapid.IntRange(0, 9).Draw(t, name+" kind") {
	case 0, 1, 2:
		return rapid.IntRange(1, 9).Draw(t, name)
	case 3, 4, 5, 6:
		return rapid.IntRange(1, 70).Draw(t, name)
	case 7, 8:
		return rapid.IntRange(70, 200).Draw(t, name)
	}
	return rapid.IntRange(370, 800).Draw(t, name)
}

// drawCall draws a product with normally distributed elements.
func drawCall(t *rapid.T) call {
	x := call{
		tA: rapid.SampledFrom(transposes).Draw(t, "tA"), tB: rapid.SampledFrom(transposes).Draw(t, "tB"),
		m: size(t, "m"), n: size(t, "n"), k: size(t, "k"),
		alpha: rapid.SampledFrom([]float32{1, 0, -1, 0.7}).Draw(t, "alpha"),
		beta:  rapid.SampledFrom([]float32{0, 1, float32(math.Copysign(0, -1)), -0.3}).Draw(t, "beta"),
	}
	fill := newFill(rapid.Uint64().Draw(t, "seed"))
	room := func(name string, rows, cols int) (matrix, int) {
		ld := cols + rapid.SampledFrom([]int{0, 0, 1, 5}).Draw(t, name+" gap")
		v := newMatrix((rows-1)*ld+cols, rapid.IntRange(0, 15).Draw(t, name+" shift"))
		fill.normal(v.data)
		return v, ld
	}
	ra, ca, _ := stored(x.tA, x.m, x.k)
	rb, cb, _ := stored(x.tB, x.k, x.n)
	x.a, x.lda = room("a", ra, ca)
	x.b, x.ldb = room("b", rb, cb)
	x.c, x.ldc = room("c", x.m, x.n)
	return x
}

func (x call) run(f gemmFunc) {
	f(x.tA, x.tB, x.m, x.n, x.k, x.alpha, x.a.data, x.lda, x.b.data, x.ldb, x.beta, x.c.data, x.ldc)
}

type gemmFunc func(tA, tB blas.Transpose, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int)

// reference is the product in float64, of the elements of C alone, and for each the sum of its terms' magnitudes.
func (x call) reference() (want, magnitude []float64) {
	rows := func(t blas.Transpose, m []float32, ld, rows, cols int) []float64 {
		v := make([]float64, rows*cols)
		for i := range rows {
			for j := range cols {
				if t == blas.NoTrans {
					v[i*cols+j] = float64(m[i*ld+j])
				} else {
					v[i*cols+j] = float64(m[j*ld+i])
				}
			}
		}
		return v
	}
	a := rows(x.tA, x.a.data, x.lda, x.m, x.k)
	b := rows(flip(x.tB), x.b.data, x.ldb, x.n, x.k) // B's columns
	want, magnitude = make([]float64, x.m*x.n), make([]float64, x.m*x.n)
	for i := range x.m {
		for j := range x.n {
			var sum, size float64
			bj := b[j*x.k : (j+1)*x.k]
			for l, v := range a[i*x.k : (i+1)*x.k] {
				sum += v * bj[l]
				size += math.Abs(v * bj[l])
			}
			if x.alpha == 0 {
				sum, size = 0, 0
			}
			sum *= float64(x.alpha)
			size *= math.Abs(float64(x.alpha))
			if x.beta != 0 {
				c := float64(x.beta) * float64(x.c.data[i*x.ldc+j])
				sum += c
				size += math.Abs(c)
			}
			want[i*x.n+j], magnitude[i*x.n+j] = sum, size
		}
	}
	return want, magnitude
}

func flip(t blas.Transpose) blas.Transpose {
	if t == blas.NoTrans {
		return blas.Trans
	}
	return blas.NoTrans
}

// check reports the first element of got that is further from float64's than rounding each of its additions explains.
func (x call) check(got []float32, want, magnitude []float64) error {
	for i := range x.m {
		for j := range x.n {
			g, w := float64(got[i*x.ldc+j]), want[i*x.n+j]
			if math.IsNaN(w) || math.IsInf(w, 0) {
				if g != w && !(math.IsNaN(g) && math.IsNaN(w)) {
					return fmt.Errorf("%v: C[%d,%d] is %v, should be %v", x, i, j, g, w)
				}
				continue
			}
			if e := math.Abs(g - w); !(e <= float64(x.k+3)*0x1p-24*magnitude[i*x.n+j]) {
				return fmt.Errorf("%v: C[%d,%d] is %v, should be %v; terms of %v", x, i, j, g, w, magnitude[i*x.n+j])
			}
		}
	}
	return nil
}

// gaps reports whether what lies between the rows of C was left alone.
func (x call) gaps(before, after []float32) bool {
	for i := range before {
		if i%x.ldc >= x.n && before[i] != after[i] {
			return false
		}
	}
	return true
}
