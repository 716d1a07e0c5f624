package blas

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/blas"
)

// Sizes whose product overflows must panic before a kernel reads or writes: gonum's own check passes them.
func TestSizesThatOverflow(t *testing.T) {
	v := func() []float32 { return make([]float32, 12) }
	const big = math.MaxInt/2 + 1
	gemm := func(tA, tB blas.Transpose, m, n, k, lda, ldb, ldc int) func() {
		return func() { Implementation{}.Sgemm(tA, tB, m, n, k, 1, v(), lda, v(), ldb, 0, v(), ldc) }
	}
	gemv := func(tA blas.Transpose, m, n, lda, incX, incY int) func() {
		return func() { Implementation{}.Sgemv(tA, m, n, 1, v(), lda, v(), incX, 0, v(), incY) }
	}
	for name, f := range map[string]func(){
		"m":               gemm(blas.NoTrans, blas.NoTrans, big, 3, 4, 4, 3, 3),
		"n":               gemm(blas.NoTrans, blas.Trans, 2, big, 4, 4, 4, big),
		"k":               gemm(blas.Trans, blas.NoTrans, 2, 3, big, 4, 4, 3),
		"lda":             gemm(blas.NoTrans, blas.NoTrans, 3, 3, 4, big, 3, 3),
		"ldb":             gemm(blas.NoTrans, blas.NoTrans, 2, 3, 4, 4, big, 3),
		"ldc":             gemm(blas.NoTrans, blas.NoTrans, 3, 3, 4, 4, 3, big),
		"gemv m":          gemv(blas.NoTrans, big, 4, 4, 1, 1),
		"gemv lda":        gemv(blas.NoTrans, 3, 4, big, 1, 1),
		"gemv incX":       gemv(blas.NoTrans, 2, 3, 3, big, 1),
		"gemv incX < 0":   gemv(blas.NoTrans, 2, 3, 3, -big, 1),
		"gemv incX least": gemv(blas.NoTrans, 2, 3, 3, math.MinInt, 1),
		"gemv incY":       gemv(blas.Trans, 2, 3, 3, 1, big),
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}
