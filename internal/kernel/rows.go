package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// The functions below process rows, for RMSNorm, cross-entropy and the gradients of parameters. All slices of a call have one length. Sums
// are in float64, so that sums and squares of large float32 do not overflow.

// add64 adds x to sum.
func add64[T Float](sum []float64, x []T) {
	if x32, ok := asm32(x); ok {
		addTo64s(sum, x32)
		return
	}
	for i, v := range x {
		sum[i] += float64(v)
	}
}

// addProduct64 adds a·b to sum, element by element.
func addProduct64[T Float](sum []float64, a, b []T) {
	if a32, ok := asm32(a); ok {
		addProductTo64s(sum, a32, any(b).([]float32))
		return
	}
	for i, v := range a {
		sum[i] += float64(v) * float64(b[i])
	}
}

// sumOfAll returns Σ x.
func sumOfAll[T Float](x []T) (sum float64) {
	if x32, ok := asm32(x); ok {
		return sum32s64(x32)
	}
	for _, v := range x {
		sum += float64(v)
	}
	return sum
}

// dotOf returns Σ x·y.
func dotOf[T Float](x, y []T) (sum float64) {
	if x32, ok := asm32(x); ok {
		return dot32s(x32, any(y).([]float32))
	}
	for i, v := range x {
		sum += float64(v) * float64(y[i])
	}
	return sum
}

// centre writes c = x - mean. The mean is subtracted in two parts, since float32 may not hold it.
func centre[T Float](c, x []T, mean float64) {
	high := T(mean)
	low := T(mean - float64(high))
	if math.IsInf(mean, 0) {
		low = 0 // ∞ - ∞ is NaN
	}
	if c32, ok := asm32(c); ok {
		centre32s(c32, any(x).([]float32), float32(high), float32(low))
		return
	}
	for i, v := range x {
		c[i] = v - high - low
	}
}

// squares returns Σ x².
func squares[T Float](x []T) (sum float64) {
	if x32, ok := asm32(x); ok {
		return squares32s(x32)
	}
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return sum
}

// norm writes y = x·s·w.
func norm[T Float](y, x, w []T, s T) {
	if y32, ok := asm32(y); ok {
		norm32s(y32, any(x).([]float32), any(w).([]float32), float32(s))
		return
	}
	for i, v := range x {
		y[i] = v * s * w[i]
	}
}

// normSums adds dy·x·s to dw, and returns Σ dy·w·x·s.
func normSums[T Float](dw, dy, x, w []T, s T) (dot float64) {
	if dw32, ok := asm32(dw); ok {
		return normSums32s(dw32, any(dy).([]float32), any(x).([]float32), any(w).([]float32), float32(s))
	}
	for i, v := range x {
		hat := v * s
		dw[i] += dy[i] * hat
		dot += float64(dy[i]*w[i]) * float64(hat)
	}
	return dot
}

// normBack writes dx = s·(dy·w - x·s·mean).
func normBack[T Float](dx, dy, x, w []T, s, mean T) {
	if dx32, ok := asm32(dx); ok {
		normBack32s(dx32, any(dy).([]float32), any(x).([]float32), any(w).([]float32), float32(s), float32(mean))
		return
	}
	for i, v := range x {
		dx[i] = s * (dy[i]*w[i] - v*s*mean)
	}
}

// largest returns the largest element that is not NaN, or -Inf if there is none.
func largest[T Float](x []T) T {
	if x32, ok := asm32(x); ok {
		return T(largest32s(x32))
	}
	top := T(math.Inf(-1))
	for _, v := range x {
		if v > top {
			top = v
		}
	}
	return top
}

// expSum returns Σ exp(x - top).
func expSum[T Float](x []T, top T) (sum float64) {
	for _, v := range x {
		sum += float64(exp(v - top))
	}
	return sum
}

// expSumTo writes y = exp(x - top), and returns the sum.
func expSumTo[T Float](y, x []T, top T) (sum float64) {
	if y32, ok := asm32(y); ok {
		return expSumTo32s(y32, any(x).([]float32), float32(top))
	}
	for j, v := range x {
		y[j] = exp(v - top)
		sum += float64(y[j])
	}
	return sum
}

// sumPiece is the number of columns of a task that sums rows.
const sumPiece = 1024

// sumRows writes the sum of all rows, each of len(sum) elements. It adds in float64. It writes nothing if sum is nil.
func sumRows[T Float](sum, rows []T) {
	n := len(sum)
	if n == 0 {
		return
	}
	if len(rows) == 0 {
		clear(sum)
		return
	}
	if work.Alone(pieces(n, sumPiece)) {
		sumColumns(sum, rows, len(rows)/n, n)
		return
	}
	work.ParallelRange(n, sumPiece, func(from, to int) { sumColumns(sum[from:to], rows[from:], len(rows)/n, n) })
}

// sumColumns writes the sums of the columns of count rows, which are stride elements apart. It adds in float64, in the order of the rows. sum may be the first row.
func sumColumns[T Float](sum, rows []T, count, stride int) {
	if sum32, ok := asm32(sum); ok && count > 0 {
		sumColumns32(sum32, any(rows).([]float32), count, stride)
		return
	}
	for i := range sum {
		var all float64
		for r := range count {
			all += float64(rows[r*stride+i])
		}
		sum[i] = T(all)
	}
}
