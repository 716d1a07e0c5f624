package blas

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas"

	"github.com/gomamba/mamba/internal/cpu"
)

func TestQuick(t *testing.T) {
	best := level
	defer func() { level = best }()
	for l := cpu.AVX2; l <= best; l++ {
		level = l
		for i := range 3000 {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			sz := func() int { return 1 + r.IntN(1<<(1+r.IntN(9))) }
			m, n, k := sz(), sz(), sz()
			tA, tB := blas.NoTrans, blas.NoTrans
			ra, ca, rb, cb := m, k, k, n
			if r.IntN(2) == 0 {
				tA = blas.Trans
				ra, ca = ca, ra
			}
			if r.IntN(2) == 0 {
				tB = blas.Trans
				rb, cb = cb, rb
			}
			mk := func(n int) []float32 {
				v := make([]float32, n)
				for i := range v {
					v[i] = float32(r.NormFloat64())
				}
				return v
			}
			lda, ldb, ldc := ca+r.IntN(3), cb+r.IntN(3), n+r.IntN(3)
			a, b, c := mk(ra*lda), mk(rb*ldb), mk(m*ldc)
			alpha, beta := float32(r.IntN(3)), float32(r.IntN(3))
			got := append([]float32(nil), c...)
			Implementation{}.Sgemm(tA, tB, m, n, k, alpha, a, lda, b, ldb, beta, got, ldc)
			Implementation{}.Implementation.Sgemm(tA, tB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
			for j := range c {
				if d := math.Abs(float64(got[j] - c[j])); !(d < 1e-4*math.Sqrt(float64(k))+1e-4) {
					t.Fatal(l, i, fmt.Sprint(tA, tB), m, n, k, alpha, beta, "row", j/ldc, "col", j%ldc, got[j], c[j])
				}
			}
		}
	}
}
