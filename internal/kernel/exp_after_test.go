package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
)

// BenchmarkExpAfter measures math.Exp directly after each kernel, in the same goroutine. Each ns/exp should equal that of kernel=none.
// Go's math.Exp consists of SSE instructions. They are slow if a kernel has left the upper halves of the vector registers in use. The
// problems are small enough to be one task, which runs in the calling goroutine. On AMD's Zen 5 the benchmark shows no difference, since
// its SSE instructions do not wait. TestAssemblyEndsWithVZEROUPPER checks that every kernel clears the upper halves.
func BenchmarkExpAfter(b *testing.B) {
	const exps = 1000
	for _, k := range kernelsToFollow() {
		b.Run("kernel="+k.name, func(b *testing.B) {
			var took []time.Duration
			benchtest.Processors(b)
			for b.Loop() {
				k.run()
				// The benchmark's own timer calls Go's runtime, which may clear the registers.
				start := time.Now()
				x := 0.5
				for range exps {
					x = math.Exp(-x)
				}
				took = append(took, time.Since(start))
				expSink = x
			}
			slices.Sort(took) // the median, since other programs can interrupt a run
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/exps, "ns/exp")
		})
	}
}

var expSink float64

type namedKernel struct {
	name string
	run  func()
}

func kernelsToFollow() []namedKernel {
	const length, channels, state, width, vocabulary = 64, 64, 16, 4, 1000
	r := rand.New(rand.NewPCG(1, 1))
	random := func(n int) []float32 { return narrow(normals(r, n)) }
	empty := func(n int) []float32 { return make([]float32, n) }
	const rows = length * channels

	steps := random(rows)
	for i, v := range steps {
		steps[i] = 0.1 * v * v
	}
	decay := random(channels * state)
	for i, v := range decay {
		decay[i] = -v * v
	}
	scan := &Scan[float32]{
		Batch: 1, Length: length, Channels: channels, State: state,
		U: random(rows), Delta: steps, A: decay,
		B: Projection[float32]{Data: random(length * state), Groups: 1},
		C: Projection[float32]{Data: random(length * state), Groups: 1},
		D: random(channels), Z: random(rows), DeltaBias: random(channels), Softplus: true,
	}
	scanGrad := &ScanGrad[float32]{
		U: empty(rows), Delta: empty(rows), A: empty(channels * state), B: empty(length * state), C: empty(length * state),
		D: empty(channels), Z: empty(rows), DeltaBias: empty(channels),
	}
	conv := &Conv[float32]{
		Batch: 1, Length: length, Channels: channels, Width: width,
		X: random(rows), Weight: random(channels * width), Bias: random(channels), SiLU: true,
	}
	convGrad := &ConvGrad[float32]{X: empty(rows), Weight: empty(channels * width), Bias: empty(channels)}
	norm := &RMSNorm[float32]{Channels: channels, Eps: 1e-5, X: random(rows), Weight: random(channels)}
	entropy := &CrossEntropy[float32]{Vocabulary: vocabulary, Logits: random(vocabulary), Targets: []int{1}, Ignore: -100}

	x, y, dy, dw := random(rows), empty(rows), random(rows), empty(channels)
	logits := empty(vocabulary)
	return []namedKernel{
		{"none", func() {}},
		{"Scan.Forward", func() { scan.Forward(y, nil) }},
		{"Scan.Backward", func() { scan.Backward(dy, nil, scanGrad) }},
		{"Conv.Forward", func() { conv.Forward(y, nil) }},
		{"Conv.Backward", func() { conv.Backward(dy, nil, convGrad) }},
		{"RMSNorm.Forward", func() { norm.Forward(y) }},
		{"RMSNorm.Backward", func() { norm.Backward(dy, y, dw) }},
		{"CrossEntropy.Forward", func() { entropy.Forward() }},
		{"CrossEntropy.Backward", func() { entropy.Backward(1, logits) }},
		{"NegExp", func() { NegExp(y, x) }},
		{"NegExpBackward", func() { NegExpBackward(y, dy, x) }},
		{"Sum", func() { Sum(y, x, dy) }},
	}
}
