package blas

import (
	"fmt"
	"testing"

	"gonum.org/v1/gonum/blas"

	"github.com/gomamba/mamba/internal/benchtest"
	memory "github.com/gomamba/mamba/internal/size"
)

// BenchmarkSgemm is the products of a 130M model's block at length 512, forward and backward, and squares.
func BenchmarkSgemm(b *testing.B) {
	const no, yes = blas.NoTrans, blas.Trans
	type shape struct {
		name    string
		tA, tB  blas.Transpose
		m, n, k int
	}
	shapes := []shape{}
	for _, n := range []int{16, 32, 64, 128, 256, 512, 1024} {
		shapes = append(shapes, shape{"square", no, no, n, n, n})
	}
	for _, l := range []struct {
		name    string
		out, in int
	}{{"in_proj", 3072, 768}, {"out_proj", 768, 1536}, {"x_proj", 80, 1536}, {"dt_proj", 1536, 48}} {
		shapes = append(shapes,
			shape{l.name + "/forward", no, yes, 512, l.out, l.in},
			shape{l.name + "/dx", no, no, 512, l.in, l.out},
			shape{l.name + "/dW", yes, no, l.out, l.in, 512})
	}
	for _, s := range shapes {
		b.Run(fmt.Sprintf("%s/%d×%d×%d", s.name, s.m, s.n, s.k), func(b *testing.B) {
			x, y, c := normal(s.m*s.k), normal(s.k*s.n), make([]float32, s.m*s.n)
			_, lda, _ := stored(s.tA, s.m, s.k)
			_, ldb, _ := stored(s.tB, s.k, s.n)
			b.ReportAllocs()
			benchtest.Processors(b)
			for b.Loop() {
				Implementation{}.Sgemm(s.tA, s.tB, s.m, s.n, s.k, 1, x, lda, y, ldb, 0, c, s.n)
			}
			b.ReportMetric(2*float64(s.m)*float64(s.n)*float64(s.k)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GFLOP/s")
		})
	}
}

// BenchmarkStep is generation's products: each weight is read once, and from memory, since many matrices take turns.
func BenchmarkStep(b *testing.B) {
	const room = 256 << 20 / 4
	for _, s := range []struct{ batch, out, in int }{
		{1, 3072, 768}, {2, 3072, 768}, {4, 3072, 768}, {8, 3072, 768}, {16, 3072, 768}, {1, 768, 1536}, {1, 50280, 768},
	} {
		b.Run(fmt.Sprintf("%d×%d×%d", s.batch, s.out, s.in), func(b *testing.B) {
			copies := max(1, room/(s.out*s.in))
			x, w, y := normal(s.batch*s.in), normal(copies*s.out*s.in), make([]float32, s.batch*s.out)
			b.ReportAllocs()
			benchtest.Processors(b)
			for i := 0; b.Loop(); i++ {
				w := w[i%copies*s.out*s.in:][:s.out*s.in]
				Implementation{}.Sgemm(blas.NoTrans, blas.Trans, s.batch, s.out, s.in, 1, x, s.in, w, s.in, 0, y, s.out)
			}
			b.ReportMetric(4*float64(s.out)*float64(s.in)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GB/s")
		})
	}
}

// BenchmarkWeights is the products of generation with weights of each type, read from memory as in BenchmarkStep, and those of a prompt.
func BenchmarkWeights(b *testing.B) {
	for _, typ := range allTypes() {
		for _, s := range []struct{ rows, out, in int }{{1, 3072, 768}, {8, 3072, 768}, {1, 768, 1536}, {512, 3072, 768}, {512, 768, 1536}} {
			b.Run(fmt.Sprintf("%v/%d×%d×%d", typ, s.rows, s.out, s.in), func(b *testing.B) {
				outputs := s.out
				if s.rows < fewRows {
					outputs = max(1, 128<<20/(s.in/typ.Block()*typ.BlockBytes())/s.out) * s.out
				}
				w := randomWeights(typ, outputs, s.in, newFill(1))
				memory.HugePages(w.data)
				x, y := normal(s.rows*s.in), make([]float32, s.rows*s.out)
				parts := make([]*Weights, outputs/s.out)
				for i := range parts {
					parts[i] = w.part(i*s.out, s.out)
				}
				b.ReportAllocs()
				benchtest.Processors(b)
				for i := 0; b.Loop(); i++ {
					parts[i%len(parts)].Mul(y, s.out, x, s.in, s.rows, false)
				}
				each := float64(b.N) / float64(b.Elapsed().Nanoseconds())
				b.ReportMetric(float64(parts[0].Bytes())*each, "GB/s")
				b.ReportMetric(2*float64(s.rows)*float64(s.out)*float64(s.in)*each, "GFLOP/s")
			})
		}
	}
}

// part returns n rows of the weights.
func (w *Weights) part(from, n int) *Weights {
	p := *w
	p.outputs = n
	if row := len(w.data) / w.outputs; row > 0 {
		p.data = w.data[from*row : (from+n)*row]
	} else {
		p.floats = w.floats[from*w.inputs : (from+n)*w.inputs]
	}
	return &p
}
