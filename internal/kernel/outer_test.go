package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
)

// The products equal sums in float64 to within rounding, at any size and alignment. Nothing but the results is written.
func TestProductsOfVectors(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			size := rapid.OneOf(rapid.IntRange(1, 4), rapid.IntRange(1, 40)).Draw(t, "size")
			n := size * rapid.IntRange(1, 5).Draw(t, "vectors")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			var intact []func()
			values := func(name string, n int) []float32 {
				v, check := window(t, r, n, name)
				intact = append(intact, check)
				return v
			}
			a, b, m := values("a", n), values("b", n), values("m", n*size)
			outer, left, right := values("outer", n*size), values("left", n), values("right", n)
			OuterProduct(outer, a, b, size)
			VectorMatrix(left, a, m, size)
			MatrixVector(right, m, b, size)
			for at := 0; at < n; at += size {
				for i := range size {
					var l, r float64
					for j := range size {
						if want := a[at+i] * b[at+j]; outer[(at+i)*size+j] != want {
							t.Fatalf("outer product %d, %d: %v, want %v", i, j, outer[(at+i)*size+j], want)
						}
						l += float64(a[at+j]) * float64(m[(at+j)*size+i])
						r += float64(m[(at+i)*size+j]) * float64(b[at+j])
					}
					if d := math.Abs(float64(left[at+i]) - l); !(d <= 1e-5) {
						t.Fatalf("vector times matrix: element %d of size %d is %v, want %v", i, size, left[at+i], l)
					}
					if d := math.Abs(float64(right[at+i]) - r); !(d <= 1e-5) {
						t.Fatalf("matrix times vector: element %d of size %d is %v, want %v", i, size, right[at+i], r)
					}
				}
			}
			for _, check := range intact {
				check()
			}
		})
	})
}

func BenchmarkOuterProduct(b *testing.B) {
	for _, size := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("size ", size), func(b *testing.B) {
			const n = 1 << 18
			k, v, s := make([]float32, n/size), make([]float32, n/size), make([]float32, n)
			b.SetBytes(4 * n)
			benchtest.Processors(b)
			for range b.N {
				OuterProduct(s, k, v, size)
				VectorMatrix(k, v, s, size)
				MatrixVector(k, s, v, size)
			}
		})
	}
}
