package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/work"
)

// Every function of rows.go equals its definition in float64 to within rounding, at any length and alignment, for float32 of any
// magnitude. Nothing but the results is written.
func TestRowsAnyLength(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.OneOf(rapid.IntRange(1, 70), rapid.IntRange(1, 300)).Draw(t, "n")
			size := rapid.SampledFrom([]float32{1, 1e-40, 1e-20, 1e18, 1e37}).Draw(t, "size")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			var intact []func()
			row := func(name string) []float32 {
				v, check := window(t, r, n, name)
				intact = append(intact, check)
				return v
			}
			x, w, dy, y, dw := row("x"), row("w"), row("dy"), row("y"), row("dw")
			for i := range x {
				x[i] *= size
			}
			near := func(name string, got, want, tol float64) {
				if !(math.Abs(got-want) <= tol) {
					t.Fatalf("%s of %d: %v, want %v", name, n, got, want)
				}
			}

			sum, square := slices.Repeat([]float64{1e3}, n+1), 0.0
			add64(sum[:n], x)
			for i, v := range x {
				near("add64", sum[i], 1e3+float64(v), 0)
				square += float64(v) * float64(v)
			}
			near("add64 past the end", sum[n], 1e3, 0)
			near("squares", squares(x), square, 1e-12*square)

			total, product, terms := 0.0, 0.0, 0.0
			products := slices.Repeat([]float64{1e3}, n+1)
			addProduct64(products[:n], x, w)
			for i, v := range x {
				p := float64(v) * float64(w[i])
				near("addProduct64", products[i], 1e3+p, 1e-15*(1e3+math.Abs(p)))
				total, product, terms = total+float64(v), product+p, terms+math.Abs(p)+math.Abs(float64(v))
			}
			near("addProduct64 past the end", products[n], 1e3, 0)
			near("sumOfAll", sumOfAll(x), total, 1e-12*terms)
			near("dotOf", dotOf(x, w), product, 1e-12*terms)
			centre(y, x, total/float64(n))
			for i, v := range x {
				c := float64(v) - total/float64(n)
				near("centre", float64(y[i]), c, 2e-7*math.Abs(c)+1e-14*math.Abs(total/float64(n))+3e-45)
			}

			s := float32(1 / math.Sqrt(square/float64(n)+1e-30))
			norm(y, x, w, s)
			for i, v := range x {
				near("norm", float64(y[i]), float64(v)*float64(s)*float64(w[i]), 3e-7*math.Abs(float64(w[i]))*math.Sqrt(float64(n)))
			}

			before := slices.Clone(dw)
			dot := 0.0
			terms = 0
			for i, v := range x {
				term := float64(dy[i]) * float64(w[i]) * float64(v) * float64(s)
				dot, terms = dot+term, terms+math.Abs(term)
			}
			near("dot", normSums(dw, dy, x, w, s), dot, 3e-7*terms+1e-30)
			for i, v := range x {
				want := float64(before[i]) + float64(dy[i])*float64(v)*float64(s)
				near("dw", float64(dw[i]), want, 3e-7*(math.Abs(want)+math.Abs(float64(before[i]))+1e-30))
			}

			mean := float32(dot / float64(n))
			normBack(y, dy, x, w, s, mean)
			for i, v := range x {
				g, h := float64(dy[i])*float64(w[i]), float64(v)*float64(s)*float64(mean)
				near("dx", float64(y[i]), float64(s)*(g-h), 4e-7*float64(s)*(math.Abs(g)+math.Abs(h))+3e-45)
			}

			for i := range x {
				x[i] /= size
			}
			if n > 2 {
				x[r.IntN(n)] = float32(math.Inf(-1))
			}
			top := x[0]
			for _, v := range x {
				top = max(top, v)
			}
			if got := largest(x); got != top {
				t.Fatalf("largest of %d is %v, want %v", n, got, top)
			}
			var all float64
			got := expSumTo(y, x, top)
			for i, v := range x {
				e := math.Exp(float64(v) - float64(top))
				near("exp", float64(y[i]), e, 5e-7*e)
				all += e
			}
			near("expSum", expSum(x, top), all, 3e-7*all)
			near("expSumTo", got, all, 3e-7*all)
			for _, check := range intact {
				check()
			}
		})
	})
}

// sumColumns equals its definition bit for bit, in memory of its own and in the first row, for both types.
func TestSumColumns(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n, count := rapid.OneOf(rapid.IntRange(0, 70), rapid.IntRange(0, 1100)).Draw(t, "n"), rapid.IntRange(0, 17).Draw(t, "count")
			stride := n + rapid.IntRange(0, 5).Draw(t, "gap")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			rows, intact := window(t, r, count*stride, "rows")
			for range count {
				extremes := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e38, -1e38, 1e-45, 0, math.Copysign(0, -1)}
				if len(rows) > 0 {
					rows[r.IntN(len(rows))] = float32(extremes[r.IntN(len(extremes))])
				}
			}
			before := slices.Clone(rows)
			sum, intactSum := window(t, r, n, "sum")
			sumColumns(sum, rows, count, stride)
			wide, wideRows := make([]float64, n), make([]float64, len(rows))
			for i, v := range rows {
				wideRows[i] = float64(v)
			}
			sumColumns(wide, wideRows, count, stride)
			for i := range sum {
				var want float64
				for row := range count {
					want += float64(before[row*stride+i])
				}
				if !equalBits(sum[i], float32(want)) || math.Float64bits(wide[i]) != math.Float64bits(want) && want == want {
					t.Fatalf("column %d of %d, %d rows: %v and %v, want %v", i, n, count, sum[i], wide[i], want)
				}
			}
			if n > 0 && count > 0 {
				sumColumns(rows[:n], rows, count, stride)
				if !slices.EqualFunc(rows[:n], sum, equalBits) {
					t.Fatal("the sums in the first row differ")
				}
			}
			intact()
			intactSum()
		})
	})
}

// equalBits reports whether two float32 have the same bits, or are NaN.
func equalBits(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestLargest(t *testing.T) {
	nan, minus := float32(math.NaN()), float32(math.Inf(-1))
	eachLevel(t, func(t *testing.T) {
		for n := 1; n < 80; n++ {
			for i := range n {
				x := slices.Repeat([]float32{-3}, n)
				x[i] = -2
				if got := largest(x); got != -2 {
					t.Fatalf("largest of %d with -2 at %d is %v", n, i, got)
				}
				if x[i] = nan; n > 1 && largest(x) != -3 {
					t.Fatalf("largest of %d with a NaN at %d is %v", n, i, largest(x))
				}
			}
			if got := largest(slices.Repeat([]float32{nan}, n)); got != minus {
				t.Fatalf("largest of NaNs is %v", got)
			}
		}
	})
}

func TestSumRows(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, width := range []int{1, 7, 256, 257, 600} {
			rows := narrow(normals(rand.New(rand.NewPCG(1, 2)), 37*width))
			sum := make([]float32, width)
			sumRows(sum, rows)
			for j, got := range sum {
				var want float64
				for i := range 37 {
					want += float64(rows[i*width+j])
				}
				if got != float32(want) {
					t.Fatalf("width %d, column %d: %v, want %v", width, j, got, want)
				}
			}
		}
	})
}

// RMSNorm and its gradients equal their definition to within rounding.
func TestRMSNormAgainstReference(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			rows, width := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 200}).Draw(t, "rows"), rapid.SampledFrom([]int{1, 2, 7, 16, 33, 300}).Draw(t, "width")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
			// With a smaller eps, rounding errors of a row of small numbers would be magnified.
			n := &RMSNorm[float64]{Channels: width, Eps: 0.1, X: normals(r, rows*width), Weight: normals(r, width)}
			dy := normals(r, rows*width)
			y, dx, dWeight := referenceRMSNorm(n, dy)
			gotY, gotDX, gotDWeight := like(y), like(dx), like(dWeight)
			n.Forward(gotY)
			n.Backward(dy, gotDX, gotDWeight)
			for i, got := range [][]float64{gotY, gotDX, gotDWeight} {
				if err := far(got, [][]float64{y, dx, dWeight}[i], 1e-12); err != nil {
					t.Fatalf("result %d: %v", i, err)
				}
			}
			n32 := &RMSNorm[float32]{Channels: width, Eps: 0.1, X: narrow(n.X), Weight: narrow(n.Weight)}
			y32, dx32, dWeight32 := make([]float32, len(y)), make([]float32, len(dx)), make([]float32, width)
			n32.Forward(y32)
			n32.Backward(narrow(dy), dx32, dWeight32)
			for i, got := range [][]float32{y32, dx32, dWeight32} {
				// The last result is a sum over the rows. Its terms are of magnitude 1 and may cancel.
				tol := []float64{3e-6, 3e-6, 3e-6 + 1e-7*float64(rows)}[i]
				if err := far(got, [][]float64{y, dx, dWeight}[i], tol); err != nil {
					t.Fatalf("float32: result %d: %v", i, err)
				}
			}
		})
	})
}

func referenceRMSNorm(n *RMSNorm[float64], dy []float64) (y, dx, dWeight []float64) {
	y, dx, dWeight = like(dy), like(dy), make([]float64, n.Channels)
	clear(dx)
	for at := 0; at < len(dy); at += n.Channels {
		var square, dot float64
		for i := range n.Channels {
			square += n.X[at+i] * n.X[at+i]
		}
		s := 1 / math.Sqrt(square/float64(n.Channels)+n.Eps)
		for i := range n.Channels {
			y[at+i] = n.X[at+i] * s * n.Weight[i]
			dWeight[i] += dy[at+i] * n.X[at+i] * s
			dot += dy[at+i] * n.Weight[i] * n.X[at+i] * s
		}
		for i := range n.Channels {
			dx[at+i] = s * (dy[at+i]*n.Weight[i] - n.X[at+i]*s*dot/float64(n.Channels))
		}
	}
	return y, dx, dWeight
}

// A row of float32 of any magnitude neither overflows nor underflows.
func TestRMSNormSizes(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, size := range []float32{1e-38, 1e-20, 1e19, 3e38} {
			x, y, weight := slices.Repeat([]float32{size}, 50), make([]float32, 50), slices.Repeat([]float32{1}, 50)
			n := &RMSNorm[float32]{Channels: 50, X: x, Weight: weight}
			n.Forward(y)
			for _, v := range y {
				if !(math.Abs(float64(v)-1) < 1e-6) {
					t.Fatalf("the norm of a row of %v is %v", size, v)
				}
			}
		}
	})
}

func BenchmarkRMSNorm(b *testing.B) {
	const rows, width = 2048, 768
	r := rand.New(rand.NewPCG(1, 1))
	n := &RMSNorm[float32]{Channels: width, Eps: 1e-5, X: narrow(normals(r, rows*width)), Weight: narrow(normals(r, width))}
	y, dx, dWeight := like(n.X), like(n.X), like(n.Weight)
	run := func(name string, bytes int, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(bytes * len(y)))
			b.ReportAllocs()
			benchtest.Processors(b)
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(y)), "ns/element")
		})
	}
	run("copy", 8, func() {
		work.ParallelRange(len(y), piece, func(from, to int) { copy(y[from:to], n.X[from:to]) })
	})
	run("forward", 8, func() { n.Forward(y) })
	run("backward", 12, func() { n.Backward(n.X, dx, dWeight) })
}

// The kernels of RMSNorm give each row what the functions for a single row give it, bit for bit.
func TestRMSNormRows(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			channels, rows := rapid.IntRange(1, 150).Draw(t, "channels"), rapid.IntRange(1, 2*normRows+3).Draw(t, "rows")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			var intact []func()
			window := func(name string) []float32 {
				v, check := window(t, r, rows*channels, name)
				intact = append(intact, check)
				return v
			}
			x, dy, y, dx := window("x"), window("dy"), window("y"), window("dx")
			for range rapid.IntRange(0, 4).Draw(t, "extreme") {
				odd := []float32{float32(math.NaN()), float32(math.Inf(1)), 1e30, -1e30, 1e-42, 0}
				x[r.IntN(len(x))], dy[r.IntN(len(dy))] = odd[r.IntN(len(odd))], odd[r.IntN(len(odd))]
			}
			n := &RMSNorm[float32]{Channels: channels, Eps: rapid.SampledFrom([]float64{0, 1e-5}).Draw(t, "eps"), X: x, Weight: narrow(normals(r, channels))}
			dw := make([]float32, channels)
			n.Forward(y)
			n.Backward(dy, dx, dw)
			wantY, wantDx, wantDw := make([]float32, len(x)), make([]float32, len(x)), make([]float32, channels)
			parts := make([]float32, (rows+normRows-1)/normRows*channels)
			for row := range rows {
				at, sum := row*channels, parts[row/normRows*channels:][:channels]
				x, dy := x[at:at+channels], dy[at:at+channels]
				s := n.scale(x)
				norm(wantY[at:at+channels], x, n.Weight, s)
				dot := normSums(sum, dy, x, n.Weight, s)
				normBack(wantDx[at:at+channels], dy, x, n.Weight, s, float32(dot/float64(channels)))
			}
			sumRows(wantDw, parts)
			same := func(name string, got, want []float32) {
				for i := range got {
					if math.Float32bits(got[i]) != math.Float32bits(want[i]) && !(got[i] != got[i] && want[i] != want[i]) {
						t.Fatalf("%s[%d] of %d rows of %d is %v, want %v", name, i, rows, channels, got[i], want[i])
					}
				}
			}
			same("y", y, wantY)
			same("dx", dx, wantDx)
			same("dweight", dw, wantDw)
			for _, check := range intact {
				check()
			}
		})
	})
}

// Without rows or without sequences, the sums are zero.
func TestSumOfNothing(t *testing.T) {
	sum := slices.Repeat([]float32{1}, 5000)
	sumRows(sum, nil)
	const channels, width = 5, 4
	grad := ConvGrad[float32]{Weight: slices.Repeat([]float32{1}, channels*width), Bias: slices.Repeat([]float32{1}, channels)}
	(&Conv[float32]{Length: 3, Channels: channels, Width: width, Weight: make([]float32, channels*width)}).Backward(nil, nil, &grad)
	for _, v := range [][]float32{sum, grad.Weight, grad.Bias} {
		if slices.ContainsFunc(v, func(x float32) bool { return x != 0 }) {
			t.Errorf("%v, want zeros", v)
		}
	}
}
