package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// BenchmarkMatMulNarrow measures the products of a model of 64 channels: by cuBLAS, and by the kernels of ours in float32 (fma) and in tensor cores (split, and group for compute capability 9.0 alone). It reports the
// root of the mean square error divided by that of the result, for 16,384 rows.
func BenchmarkMatMulNarrow(b *testing.B) {
	s := open(b)
	r := rand.New(rand.NewPCG(28, 28))
	const few = 16 << 10
	for _, rows := range []int{few, 16 * few} {
		for _, p := range []struct {
			name  string
			n, k  int
			along bool
			beta  float32
		}{
			{"in_proj", 256, 64, true, 0}, {"x_proj", 36, 128, true, 0}, {"out_proj", 64, 128, true, 1}, {"head", 16, 64, true, 0}, {"dt_proj", 128, 4, true, 0},
			{"dx_of_in_proj", 64, 256, false, 0}, {"dx_of_x_proj", 128, 36, false, 1}, {"dx_of_out_proj", 128, 64, false, 0}, {"dx_of_head", 64, 16, false, 0}, {"dx_of_dt_proj", 4, 128, false, 0},
		} {
			x, w, before := numbers[float32](r, few*p.k, 1), numbers[float32](r, p.n*p.k, 1), numbers[float32](r, few*p.n, 1)
			a, weight, c := matrix(repeated(b, s, x, rows/few), p.k), Matrix[float32]{put[float32](b, s, w), p.n, false}, matrix(blank[float32](b, s, rows*p.n), p.n)
			old := repeated(b, s, before, rows/few)
			if p.along {
				weight.Stride, weight.Transposed = p.k, true
			}
			for way, f := range []func() error{
				func() error { return MatMulScaled(s, Strict, rows, p.n, p.k, halved, a, weight, p.beta, c) },
				func() error { return rowsProduct(s, rows, p.n, p.k, a, weight, p.beta, c) },
				func() error { return splitRows(s, rows, p.n, p.k, a, weight, c, c, p.beta) },
				func() error { return groupRows(s, rows, p.n, p.k, a, weight, c, c, p.beta, false) },
			} {
				if way == 2 && p.k%16 != 0 || way == 3 && !groupFits(s, rows, p.n, p.k, p.beta != 0) {
					continue
				}
				b.Run(fmt.Sprintf("%s/rows=%d/%s", p.name, rows, wayNames[way]), func(b *testing.B) {
					do(b, c.Data.CopyOf(s, old), f())
					error := 0.
					if rows == few {
						got, square, of := get(b, s, c.Data), 0., 0.
						for i := range got {
							want := 0.
							for l := range p.k {
								if p.along {
									want += x[i/p.n*p.k+l] * w[i%p.n*p.k+l]
								} else {
									want += x[i/p.n*p.k+l] * w[l*p.n+i%p.n]
								}
							}
							if way == 0 {
								want *= halved
							}
							want += float64(p.beta) * before[i]
							square, of = square+(got[i]-want)*(got[i]-want), of+want*want
						}
						error = math.Sqrt(square / of)
					}
					measure(b, s, 4*rows*(p.n*(1+int(p.beta))+p.k), f)
					b.ReportMetric(error*1e9, "e-9")
				})
			}
		}
		for _, p := range []struct {
			name string
			m, n int
		}{{"dw_of_in_proj", 256, 64}, {"dw_of_x_proj", 36, 128}, {"dw_of_out_proj", 64, 128}, {"dw_of_head", 16, 64}, {"dw_of_dt_proj", 128, 4}} {
			x, y := numbers[float32](r, few*p.m, 1), numbers[float32](r, few*p.n, 1)
			a, o, c := Matrix[float32]{repeated(b, s, x, rows/few), p.m, true}, matrix(repeated(b, s, y, rows/few), p.n), matrix(blank[float32](b, s, p.m*p.n), p.n)
			for way, f := range []func() error{
				func() error { return MatMulScaled(s, Strict, p.m, p.n, rows, halved, a, o, 0, c) },
				func() error { _, err := columnsProduct(s, p.m, p.n, rows, a, o, c); return err },
				nil,
				func() error { return groupSum(s, p.m, p.n, rows, a, o, c) },
			} {
				if f == nil || way == 3 && !groupSumFits(s, p.m, p.n, rows) {
					continue
				}
				b.Run(fmt.Sprintf("%s/rows=%d/%s", p.name, rows, wayNames[way]), func(b *testing.B) {
					do(b, f())
					error := 0.
					if rows == few {
						got, square, of := get(b, s, c.Data), 0., 0.
						for i := range got {
							want := 0.
							for l := range rows {
								want += x[l*p.m+i/p.n] * y[l*p.n+i%p.n]
							}
							if way == 0 {
								want *= halved
							}
							square, of = square+(got[i]-want)*(got[i]-want), of+want*want
						}
						error = math.Sqrt(square / of)
					}
					measure(b, s, 4*rows*(p.n+p.m), f)
					b.ReportMetric(error*1e9, "e-9")
				})
			}
		}
	}
}

const halved = 0.5 // a factor for which there is no kernel of ours

var wayNames = []string{"cuBLAS", "fma", "split", "group"}

// repeated returns an array with x several times.
func repeated(b *testing.B, s *Stream, x []float64, times int) Array[float32] {
	from, to := put[float32](b, s, x), blank[float32](b, s, len(x)*times)
	for i := range times {
		do(b, to.Slice(i*len(x), len(x)).CopyOf(s, from))
	}
	return to
}
