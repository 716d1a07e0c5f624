//go:build amd64 && !noasm

package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/cpu"
)

// Each function computes the loop of its caller in rows.go, in assembly.

func addTo64s(sum []float64, x []float32) {
	if len(x) == 0 {
		return
	}
	_ = sum[len(x)-1]
	if level == cpu.AVX512 {
		rowAdd64AVX512(&sum[0], &x[0], len(x))
	} else {
		rowAdd64AVX2(&sum[0], &x[0], len(x))
	}
}

func sumColumns32(sum, rows []float32, count, stride int) {
	if len(sum) == 0 {
		return
	}
	_, _ = rows[len(sum)-1], rows[(count-1)*stride+len(sum)-1]
	if level == cpu.AVX512 {
		rowSumsAVX512(&sum[0], &rows[0], count, stride, len(sum))
	} else {
		rowSumsAVX2(&sum[0], &rows[0], count, stride, len(sum))
	}
}

func addProductTo64s(sum []float64, a, b []float32) {
	if len(a) == 0 {
		return
	}
	_, _ = sum[len(a)-1], b[len(a)-1]
	if level == cpu.AVX512 {
		rowAddProduct64AVX512(&sum[0], &a[0], &b[0], len(a))
	} else {
		rowAddProduct64AVX2(&sum[0], &a[0], &b[0], len(a))
	}
}

func sum32s64(x []float32) float64 {
	if len(x) == 0 {
		return 0
	}
	if level == cpu.AVX512 {
		return rowSumAVX512(&x[0], len(x))
	}
	return rowSumAVX2(&x[0], len(x))
}

func dot32s(x, y []float32) float64 {
	if len(x) == 0 {
		return 0
	}
	_ = y[len(x)-1]
	if level == cpu.AVX512 {
		return rowDotAVX512(&x[0], &y[0], len(x))
	}
	return rowDotAVX2(&x[0], &y[0], len(x))
}

func centre32s(c, x []float32, high, low float32) {
	if len(c) == 0 {
		return
	}
	_ = x[len(c)-1]
	if level == cpu.AVX512 {
		rowCentreAVX512(&c[0], &x[0], high, low, len(c))
	} else {
		rowCentreAVX2(&c[0], &x[0], high, low, len(c))
	}
}

func squares32s(x []float32) float64 {
	if len(x) == 0 {
		return 0
	}
	if level == cpu.AVX512 {
		return rowSquaresAVX512(&x[0], len(x))
	}
	return rowSquaresAVX2(&x[0], len(x))
}

func norm32s(y, x, w []float32, s float32) {
	if len(y) == 0 {
		return
	}
	_, _ = x[len(y)-1], w[len(y)-1]
	if level == cpu.AVX512 {
		rowNormAVX512(&y[0], &x[0], &w[0], s, len(y))
	} else {
		rowNormAVX2(&y[0], &x[0], &w[0], s, len(y))
	}
}

// rmsNormArgs are the arguments of the kernels of RMSNorm. They have dx, dy and dw in the backward pass, y in the forward pass.
type rmsNormArgs struct {
	x, w, y, dx, dy, dw *float32
	rows, n             int
	count, eps          float64
}

func (r *RMSNorm[T]) args(rows, at int) (a rmsNormArgs) {
	x := any(r.X).([]float32)[at : at+rows*r.Channels]
	a.x, a.w = &x[0], &any(r.Weight).([]float32)[:r.Channels][0]
	a.rows, a.n, a.count, a.eps = rows, r.Channels, float64(r.Channels), r.Eps
	return a
}

// rows32 writes rows of y from the one that begins at element at.
func (r *RMSNorm[T]) rows32(y []float32, rows, at int) {
	a := r.args(rows, at)
	a.y = &y[at : at+rows*r.Channels][0]
	if level == cpu.AVX512 {
		rmsNormRowsAVX512(&a)
	} else {
		rmsNormRowsAVX2(&a)
	}
}

// backRows32 writes rows of dx from the one that begins at element at, and adds to dw.
func (r *RMSNorm[T]) backRows32(dw, dy, dx []float32, rows, at int) {
	a := r.args(rows, at)
	n := rows * r.Channels
	a.dw, a.dy, a.dx = &dw[:r.Channels][0], &dy[at : at+n][0], &dx[at : at+n][0]
	if level == cpu.AVX512 {
		rmsNormBackRowsAVX512(&a)
	} else {
		rmsNormBackRowsAVX2(&a)
	}
}

func normSums32s(dw, dy, x, w []float32, s float32) float64 {
	if len(dw) == 0 {
		return 0
	}
	_, _, _ = dy[len(dw)-1], x[len(dw)-1], w[len(dw)-1]
	if level == cpu.AVX512 {
		return rowNormSumsAVX512(&dw[0], &dy[0], &x[0], &w[0], s, len(dw))
	}
	return rowNormSumsAVX2(&dw[0], &dy[0], &x[0], &w[0], s, len(dw))
}

func normBack32s(dx, dy, x, w []float32, s, mean float32) {
	if len(dx) == 0 {
		return
	}
	_, _, _ = dy[len(dx)-1], x[len(dx)-1], w[len(dx)-1]
	if level == cpu.AVX512 {
		rowNormBackAVX512(&dx[0], &dy[0], &x[0], &w[0], s, mean, len(dx))
	} else {
		rowNormBackAVX2(&dx[0], &dy[0], &x[0], &w[0], s, mean, len(dx))
	}
}

func largest32s(x []float32) float32 {
	if len(x) == 0 {
		return float32(math.Inf(-1))
	}
	if level == cpu.AVX512 {
		return rowMaxAVX512(&x[0], len(x))
	}
	return rowMaxAVX2(&x[0], len(x))
}

// crossEntropyArgs are the arguments of the kernels of CrossEntropy.
type crossEntropyArgs struct {
	x, y    *float32 // of the first row; y may be x
	rows, n int
	all     *crossEntropyRow
	each    float64
}

// rows32 computes rows of CrossEntropy.pass from row i on. all has their targets.
func (c *CrossEntropy[T]) rows32(dx, x []float32, all []crossEntropyRow, i int, each float64) {
	from, to := i*c.Vocabulary, (i+len(all))*c.Vocabulary
	a := crossEntropyArgs{x: &x[from:to][0], rows: len(all), n: c.Vocabulary, all: &all[0], each: each}
	if dx != nil {
		a.y = &dx[from:to][0]
	}
	switch {
	case dx == nil && level == cpu.AVX512:
		rowsLossAVX512(&a)
	case dx == nil:
		rowsLossAVX2(&a)
	case level == cpu.AVX512:
		rowsGradientAVX512(&a)
	default:
		rowsGradientAVX2(&a)
	}
}

func expSumTo32s(y, x []float32, top float32) float64 {
	if len(y) == 0 {
		return 0
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		return rowExpSumToAVX512(&y[0], &x[0], top, len(y))
	}
	return rowExpSumToAVX2(&y[0], &x[0], top, len(y))
}
