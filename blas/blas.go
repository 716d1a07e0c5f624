package blas

import (
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
)

// Implementation is gonum's BLAS with our single-precision products, Sgemm and Sgemv. It has no state; any number of
// goroutines may use it.
type Implementation struct{ gonum.Implementation }

// Sgemm is C = alpha·op(A)·op(B) + beta·C for op(A) (m, k), op(B) (k, n) and C (m, n), all row-major; tA and tB say
// whether op transposes. If beta is 0, C is not read. If alpha is 0, A and B are not read. Invalid arguments panic as gonum's Sgemm does.
func (i Implementation) Sgemm(tA, tB blas.Transpose, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
	if m > 0 && n > 0 {
		rowsA, colsA, _ := stored(tA, m, k)
		rowsB, colsB, _ := stored(tB, k, n)
		bounded("a", rowsA, lda, colsA)
		bounded("b", rowsB, ldb, colsB)
		bounded("c", m, ldc, n)
	}
	set, valid := current(), validGemm(tA, tB, m, n, k, len(a), lda, len(b), ldb, len(c), ldc)
	switch {
	case valid && (alpha == 0 || k == 0): // gonum would multiply a NaN of A or B by alpha
		scale(m, n, beta, c, ldc)
		return
	case set == nil || !valid:
		i.Implementation.Sgemm(tA, tB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
		return
	}
	p := product{
		kernels: set, m: m, n: n, k: k, alpha: alpha, beta: beta,
		a: a, aRow: lda, aCol: 1, b: b, ldb: ldb, bTrans: tB != blas.NoTrans, c: c, ldc: ldc,
	}
	if tA != blas.NoTrans {
		p.aRow, p.aCol = 1, lda
	}
	p.run()
}

// Sgemv is y = alpha·op(A)·x + beta·y for A (m, n), row-major. tA says whether op transposes. gonum's Sgemv computes products of vectors
// with gaps between their elements, and panics for invalid arguments.
func (i Implementation) Sgemv(tA blas.Transpose, m, n int, alpha float32, a []float32, lda int, x []float32, incX int, beta float32, y []float32, incY int) {
	in, out, tB := n, m, blas.Trans
	if tA != blas.NoTrans {
		in, out, tB = m, n, blas.NoTrans
	}
	if m > 0 && n > 0 {
		bounded("x", in, magnitude(incX), 1)
		bounded("y", out, magnitude(incY), 1)
		bounded("a", m, lda, n)
	}
	if current() == nil || incX != 1 || incY != 1 || m < 1 || n < 1 ||
		tA != blas.NoTrans && tA != blas.Trans && tA != blas.ConjTrans ||
		!validGemm(blas.NoTrans, tB, 1, out, in, len(x), in, len(a), lda, len(y), out) {
		i.Implementation.Sgemv(tA, m, n, alpha, a, lda, x, incX, beta, y, incY)
		return
	}
	i.Sgemm(blas.NoTrans, tB, 1, out, in, alpha, x, in, a, lda, beta, y, out)
}

// bounded panics if no slice is as long as rows, stride elements apart, of that width. gonum's checks overflow there, and its kernels
// then reach beyond the slice.
func bounded(name string, rows, stride, width int) {
	if rows > 1 && stride > 0 && rows-1 > (math.MaxInt-max(width, 0))/stride {
		panic("blas: insufficient length of " + name) // as gonum says it
	}
}

func magnitude(inc int) int {
	if inc >= 0 {
		return inc
	}
	return int(min(uint(-inc), math.MaxInt)) // -inc of the smallest int is itself
}

// validGemm reports whether gonum's Sgemm accepts the arguments, and C is not empty.
func validGemm(tA, tB blas.Transpose, m, n, k, lenA, lda, lenB, ldb, lenC, ldc int) bool {
	rowsA, colsA, okA := stored(tA, m, k)
	rowsB, colsB, okB := stored(tB, k, n)
	return okA && okB && m > 0 && n > 0 && k >= 0 &&
		lda >= max(1, colsA) && ldb >= max(1, colsB) && ldc >= n &&
		lenA >= (rowsA-1)*lda+colsA && lenB >= (rowsB-1)*ldb+colsB && lenC >= (m-1)*ldc+n
}

// stored returns the size of a matrix in memory, before op.
func stored(t blas.Transpose, rows, cols int) (int, int, bool) {
	switch t {
	case blas.NoTrans:
		return rows, cols, true
	case blas.Trans, blas.ConjTrans:
		return cols, rows, true
	}
	return 0, 0, false
}

// scale computes C = beta·C. With beta 0 it sets C to zero, also where C is NaN.
func scale(m, n int, beta float32, c []float32, ldc int) {
	if beta == 1 {
		return
	}
	for i := range m {
		row := c[i*ldc : i*ldc+n]
		if beta == 0 {
			clear(row)
			continue
		}
		for j := range row {
			row[j] *= beta
		}
	}
}
