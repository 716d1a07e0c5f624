//go:build amd64 && !noasm

package blas

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/cpu"
)

// What a kernel prefetches changes no bit.
func TestSparsePrefetches(t *testing.T) {
	if cpu.Best < cpu.AVX512 {
		t.Skip("this processor has no AVX-512")
	}
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(r.NormFloat64())
		}
		return v
	}
	for _, k := range []int{1, 15, 16, 17, 31, 32, 33, 48, 64, 100, 768} {
		for rows := 1; rows <= 4; rows++ {
			x, w, y := random(k), random(rows*k), random(rows)
			got := slices.Clone(y)
			dots1AVX512(k, &x[0], k, &w[0], k, &y[0], rows, 1, 0.5, 2, rows)
			dots1SparseAVX512(k, &x[0], k, &w[0], k, &got[0], rows, 1, 0.5, 2, rows)
			if !slices.Equal(got, y) {
				t.Errorf("%d numbers, %d rows: %v, want %v", k, rows, got, y)
			}
		}
	}
}
