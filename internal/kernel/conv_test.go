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

// convCase describes a convolution to be filled with random operands.
type convCase struct {
	batch, length, channels, width int
	bias, context, start, silu     bool
}

func drawConv(t *rapid.T) convCase {
	return convCase{
		batch:    rapid.IntRange(1, 3).Draw(t, "batch"),
		length:   rapid.SampledFrom([]int{1, 2, 3, 7, 63, 64, 65, 300}).Draw(t, "length"),
		channels: rapid.SampledFrom([]int{1, 2, 3, 17, 64}).Draw(t, "channels"),
		width:    rapid.SampledFrom([]int{1, 2, 3, 4, 5, 9, 40}).Draw(t, "width"),
		bias:     rapid.Bool().Draw(t, "bias"),
		context:  rapid.Bool().Draw(t, "context"),
		start:    rapid.Bool().Draw(t, "start"),
		silu:     rapid.Bool().Draw(t, "silu"),
	}
}

func (c convCase) make64(seed uint64) *Conv[float64] {
	r := rand.New(rand.NewPCG(seed, 2))
	conv := &Conv[float64]{
		Batch: c.batch, Length: c.length, Channels: c.channels, Width: c.width, SiLU: c.silu,
		X: normals(r, c.batch*c.length*c.channels), Weight: normals(r, c.channels*c.width),
	}
	if c.bias {
		conv.Bias = normals(r, c.channels)
	}
	if c.context && c.width > 1 {
		conv.Context = normals(r, c.batch*(c.width-1)*c.channels)
	}
	if c.start {
		conv.Start = make([]bool, c.batch*c.length)
		for i := range conv.Start {
			conv.Start[i] = r.IntN(6) == 0
		}
	}
	return conv
}

func normals(r *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = r.NormFloat64()
	}
	return v
}

func narrowConv(c *Conv[float64]) *Conv[float32] {
	return &Conv[float32]{
		Batch: c.Batch, Length: c.Length, Channels: c.Channels, Width: c.Width,
		X: narrow(c.X), Weight: narrow(c.Weight), Bias: narrow(c.Bias), Context: narrow(c.Context), Start: c.Start,
		SiLU: c.SiLU,
	}
}

// convResult holds all results and gradients of a convolution.
type convResult[T Float] struct {
	y, context []T
	ConvGrad[T]
}

func (r convResult[T]) named() map[string][]T {
	return map[string][]T{
		"y": r.y, "context": r.context,
		"gradient of X": r.X, "gradient of Weight": r.Weight, "gradient of Bias": r.Bias, "gradient of Context": r.Context,
	}
}

func runConv[T Float](c *Conv[T], dy, dcontext []T) convResult[T] {
	r := convResult[T]{y: like(dy), context: like(dcontext)}
	r.ConvGrad = ConvGrad[T]{X: like(c.X), Weight: like(c.Weight), Bias: like(c.Bias), Context: like(c.Context)}
	c.Forward(r.y, r.context)
	c.Backward(dy, dcontext, &r.ConvGrad)
	if with := *c; c.SiLU { // with the slopes that the forward pass has kept, all is the same bit for bit
		with.Slope = like(dy)
		s := convResult[T]{y: like(dy), context: like(dcontext)}
		s.ConvGrad = ConvGrad[T]{X: like(c.X), Weight: like(c.Weight), Bias: like(c.Bias), Context: like(c.Context)}
		with.Forward(s.y, s.context)
		with.Backward(dy, dcontext, &s.ConvGrad)
		for name, v := range s.named() {
			if !slices.EqualFunc(v, r.named()[name], func(a, b T) bool { return a == b || a != a && b != b }) {
				panic(name + " differs with Slope")
			}
		}
	}
	return r
}

// referenceConv computes the definition, element by element. It numbers the sequences. An output reads the width-1 steps before it that
// belong to the sequence of the same number.
func referenceConv(c *Conv[float64], dy, dcontext []float64) convResult[float64] {
	r := convResult[float64]{y: make([]float64, len(dy)), context: make([]float64, len(dcontext))}
	r.X, r.Weight = make([]float64, len(c.X)), make([]float64, len(c.Weight))
	r.Bias = make([]float64, len(c.Bias))
	if c.Context != nil {
		r.Context = make([]float64, len(c.Context))
	}
	past := c.Width - 1
	for b := range c.Batch {
		sequence := make([]int, past+c.Length) // the number of each step's sequence: the context, then x
		for t := range c.Length {
			sequence[past+t] = sequence[max(past+t-1, 0)]
			if c.Start != nil && c.Start[b*c.Length+t] {
				sequence[past+t]++
			}
		}
		for d := range c.Channels {
			// at returns the address of step i of [context, x] in x or in context.
			at := func(i int, x, context []float64) *float64 {
				if i >= past {
					return &x[(b*c.Length+i-past)*c.Channels+d]
				}
				if context == nil {
					return new(float64)
				}
				return &context[(b*past+i)*c.Channels+d]
			}
			for t := range c.Length {
				var pre float64
				if c.Bias != nil {
					pre = c.Bias[d]
				}
				for k := range c.Width {
					if sequence[t+k] == sequence[past+t] {
						pre += c.Weight[d*c.Width+k] * *at(t+k, c.X, c.Context)
					}
				}
				y, g := pre, dy[(b*c.Length+t)*c.Channels+d]
				if c.SiLU {
					s := 1 / (1 + math.Exp(-pre))
					y, g = pre*s, g*(s+pre*s*(1-s))
				}
				r.y[(b*c.Length+t)*c.Channels+d] = y
				if c.Bias != nil {
					r.Bias[d] += g
				}
				for k := range c.Width {
					if sequence[t+k] == sequence[past+t] {
						r.Weight[d*c.Width+k] += g * *at(t+k, c.X, c.Context)
						*at(t+k, r.X, r.Context) += g * c.Weight[d*c.Width+k]
					}
				}
			}
			if len(dcontext) == 0 {
				continue
			}
			for i := range past {
				from := c.Length + i
				if sequence[from] == sequence[len(sequence)-1] {
					r.context[(b*past+i)*c.Channels+d] = *at(from, c.X, c.Context)
					*at(from, r.X, r.Context) += dcontext[(b*past+i)*c.Channels+d]
				}
			}
		}
	}
	return r
}

func compareConv(t interface{ Fatalf(string, ...any) }, c *Conv[float64], withContext bool) {
	r := rand.New(rand.NewPCG(7, 7))
	dy := normals(r, len(c.X))
	var dcontext []float64
	if withContext {
		dcontext = normals(r, c.Batch*(c.Width-1)*c.Channels)
	}
	want := referenceConv(c, dy, dcontext).named()
	for name, got := range runConv(c, dy, dcontext).named() {
		if err := farFromSum(got, want[name], 1e-13); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, got := range runConv(narrowConv(c), narrow(dy), narrow(dcontext)).named() {
		tol := 1e-5
		if name == "gradient of Weight" || name == "gradient of Bias" {
			tol += 1e-7 * float64(c.Batch*c.Length) // the terms are of magnitude 1 and may cancel
		}
		if err := farFromSum(got, want[name], tol); err != nil {
			t.Fatalf("float32: %s: %v", name, err)
		}
	}
}

// farFromSum is far for sums whose terms are of magnitude 1 and may cancel. Their errors are compared with 1 at least.
func farFromSum[T Float](got []T, want []float64, tol float64) error {
	return far(append(got, 1), append(slices.Clone(want), 1), tol)
}

func TestConvAgainstReference(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			c := drawConv(t)
			compareConv(t, c.make64(rapid.Uint64().Draw(t, "seed")), rapid.Bool().Draw(t, "with context"))
		})
	})
}

// A convolution of several tasks along time and along channels.
func TestConvAgainstReferenceWide(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		compareConv(t, convCase{batch: 2, length: 70, channels: 2100, width: 4, bias: true, context: true, start: true,
			silu: true}.make64(1), true)
		compareConv(t, convCase{batch: 1, length: 2, channels: 20000, width: 4, bias: true, context: true}.make64(2), true)
	})
}

func TestConvByHand(t *testing.T) {
	c := &Conv[float64]{
		Batch: 1, Length: 4, Channels: 1, Width: 3,
		X: []float64{1, 2, 3, 4}, Weight: []float64{100, 10, 1}, Bias: []float64{1000}, Context: []float64{5, 6},
	}
	y, context := make([]float64, 4), make([]float64, 2)
	for _, test := range []struct {
		start   []bool
		y, next []float64
	}{
		{nil, []float64{1561, 1612, 1123, 1234}, []float64{3, 4}},
		{[]bool{true, false, false, false}, []float64{1001, 1012, 1123, 1234}, []float64{3, 4}},
		{[]bool{false, false, true, false}, []float64{1561, 1612, 1003, 1034}, []float64{3, 4}},
		{[]bool{false, true, false, true}, []float64{1561, 1002, 1023, 1004}, []float64{0, 4}},
	} {
		c.Start = test.start
		c.Forward(y, context)
		if !slices.Equal(y, test.y) || !slices.Equal(context, test.next) {
			t.Errorf("start %v: y = %v, context = %v, want %v, %v", test.start, y, context, test.y, test.next)
		}
	}
}

func TestConvBitIdentical(t *testing.T) { eachLevel(t, testConvBitIdentical) }

func testConvBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	c64 := convCase{batch: 2, length: 150, channels: 1100, width: 4, bias: true, context: true, start: true, silu: true}.make64(3)
	c := narrowConv(c64)
	r := rand.New(rand.NewPCG(5, 5))
	dy, dcontext := narrow(normals(r, len(c.X))), narrow(normals(r, len(c.Context)))
	want := runConv(c, dy, dcontext).named()
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for run := range 5 {
			for name, got := range runConv(c, dy, dcontext).named() {
				if !slices.Equal(got, want[name]) {
					t.Fatalf("GOMAXPROCS %d, run %d: %s differs", procs, run, name)
				}
			}
		}
	}
}

// At any alignment, nothing but the results is written, and the results of several steps are the same as those of each step alone.
func TestConvRowsCanaries(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n, steps, width := rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 9).Draw(t, "steps"), rapid.IntRange(1, 8).Draw(t, "width")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			y, yIntact := window(t, r, steps*n, "y")
			x, xIntact := window(t, r, (steps+width)*n, "x")
			taps, tapsIntact := window(t, r, width*n, "taps")
			bias, biasIntact := window(t, r, n, "bias")
			dy, dyIntact := window(t, r, steps*n, "dy")
			slope, slopeIntact := window(t, r, steps*n, "slope")
			run := func(y []float32, first, steps int) {
				c := convRows[float32]{steps: steps, width: width, n: n, y: rowsOf[float32]{y, 0, n}, x: rowsOf[float32]{x, first * n, n},
					next: n, taps: rowsOf[float32]{taps, (width - 1) * n, -n}, bias: bias, silu: true}
				switch width % 3 {
				case 0:
					c.dy = rowsOf[float32]{dy, first * n, n}
				case 1:
					c.slope = rowsOf[float32]{slope, first * n, n}
				}
				c.run()
			}
			run(y, 0, steps)
			one := make([]float32, n)
			for s := range steps {
				if run(one, s, 1); !slices.Equal(one, y[s*n:(s+1)*n]) {
					t.Fatalf("step %d differs from the same step computed alone", s)
				}
			}
			c := convRows[float32]{steps: steps, width: width, n: n, x: rowsOf[float32]{x, 0, n}, next: n,
				taps: rowsOf[float32]{taps, 0, n}, bias: bias, dy: rowsOf[float32]{dy, 0, n}}
			c.sum()
			for _, intact := range []func(){yIntact, xIntact, tapsIntact, biasIntact, dyIntact, slopeIntact} {
				intact()
			}
		})
	})
}

// A NaN affects width steps, and no step of another sequence.
func TestConvNaN(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		c := convCase{batch: 1, length: 8, channels: 1, width: 3, bias: true, context: true, silu: true}.make64(4)
		c.Start = []bool{false, false, false, true, false, false, false, false}
		c.Context[1] = math.NaN()
		c.X[2], c.X[4] = math.NaN(), math.Inf(1)
		finite := []bool{false, false, false, true, false, false, false, true}
		y, context := make([]float64, 8), make([]float64, 2)
		c.Forward(y, context)
		wantNumbers(t, "y", y, finite)
		wantNumbers(t, "context", context, []bool{true, true})
		y32 := make([]float32, 8)
		narrowConv(c).Forward(y32, nil)
		wantNumbers(t, "y in float32", y32, finite)

		c = convCase{batch: 1, length: 8, channels: 1, width: 3, context: true, silu: true}.make64(4)
		c.Start = []bool{false, false, false, true, false, false, false, true}
		dy, dcontext := []float64{math.NaN(), 1, 1, math.NaN(), 1, 1, 1, 1}, []float64{math.NaN(), 1}
		finite = []bool{false, true, true, false, true, true, true, true}
		grad := runConv(c, dy, dcontext).ConvGrad
		wantNumbers(t, "gradient of Context", grad.Context, []bool{false, false})
		wantNumbers(t, "gradient of X", grad.X, finite)
		grad32 := runConv(narrowConv(c), narrow(dy), narrow(dcontext)).ConvGrad
		wantNumbers(t, "gradient of Context in float32", grad32.Context, []bool{false, false})
		wantNumbers(t, "gradient of X in float32", grad32.X, finite)
	})
}

// wantNumbers checks which elements are finite.
func wantNumbers[T Float](t *testing.T, name string, v []T, finite []bool) {
	t.Helper()
	for i, x := range v {
		if got := x-x == 0; got != finite[i] {
			t.Errorf("%s = %v, want finite: %v", name, v, finite)
			return
		}
	}
}

func BenchmarkConv(b *testing.B) {
	c := narrowConv(convCase{batch: 1, length: 1024, channels: 1536, width: 4, bias: true, silu: true}.make64(1))
	y, grad := make([]float32, len(c.X)), &ConvGrad[float32]{X: like(c.X), Weight: like(c.Weight), Bias: like(c.Bias)}
	step := narrowConv(convCase{batch: 1, length: 1, channels: 1536, width: 4, bias: true, context: true, silu: true}.make64(1))
	context := like(step.Context)
	run := func(name string, numbers, bytes int, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(numbers * bytes))
			b.ReportAllocs()
			benchtest.Processors(b)
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(numbers), "ns/td")
		})
	}
	run("copy", len(c.X), 8, func() {
		work.ParallelRange(len(c.X), piece, func(from, to int) { copy(y[from:to], c.X[from:to]) })
	})
	run("forward", len(c.X), 8, func() { c.Forward(y, nil) })
	run("backward", len(c.X), 12, func() { c.Backward(y, nil, grad) })
	run("step", step.Channels, 8, func() { step.Forward(y[:step.Channels], context) })
}
