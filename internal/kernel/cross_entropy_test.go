package kernel

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/work"
)

// referenceCrossEntropy computes the definition in float64. Its exponentials overflow for large logits.
func referenceCrossEntropy(c *CrossEntropy[float64], dloss float64) (loss float64, dlogits []float64) {
	dlogits = make([]float64, len(c.Logits))
	n := 0.0
	for i, target := range c.Targets {
		if target == c.Ignore {
			continue
		}
		n++
		var sum float64
		for j := range c.Vocabulary {
			sum += math.Exp(c.Logits[i*c.Vocabulary+j])
		}
		for j := range c.Vocabulary {
			if p := math.Exp(c.Logits[i*c.Vocabulary+j]) / sum; j != target {
				dlogits[i*c.Vocabulary+j] = p * dloss
				dlogits[i*c.Vocabulary+target] -= p * dloss // p - 1 would lose digits
			}
		}
		loss -= math.Log(math.Exp(c.Logits[i*c.Vocabulary+target]) / sum)
	}
	if n > 0 {
		loss /= n
		for i := range dlogits {
			dlogits[i] /= n
		}
	}
	return loss, dlogits
}

func makeCrossEntropy(seed uint64, rows, vocabulary, ignore int, ignored float64) *CrossEntropy[float64] {
	r := rand.New(rand.NewPCG(seed, 3))
	c := &CrossEntropy[float64]{Vocabulary: vocabulary, Logits: normals(r, rows*vocabulary), Ignore: ignore}
	for i := range c.Logits {
		c.Logits[i] *= 3
	}
	for range rows {
		target := r.IntN(vocabulary)
		if r.Float64() < ignored {
			target = ignore
		}
		c.Targets = append(c.Targets, target)
	}
	return c
}

func narrowCrossEntropy(c *CrossEntropy[float64]) *CrossEntropy[float32] {
	return &CrossEntropy[float32]{Vocabulary: c.Vocabulary, Logits: narrow(c.Logits), Targets: c.Targets, Ignore: c.Ignore}
}

func TestCrossEntropyAgainstReference(t *testing.T) { eachLevel(t, testCrossEntropyAgainstReference) }

func testCrossEntropyAgainstReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vocabulary := rapid.SampledFrom([]int{1, 2, 3, 17, 256, 20000}).Draw(t, "vocabulary")
		c := makeCrossEntropy(rapid.Uint64().Draw(t, "seed"),
			rapid.SampledFrom([]int{1, 2, 5, 70}).Draw(t, "rows"), vocabulary,
			rapid.SampledFrom([]int{-100, -1, 0, vocabulary}).Draw(t, "ignore"),
			rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(t, "ignored"))
		want, wantGrad := referenceCrossEntropy(c, 1.5)

		grad := like(c.Logits)
		c.Backward(1.5, grad)
		if got := c.Forward(); !(math.Abs(got-want) <= 1e-13*(1+want)) {
			t.Fatalf("loss %v, want %v", got, want)
		}
		if err := far(grad, wantGrad, 1e-13); err != nil {
			t.Fatalf("gradient: %v", err)
		}

		c32 := narrowCrossEntropy(c)
		grad32 := like(c32.Logits)
		c32.Backward(1.5, grad32)
		if got := float64(c32.Forward()); !(math.Abs(got-want) <= 1e-6*(1+want)) {
			t.Fatalf("float32: loss %v, want %v", got, want)
		}
		if err := far(grad32, wantGrad, 1e-5); err != nil {
			t.Fatalf("float32: gradient: %v", err)
		}
	})
}

// The kernels for some rows compute what their definition does, for any vocabulary and target, with and without gradients, and write nothing else. Where an
// exponential is infinite or NaN, both are.
func TestCrossEntropyRows(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n, rows := rapid.OneOf(rapid.IntRange(1, 70), rapid.IntRange(1, 600)).Draw(t, "vocabulary"), rapid.IntRange(1, 5).Draw(t, "rows")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			x, intact := window(t, r, rows*n, "logits")
			if _, ok := asm32(x); !ok {
				return
			}
			size := rapid.SampledFrom([]float32{0, 1e-40, 1, 50, 1e30}).Draw(t, "size")
			for i := range x {
				x[i] *= size
			}
			if rapid.Bool().Draw(t, "extreme") {
				extremes := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e38, -1e38, 1e-45}
				x[r.IntN(len(x))] = float32(extremes[r.IntN(len(extremes))])
			}
			targets := make([]crossEntropyRow, rows)
			for i := range targets {
				targets[i].target = r.IntN(n)
			}
			c := &CrossEntropy[float32]{Vocabulary: n, Logits: x}
			dx, intactGradient := window(t, r, rows*n, "gradients")
			want, all, alone, place := slices.Clone(dx), slices.Clone(targets), slices.Clone(targets), slices.Clone(targets)
			c.rowsPlain(want, targets, 0, 0.7)
			c.rows32(nil, x, alone, 0, 0)
			c.rows32(dx, x, all, 0, 0.7)
			near := func(what string, got, want, tol float64) {
				t.Helper()
				if !(math.Abs(got-want) <= tol) && !(got != got && want != want) && got != want {
					t.Fatalf("%s is %v, want %v", what, got, want)
				}
			}
			for i, w := range targets {
				near("gap", all[i].gap, w.gap, 0)
				near("sum", all[i].sum, w.sum, 1e-6*math.Abs(w.sum))
				if math.Float64bits(alone[i].sum) != math.Float64bits(all[i].sum) && all[i].sum == all[i].sum {
					t.Fatal("the sum differs without gradients")
				}
				for j := range n {
					near("gradient", float64(dx[i*n+j]), float64(want[i*n+j]), 1e-6*math.Abs(float64(want[i*n+j]))+3e-45)
				}
			}
			c.rows32(x, x, place, 0, 0.7)
			if !slices.EqualFunc(x, dx, equalBits) {
				t.Fatal("gradients in the place of the logits differ")
			}
			intact()
			intactGradient()
		})
	})
}

// Logits can be of any size: the loss depends only on their differences.
func TestCrossEntropyLargeLogits(t *testing.T) { eachLevel(t, testCrossEntropyLargeLogits) }

func testCrossEntropyLargeLogits(t *testing.T) {
	c := &CrossEntropy[float32]{Vocabulary: 3, Logits: []float32{1e30, 0, -1e30, 3e4, 3e4, -3e4}, Targets: []int{0, 2}, Ignore: -1}
	if got, want := float64(c.Forward()), (0+6e4+math.Ln2)/2; math.Abs(got-want) > 1e-7*want {
		t.Errorf("loss %v, want %v", got, want)
	}
	grad := make([]float32, 6)
	c.Backward(2, grad)
	if want := []float32{0, 0, 0, 0.5, 0.5, -1}; !slices.Equal(grad, want) {
		t.Errorf("gradient %v, want %v", grad, want)
	}

	minus := math.Inf(-1) // a logit that has been masked out
	d := &CrossEntropy[float64]{Vocabulary: 3, Logits: []float64{1, minus, 1}, Targets: []int{0}, Ignore: -1}
	if got := d.Forward(); math.Abs(got-math.Ln2) > 1e-15 {
		t.Errorf("with a masked logit: loss %v, want ln 2", got)
	}
}

// A NaN or an infinity makes the loss NaN and affects the gradient of its own row only. In an ignored row it has no effect.
func TestCrossEntropyNaN(t *testing.T) { eachLevel(t, testCrossEntropyNaN) }

func testCrossEntropyNaN(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		for position := range 70 {
			c := &CrossEntropy[float32]{Vocabulary: 70, Logits: make([]float32, 140), Targets: []int{1, 2}, Ignore: -1}
			c.Logits[position] = bad
			grad := make([]float32, 140)
			c.Backward(1, grad)
			finite := make([]bool, 140)
			for i := 70; i < 140; i++ {
				finite[i] = true
			}
			if loss := c.Forward(); loss == loss {
				t.Errorf("float32: %v at %d: loss is %v", bad, position, loss)
			}
			wantNumbers(t, "gradient in float32", grad, finite)
		}
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		for position := range 3 {
			c := &CrossEntropy[float64]{Vocabulary: 3, Logits: make([]float64, 9), Targets: []int{0, -1, 2}, Ignore: -1}
			c.Logits[position] = bad
			grad := make([]float64, 9)
			c.Backward(1, grad)
			if !math.IsNaN(c.Forward()) {
				t.Errorf("%v: loss is %v", bad, c.Forward())
			}
			wantNumbers(t, "gradient", grad, []bool{false, false, false, true, true, true, true, true, true})

			c.Logits[position], c.Logits[3+position] = 0, bad
			c.Backward(1, grad)
			if got := c.Forward(); math.Abs(got-math.Log(3)) > 1e-15 || slices.ContainsFunc(grad, math.IsNaN) {
				t.Errorf("%v in a row that is ignored: loss %v, gradient %v", bad, got, grad)
			}
		}
	}
}

func TestCrossEntropyBitIdentical(t *testing.T) { eachLevel(t, testCrossEntropyBitIdentical) }

func testCrossEntropyBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	c := narrowCrossEntropy(makeCrossEntropy(1, 500, 256, -100, 0.1))
	run := func() []float32 {
		grad := make([]float32, len(c.Logits))
		c.Backward(0.7, grad)
		return append(grad, c.Forward())
	}
	want := run()
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for i := range 5 {
			if !slices.Equal(run(), want) {
				t.Fatalf("GOMAXPROCS %d, run %d: the results differ", procs, i)
			}
		}
	}
}

func BenchmarkCrossEntropy(b *testing.B) {
	const rows, vocabulary = 64, 50280
	c := narrowCrossEntropy(makeCrossEntropy(1, rows, vocabulary, -1, 0))
	grad := like(c.Logits)
	run := func(name string, bytes int, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(bytes * len(grad)))
			b.ReportAllocs()
			benchtest.Processors(b)
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(grad)), "ns/element")
		})
	}
	run("copy", 8, func() {
		work.ParallelRange(len(grad), piece, func(from, to int) { copy(grad[from:to], c.Logits[from:to]) })
	})
	run("forward", 4, func() { c.Forward() })
	run("backward", 8, func() { c.Backward(1, grad) })
}
