package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/benchtest"
)

// headOf returns a head with random operands, and memory for its gradients.
func headOf[T Float](r *rand.Rand, gemm Gemm[T], rows, in, vocabulary int) (h *Head[T], dx, dweight []T) {
	draw := func(n int, by float64) []T {
		v := make([]T, n)
		for i := range v {
			v[i] = T(r.NormFloat64() * by)
		}
		return v
	}
	h = &Head[T]{Rows: rows, In: in, Vocabulary: vocabulary, Ignore: -1, Logits: gemm, Gemm: gemm,
		X: draw(rows*in, 1), Weight: draw(vocabulary*in, 2/math.Sqrt(float64(in))), Targets: make([]int, rows)}
	for i := range h.Targets {
		if h.Targets[i] = r.IntN(vocabulary); r.IntN(4) == 0 {
			h.Targets[i] = h.Ignore
		}
	}
	return h, draw(rows*in, math.NaN()), draw(vocabulary*in, math.NaN())
}

// composed is the head as a linear layer and a cross-entropy.
func (h *Head[T]) composed(dx, dweight []T) T {
	l := Linear[T]{Rows: h.Rows, In: h.In, Out: h.Vocabulary, X: h.X, Weight: h.Weight, Gemm: h.Gemm}
	logits := make([]T, h.Rows*h.Vocabulary)
	l.Forward(logits)
	c := CrossEntropy[T]{h.Vocabulary, logits, h.Targets, h.Ignore}
	if dx != nil {
		dlogits := make([]T, len(logits))
		c.Backward(1, dlogits)
		l.Backward(dlogits, dx, dweight, nil)
	}
	return c.Forward()
}

// A head is a linear layer and a cross-entropy, for sizes of one and of several chunks and parts, whole and ragged. The loss is the same bits with and without gradients.
func TestHead(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		testHead[float32](t, blas.Implementation{}.Sgemm, 2e-6)
		testHead[float64](t, gonum.Implementation{}.Dgemm, 1e-14)
	})
}

func testHead[T Float](t *testing.T, gemm Gemm[T], tol float64) {
	r := rand.New(rand.NewPCG(30, 11))
	for _, size := range [][3]int{{1, 1, 1}, {1, 5, 3}, {40, 3, 2}, {129, 7, 256}, {545, 5, 301}, {700, 2, 2048}, {2100, 3, 300}, {33, 40, 2049}, {530, 1, 2100}, {1100, 67, 1000}} {
		if size[0] > 1000 && testing.Short() {
			continue
		}
		h, dx, dweight := headOf(r, gemm, size[0], size[1], size[2])
		for _, kind := range []string{"", "all ignored", "NaN", "+Inf", "-Inf", "large"} {
			if kind != "" && size[0]*size[2] > 1<<16 {
				continue
			}
			bad := map[string]float64{"NaN": math.NaN(), "+Inf": math.Inf(1), "-Inf": math.Inf(-1), "large": 1e30}
			if v, ok := bad[kind]; ok {
				h.X[r.IntN(len(h.X))] = T(v)
			} else if kind != "" {
				h.Targets = slices.Repeat([]int{h.Ignore}, h.Rows)
			}
			wantX, wantWeight := make([]T, len(dx)), make([]T, len(dweight))
			want, alone, got := h.composed(wantX, wantWeight), h.Forward(nil, nil), h.Forward(dx, dweight)
			same := func(what string, got, want []T) {
				t.Helper()
				var largest float64
				for _, v := range want {
					if !math.IsInf(float64(v), 0) && v == v {
						largest = max(largest, math.Abs(float64(v)))
					}
				}
				for i := range want {
					g, w := float64(got[i]), float64(want[i])
					if g != w && !(math.IsNaN(g) && math.IsNaN(w)) && !(math.Abs(g-w) <= tol*largest) {
						t.Fatalf("%v %s: %s[%d] is %v, want %v", size, kind, what, i, g, w)
					}
				}
			}
			same("loss", []T{got}, []T{want})
			if got != alone && (got == got || alone == alone) {
				t.Fatalf("%v %s: the loss is %v with gradients, %v without", size, kind, got, alone)
			}
			same("dx", dx, wantX)
			same("dweight", dweight, wantWeight)
		}
	}
}

// The number of processors changes no bit.
func TestHeadProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, size := range [][3]int{{1000, 5, 300}, {600, 33, 2100}} {
		h, dx, dweight := headOf[float32](rand.New(rand.NewPCG(30, 12)), blas.Implementation{}.Sgemm, size[0], size[1], size[2])
		var first []float32
		for _, processors := range []int{1, 2, 3, 8} {
			runtime.GOMAXPROCS(processors)
			got := append([]float32{h.Forward(dx, dweight)}, append(slices.Clone(dx), dweight...)...)
			if first == nil {
				first = got
			}
			if !slices.Equal(got, first) {
				t.Errorf("%v: other bits on %d processors", size, processors)
			}
		}
	}
}

// BenchmarkHead has the heads of the model of examples/bytelm and of one of 130M parameters, beside the linear layer and the cross-entropy that hold all logits.
func BenchmarkHead(b *testing.B) {
	for _, size := range [][3]int{{512, 64, 256}, {1024, 64, 256}, {512, 768, 50280}} {
		h, dx, dweight := headOf[float32](rand.New(rand.NewPCG(30, 13)), blas.Implementation{}.Sgemm, size[0], size[1], size[2])
		for _, way := range []struct {
			name string
			f    func(dx, dweight []float32) float32
		}{{"head", h.Forward}, {"composed", h.composed}} {
			b.Run(fmt.Sprintf("%dx%dx%d/%s", size[0], size[1], size[2], way.name), func(b *testing.B) {
				for _, grad := range [][2][]float32{{}, {dx, dweight}} {
					b.Run(fmt.Sprintf("gradients=%t", grad[0] != nil), func(b *testing.B) {
						b.ReportAllocs()
						benchtest.Processors(b)
						for b.Loop() {
							way.f(grad[0], grad[1])
						}
					})
				}
			})
		}
	}
}
