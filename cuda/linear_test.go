package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/kernel"
)

func TestLinear(t *testing.T) {
	s := open(t)
	eager(t, 48, 1<<30)
	r := rand.New(rand.NewPCG(24, 24))
	for _, p := range []struct {
		Precision
		tol float64
	}{{Strict, 2e-6}, {FP16x3, 2e-6}, {TF32, 4e-3}, {BF16, 2e-2}} {
		for _, size := range [][3]int{{1, 1, 1}, {1, 40, 70}, {8, 33, 17}, {9, 33, 16}, {70, 64, 21}, {130, 10, 3}} {
			for _, bias := range []bool{false, true} {
				l := kernel.Linear[float64]{Rows: size[0], In: size[1], Out: size[2], Gemm: gonum.Implementation{}.Dgemm}
				l.X, l.Weight = numbers[float32](r, l.Rows*l.In, 1), numbers[float32](r, l.Out*l.In, 1)
				dy := numbers[float32](r, l.Rows*l.Out, 1)
				if bias {
					l.Bias = numbers[float32](r, l.Out, 1)
				}
				y, dx, dweight, dbias := make([]float64, l.Rows*l.Out), like[float64](l.X), like[float64](l.Weight), like[float64](l.Bias)
				l.Forward(y)
				l.Backward(dy, dx, dweight, dbias)

				on := &Linear{Rows: l.Rows, In: l.In, Out: l.Out, Precision: p.Precision, X: put[float32](t, s, l.X), Weight: put[float32](t, s, l.Weight), Bias: put[float32](t, s, l.Bias)}
				if bias { // with and without a copy in bfloat16
					on.Half = put[BFloat16](t, s, l.Weight)
				}
				ay, adx, adweight, adbias := blank[float32](t, s, len(y)), blank[float32](t, s, len(dx)), blank[float32](t, s, len(dweight)), Array[float32]{}
				if bias {
					adbias = blank[float32](t, s, l.Out)
				}
				ady := put[float32](t, s, dy)
				do(t, on.Forward(s, ay), on.Backward(s, ady, adx, adweight, adbias))
				what := fmt.Sprintf("%v %v, bias %v: ", p.Precision, size, bias)
				near(t, what+"y", get(t, s, ay), y, p.tol)
				near(t, what+"dx", get(t, s, adx), dx, p.tol)
				near(t, what+"dweight", get(t, s, adweight), dweight, p.tol)
				near(t, what+"dbias", get(t, s, adbias), dbias, 1e-5)
				// A gradient alone is the same.
				alone := blank[float32](t, s, len(dweight))
				do(t, on.Backward(s, ady, Array[float32]{}, alone, Array[float32]{}))
				if !slices.Equal(get(t, s, alone), get(t, s, adweight)) {
					t.Error(what + "dweight differs without dx")
				}
			}
		}
	}
}

// TestLinearStep captures a product of few rows.
func TestLinearStep(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(25, 25))
	weight := put[float32](t, s, numbers[float32](r, 20*12, 1))
	half := blank[BFloat16](t, s, 20*12)
	do(t, Convert(s, weight, half))
	for _, p := range []Precision{Strict, FP16x3, TF32, BF16} {
		l := &Linear{Rows: 3, In: 12, Out: 20, Precision: p, X: put[float32](t, s, numbers[float32](r, 36, 1)), Weight: weight, Half: half}
		y, again := blank[float32](t, s, 60), blank[float32](t, s, 60)
		do(t, l.Forward(s, y))
		c, err := s.Capture(func() error { return l.Forward(s, again) })
		do(t, err)
		do(t, c.Launch(s))
		if !slices.Equal(get(t, s, again), get(t, s, y)) {
			t.Errorf("%v: the captured product differs", p)
		}
		do(t, c.Close())
	}
}

// TestLinearPadded compares bfloat16 products whose rows are no multiple of 16 bytes, which are computed in longer rows, with products in float64.
func TestLinearPadded(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(47, 47))
	const rows, in, out = 33, 8, leastPadded + 3
	x, w, bias := numbers[BFloat16](r, rows*in, 1), numbers[BFloat16](r, out*in, 1), numbers[float32](r, out, 1)
	want := make([]float64, rows*out)
	for i := range want {
		for k := range in {
			want[i] += x[i/out*in+k] * w[i%out*in+k]
		}
		want[i] += bias[i%out]
	}
	l := &Linear{Rows: rows, In: in, Out: out, Precision: BF16, X: put[float32](t, s, x), Weight: put[float32](t, s, w), Bias: put[float32](t, s, bias)}
	y := blank[float32](t, s, rows*out)
	do(t, l.Forward(s, y))
	near(t, "y", get(t, s, y), want, 1e-5)
}
