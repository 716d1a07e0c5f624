package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
)

// TestOpsAreDeterministic runs each kernel that adds across blocks twenty times on the same operands, three times with -short.
func TestOpsAreDeterministic(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(12, 12))
	const rows, width, vocabulary = 1537, 321, 2500
	x, dy, w := put[float32](t, s, numbers[float32](r, rows*width, 1)), put[float32](t, s, numbers[float32](r, rows*width, 1)),
		put[float32](t, s, numbers[float32](r, width, 1))
	dx, dw := blank[float32](t, s, rows*width), blank[float32](t, s, width)
	ids, drawnIds := make([]int32, rows), make([]int, rows)
	for i := range ids {
		ids[i] = r.Int32N(9)
		drawnIds[i] = r.IntN(900) // the host plans their sums
	}
	sorted := blank[float32](t, s, 900*width)
	embedded := blank[float32](t, s, 9*width)
	logits, targets := numbers[float32](r, rows*vocabulary, 3), putInts(t, s, ids)
	state, loss, one := blank[float32](t, s, CrossEntropyState(rows)), blank[float32](t, s, 1), put[float32](t, s, []float64{1})
	drawn, a := put[float32](t, s, logits), blank[float32](t, s, rows*vocabulary)
	c := &Conv[float32]{Batch: 1, Length: rows, Channels: width, Width: 4, XStride: width, X: x, Weight: put[float32](t, s, numbers[float32](r, 4*width, 1)),
		Bias: w}
	cdx, cdw, cdb := blank[float32](t, s, rows*width), blank[float32](t, s, 4*width), blank[float32](t, s, width)
	product := blank[float32](t, s, width*width)
	var first [][]float64
	for run := range times(20, 3) {
		do(t, RMSNormBackward(s, rows, width, 1e-5, x, w, dy, Array[float32]{}, dx, dw))
		got := [][]float64{get(t, s, dx), get(t, s, dw)}
		do(t, ColumnSums(s, rows, width, dy, width, dw), embedded.Fill(s, 0), EmbeddingBackward(s, rows, width, 9, targets, make([]int, rows), dy, embedded),
			sorted.Fill(s, 0), EmbeddingBackward(s, rows, width, 900, targets, drawnIds, dy, sorted),
			Convert(s, drawn, a), CrossEntropyForward(s, rows, vocabulary, vocabulary, 3, a, targets, state, loss),
			CrossEntropyBackward(s, rows, vocabulary, vocabulary, 3, a, targets, state, one),
			c.Backward(s, dy, Array[float32]{}, cdx, width, cdw, cdb, Array[float32]{}),
			MatMul(s, Strict, width, width, rows, Matrix[float32]{x, width, true}, Matrix[float32]{dy, width, false}, 0,
				Matrix[float32]{product, width, false}))
		norm, err := AdamW{}.Step(s, []AdamWeight{{Weight: cdx, Grad: dy, M: cdx, V: cdx}, {Weight: a, Grad: drawn, M: a, V: a}}, 0, 0)
		do(t, err)
		for _, o := range []Array[float32]{dw, embedded, sorted, loss, a, cdx, cdw, cdb, product} {
			got = append(got, get(t, s, o))
		}
		got = append(got, []float64{norm})
		if run == 0 {
			first = got
		}
		for i := range got {
			if !slices.Equal(got[i], first[i]) {
				t.Fatalf("run %d: result %d differs from the first run's", run, i)
			}
		}
	}
}

func TestConvErrors(t *testing.T) {
	s := open(t)
	some := func(n int) Array[float32] { return blank[float32](t, s, n) }
	c := &Conv[float32]{Batch: 1, Length: 4, Channels: 2, Width: 3, XStride: 2, X: some(8), Weight: some(6)}
	none := Array[float32]{}
	for want, err := range map[string]error{
		"next has 1 elements, want 4":     c.Forward(s, some(8), some(1)),
		"dnext has 1 elements, want 4":    c.Backward(s, some(8), some(1), some(8), 2, some(6), none, none),
		"dbias has 1 elements, want 2":    c.Backward(s, some(8), none, some(8), 2, some(6), some(1), none),
		"dcontext has 1 elements, want 4": c.Backward(s, some(8), none, some(8), 2, some(6), none, some(1)),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}

// measure reports the median of the device's times of f, the time of a copy that moves as many bytes (floor), and the floor divided by the
// median.
func measure(b *testing.B, s *Stream, bytes int, f func() error) {
	b.Helper()
	const n = 64 << 20
	from, to := blank[float32](b, s, n), blank[float32](b, s, n)
	floor := float64(bytes) * median(b, s, func() error { return Convert(s, from, to) }) / (8 * n)
	var took float64
	benchtest.Processors(b)
	for b.Loop() {
		took = median(b, s, f)
	}
	b.ReportMetric(took*1e6, "µs")
	b.ReportMetric(floor*1e6, "floor-µs")
	b.ReportMetric(floor/took, "of-floor")
}

// median returns the median time in seconds of what f queues, by events of the device. The device waits for the host before, so the time from f's beginning until its first
// kernel counts.
func median(b *testing.B, s *Stream, f func() error) float64 {
	b.Helper()
	begin, err := s.device.NewEvent()
	do(b, err)
	defer begin.Close()
	end, err := s.device.NewEvent()
	do(b, err)
	defer end.Close()
	var times []time.Duration
	for i := range 25 {
		do(b, s.Record(begin), f(), s.Record(end), end.Synchronize())
		d, err := end.Since(begin)
		do(b, err)
		if i >= 4 {
			times = append(times, d)
		}
	}
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	return times[len(times)/2].Seconds()
}

// measureQueued reports as queued-µs the time of f without the host: of sixteen calls in one graph, divided by sixteen.
func measureQueued(b *testing.B, s *Stream, f func() error) {
	b.Helper()
	const n = 16
	c, err := s.Capture(func() error {
		for range n {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	})
	do(b, err)
	defer c.Close()
	b.ReportMetric(median(b, s, func() error { return c.Launch(s) })*1e6/n, "queued-µs")
}

// The sizes of the model of 130M parameters with batch 8 and length 1024.
const benchRows, benchWidth, benchInner, benchVocabulary = 8192, 768, 1536, 50277

func zeros[T Activation](b testing.TB, s *Stream, n int) Array[T] {
	a := blank[T](b, s, n)
	do(b, a.Fill(s, 0))
	return a
}

func BenchmarkNorm(b *testing.B)         { benchNorm[float32](b, 4) }
func BenchmarkNormBFloat16(b *testing.B) { benchNorm[BFloat16](b, 2) }

func benchNorm[T Activation](b *testing.B, size int) {
	s := open(b)
	const n = benchRows * benchWidth
	x, w, y, dx, dw := zeros[float32](b, s, n), zeros[float32](b, s, benchWidth), zeros[T](b, s, n), zeros[float32](b, s, n), zeros[float32](b, s, benchWidth)
	b.Run("forward", func(b *testing.B) {
		measure(b, s, n*(4+size), func() error { return RMSNormForward(s, benchRows, benchWidth, 1e-5, x, w, y) })
	})
	b.Run("backward", func(b *testing.B) {
		measure(b, s, n*(12+size), func() error { return RMSNormBackward(s, benchRows, benchWidth, 1e-5, x, w, y, dx, dx, dw) })
	})
}

func BenchmarkConv(b *testing.B)         { benchConv[float32](b, 4) }
func BenchmarkConvBFloat16(b *testing.B) { benchConv[BFloat16](b, 2) }

// BenchmarkConvSmall and BenchmarkConvSmallBFloat16 have the shape of a small model.
func BenchmarkConvSmall(b *testing.B)         { benchConvOf[float32](b, 4, 64, 256, 128) }
func BenchmarkConvSmallBFloat16(b *testing.B) { benchConvOf[BFloat16](b, 2, 64, 256, 128) }

func benchConv[T Activation](b *testing.B, size int) {
	benchConvOf[T](b, size, 8, benchRows/8, benchInner)
}

func benchConvOf[T Activation](b *testing.B, size, batch, length, channels int) {
	s := open(b)
	n := batch * length * channels
	c := &Conv[T]{Batch: batch, Length: length, Channels: channels, Width: 4, XStride: 2 * channels, X: zeros[T](b, s, 2*n),
		Weight: zeros[float32](b, s, 4*channels), Bias: zeros[float32](b, s, channels), SiLU: true}
	y, dx, dw, db := zeros[T](b, s, n), zeros[T](b, s, 2*n), zeros[float32](b, s, 4*channels), zeros[float32](b, s, channels)
	none := Array[float32]{}
	starts := startsEvery(b, s, batch*length, 300)
	for _, with := range []string{"", "/starts=300"} {
		forward := func() error { return c.Forward(s, y, none) }
		backward := func() error { return c.Backward(s, y, none, dx, 2*channels, dw, db, none) }
		b.Run("forward"+with, func(b *testing.B) { measure(b, s, 2*n*size, forward); measureQueued(b, s, forward) })
		b.Run("backward"+with, func(b *testing.B) { measure(b, s, 3*n*size, backward); measureQueued(b, s, backward) })
		c.Start = starts
	}
}

func BenchmarkCrossEntropy(b *testing.B)         { benchCrossEntropy[float32](b, 4) }
func BenchmarkCrossEntropyBFloat16(b *testing.B) { benchCrossEntropy[BFloat16](b, 2) }

func benchCrossEntropy[T Activation](b *testing.B, size int) {
	s := open(b)
	const stride = (benchVocabulary + 7) / 8 * 8 // as a language model's head has it
	const n = benchRows * stride
	logits, targets, one := zeros[T](b, s, n), putInts(b, s, make([]int32, benchRows)), zeros[float32](b, s, 1)
	state, loss := zeros[float32](b, s, CrossEntropyState(benchRows)), zeros[float32](b, s, 1)
	b.Run("forward", func(b *testing.B) {
		measure(b, s, n*size, func() error {
			return CrossEntropyForward(s, benchRows, benchVocabulary, stride, -1, logits, targets, state, loss)
		})
	})
	b.Run("backward", func(b *testing.B) {
		measure(b, s, 2*n*size, func() error {
			return CrossEntropyBackward(s, benchRows, benchVocabulary, stride, -1, logits, targets, state, one)
		})
	})
}

// BenchmarkHead has the forward and backward pass of a language model's head, with chunks of as many MiB of logits, and then that of a small model. The floor is that of reading the
// weight and writing its gradient.
func BenchmarkHead(b *testing.B)         { benchHead[float32](b, TF32) }
func BenchmarkHeadBFloat16(b *testing.B) { benchHead[BFloat16](b, BF16) }

func benchHead[T Activation](b *testing.B, p Precision) {
	s := open(b)
	defer func(n int) { headLogits = n }(headLogits)
	for _, c := range []struct{ rows, width, vocabulary, mib int }{
		{benchRows, benchWidth, 50280, 2048}, {benchRows, benchWidth, 50280, 1024}, {benchRows, benchWidth, 50280, 512}, {benchRows, benchWidth, 50280, 256},
		{benchRows, benchWidth, 50280, 128}, {512, 64, 256, 128},
	} {
		b.Run(fmt.Sprintf("%dx%dx%d/MiB=%d", c.rows, c.width, c.vocabulary, c.mib), func(b *testing.B) {
			headLogits = c.mib << 20 / int(size[T]())
			targets := make([]int32, c.rows)
			for i := range targets {
				targets[i] = int32(i * 31 % c.vocabulary)
			}
			n, m := c.rows*c.width, c.vocabulary*c.width
			h := &Head[T]{Rows: c.rows, In: c.width, Vocabulary: c.vocabulary, Ignore: -1, Precision: p, Targets: putInts(b, s, targets),
				X: blank[T](b, s, n), Weight: blank[T](b, s, m)}
			do(b, Convert(s, normals(b, s, n), h.X), Convert(s, normals(b, s, m), h.Weight))
			loss, dx, dweight, one := zeros[float32](b, s, 1), zeros[float32](b, s, n), zeros[float32](b, s, m), put[float32](b, s, []float64{1})
			measure(b, s, m*(4+int(size[T]())), func() error {
				g, err := h.Forward(s, loss, true)
				if err != nil {
					return err
				}
				defer g.Free()
				return g.Scale(s, one, dx, dweight)
			})
		})
	}
}

// BenchmarkMatMul has the products of a step of the 130M model, and small ones. error is the largest error of three rows, relative to the
// largest number in them. The operands are normally distributed.
func BenchmarkMatMul(b *testing.B) {
	s := open(b)
	for _, c := range []struct {
		name                     string
		m, n, k                  int
		transposedA, transposedB bool
	}{
		{"in_proj", benchRows, 2 * benchInner, benchWidth, false, true}, {"in_proj/dx", benchRows, benchWidth, 2 * benchInner, false, false},
		{"in_proj/dweight", 2 * benchInner, benchWidth, benchRows, true, false}, {"x_proj", benchRows, 80, benchInner, false, true},
		{"x_proj/dx", benchRows, benchInner, 80, false, false}, {"x_proj/dweight", 80, benchInner, benchRows, true, false},
		{"dt_proj", benchRows, benchInner, 48, false, true}, {"dt_proj/dx", benchRows, 48, benchInner, false, false},
		{"dt_proj/dweight", benchInner, 48, benchRows, true, false},
		{"out_proj", benchRows, benchWidth, benchInner, false, true}, {"out_proj/dx", benchRows, benchInner, benchWidth, false, false},
		{"out_proj/dweight", benchWidth, benchInner, benchRows, true, false}, {"head", benchRows, benchVocabulary, benchWidth, false, true},
		{"head/dx", benchRows, benchWidth, benchVocabulary, false, false}, {"head/dweight", benchVocabulary, benchWidth, benchRows, true, false},
		{"256", 256, 256, 256, false, true}, {"512", 512, 512, 512, false, true}, {"1024", 1024, 1024, 1024, false, true},
		{"1024/odd", 1023, 1021, 1019, false, true}, {"2048", 2048, 2048, 2048, false, true}, {"4096", 4096, 4096, 4096, false, true},
	} {
		b.Run(c.name, func(b *testing.B) { // its arrays are freed at its end
			x := Matrix[float32]{Data: normals(b, s, c.m*c.k), Transposed: c.transposedA}
			y := Matrix[float32]{Data: normals(b, s, c.k*c.n), Transposed: c.transposedB}
			_, x.Stride = x.rowsAndWidth(c.m, c.k)
			_, y.Stride = y.rowsAndWidth(c.k, c.n)
			to := blank[float32](b, s, c.m*c.n)
			for _, p := range []Precision{Strict, FP16x3, TF32} {
				b.Run(p.String(), func(b *testing.B) {
					measure(b, s, 4*(c.m*c.k+c.k*c.n+c.m*c.n), func() error { return MatMul(s, p, c.m, c.n, c.k, x, y, 0, matrix(to, c.n)) })
					worst, most := 0.0, 0.0
					hx, hy := get(b, s, x.Data.Slice(0, min(x.Data.n, 1<<20))), get(b, s, y.Data.Slice(0, min(y.Data.n, 1<<20)))
					for _, i := range []int{0, c.m / 2, c.m - 1} {
						got := get(b, s, to.Slice(i*c.n, c.n))
						for j := range min(c.n, 2048) {
							want := 0.0
							for l := range c.k {
								ix, iy := i*x.Stride+l, l*y.Stride+j
								if x.Transposed {
									ix = l*x.Stride + i
								}
								if y.Transposed {
									iy = j*y.Stride + l
								}
								want += hx[ix%(1<<20)] * hy[iy%(1<<20)]
							}
							worst, most = max(worst, math.Abs(got[j]-want)), max(most, math.Abs(want))
						}
					}
					b.ReportMetric(worst/most*1e6, "error-millionths")
				})
			}
		})
	}
}

// BenchmarkAttention has 12 heads of 64 elements and batch 8. of-floor is the time of reading the operands and writing the results once,
// divided by the time measured; a window of 0 does quadratic work.
func BenchmarkAttention(b *testing.B) {
	s := open(b)
	const batch, heads, width = 8, 12, 768
	none := Array[float32]{}
	for _, length := range []int{1024, 4096, 16384} {
		n := batch * length * width
		q, k, v, dy := normals(b, s, n), normals(b, s, n), normals(b, s, n), normals(b, s, n)
		y := blank[float32](b, s, n)
		g := &AttentionGrad{Q: blank[float32](b, s, n), K: blank[float32](b, s, n), V: blank[float32](b, s, n)}
		for _, window := range []int{0, 512} {
			for _, precision := range []Precision{Strict, TF32, BF16} {
				a := &Attention{Batch: batch, Length: length, Channels: width, Heads: heads, Window: window, Precision: precision, Q: q, K: k, V: v}
				name := fmt.Sprintf("L=%d/window=%d/%v/", length, window, precision)
				b.Run(name+"forward", func(b *testing.B) {
					measure(b, s, 16*n, func() error { _, err := a.Forward(s, y, none, false); return err })
				})
				b.Run(name+"backward", func(b *testing.B) {
					kept, err := a.Forward(s, y, none, true)
					do(b, err)
					defer kept.Free()
					measure(b, s, 32*n, func() error { return a.Backward(s, kept, dy, none, g) })
				})
			}
		}
	}
}

// BenchmarkAttentionStep computes a single step with a context, as generation does.
func BenchmarkAttentionStep(b *testing.B) {
	s := open(b)
	const heads, width = 12, 768
	for _, batch := range []int{1, 8} {
		for _, window := range []int{512, 4096} {
			b.Run(fmt.Sprintf("batch=%d/window=%d", batch, window), func(b *testing.B) {
				n := batch * width
				a := &Attention{Batch: batch, Length: 1, Channels: width, Heads: heads, Window: window, Base: 1e4, Q: normals(b, s, n), K: normals(b, s, n),
					V: normals(b, s, n)}
				marks := make([]float32, a.contextLen())
				for i := range marks {
					marks[i] = 1
				}
				a.Context = putInts(b, s, marks)
				y, next := blank[float32](b, s, n), blank[float32](b, s, len(marks))
				measure(b, s, 12*len(marks), func() error { _, err := a.Forward(s, y, next, false); return err })
			})
		}
	}
}

// normals returns n random numbers, which repeat after 2^20.
func normals(b *testing.B, s *Stream, n int) Array[float32] {
	b.Helper()
	v := make([]float32, n)
	r := rand.New(rand.NewPCG(14, 14))
	for i := range v {
		if i < 1<<20 {
			v[i] = float32(r.NormFloat64())
		} else {
			v[i] = v[i-1<<20]
		}
	}
	return putInts(b, s, v)
}

func BenchmarkEmbedding(b *testing.B) {
	s := open(b)
	r := rand.New(rand.NewPCG(13, 13))
	const n = benchRows * benchWidth
	ids, host := make([]int32, benchRows), make([]int, benchRows)
	for i := range ids {
		ids[i] = r.Int32N(benchVocabulary)
		host[i] = int(ids[i])
	}
	w, x, on := zeros[float32](b, s, benchVocabulary*benchWidth), zeros[float32](b, s, n), putInts(b, s, ids)
	b.Run("forward", func(b *testing.B) {
		measure(b, s, 8*n, func() error { return EmbeddingForward(s, benchRows, benchWidth, benchVocabulary, w, on, x) })
	})
	b.Run("backward", func(b *testing.B) { // includes the plan, which the host makes
		measure(b, s, 12*n, func() error { return EmbeddingBackward(s, benchRows, benchWidth, benchVocabulary, on, host, x, w) })
	})
}

func BenchmarkAdamW(b *testing.B) {
	s := open(b)
	const n = 129 << 20
	w := []AdamWeight{{Weight: zeros[float32](b, s, n), Grad: zeros[float32](b, s, n), M: zeros[float32](b, s, n), V: zeros[float32](b, s, n)}}
	a := AdamW{Scale: 1, Beta1: 0.9, Rest1: 0.1, Beta2: 0.99, Rest2: 0.01, Rate: 0.01, Root: 1, Eps: 1e-8, Keep: 1}
	b.Run("step", func(b *testing.B) { // with the length of the gradient
		measure(b, s, 32*n, func() error { _, err := a.Step(s, w, 0, 0); return err })
	})
}

func BenchmarkElementwise(b *testing.B) {
	s := open(b)
	const n = benchRows * benchInner
	x, half, bias := zeros[float32](b, s, n), zeros[BFloat16](b, s, n), zeros[float32](b, s, benchInner)
	b.Run("add", func(b *testing.B) { measure(b, s, 8*n, func() error { return Add(s, x, x, x) }) })
	b.Run("convert", func(b *testing.B) { measure(b, s, 6*n, func() error { return Convert(s, x, half) }) })
	b.Run("bias", func(b *testing.B) {
		measure(b, s, 8*n, func() error { return AddBias(s, benchRows, benchInner, x, benchInner, bias) })
	})
	b.Run("sums", func(b *testing.B) {
		measure(b, s, 4*n, func() error { return ColumnSums(s, benchRows, benchInner, x, benchInner, bias) })
	})
}
