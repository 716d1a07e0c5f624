package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/kernel"
)

// TestStep compares steps with the block over the same tokens in float64, for random sizes: with results in arrays of their own, in place, and
// captured.
func TestStep(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testStep[float32](t, s) }, func(t *testing.T) { testStep[BFloat16](t, s) })
}

func testStep[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(23, 23))
	for trial := range times(12, 4) {
		k := kernel.Block[float64]{
			Batch: 1 + r.IntN(10), Length: 4, Model: 1 + r.IntN(40), Channels: 1 + r.IntN(40), State: 1 + r.IntN(20),
			Width: []int{4, 4, 1, 2, 16}[r.IntN(5)], Rank: 1 + r.IntN(6), Eps: 1e-5, Gemm: gonum.Implementation{}.Dgemm,
		}
		columns := k.Rank + 2*k.State
		small := func(n, in int) []float64 { return numbers[T](r, n, 1/float64(in)+0.1) }
		normal := func(n int) []float64 { return numbers[float32](r, n, 0.5) }
		k.X, k.Norm, k.InProj = normal(k.Batch*k.Length*k.Model), normal(k.Model), small(2*k.Channels*k.Model, k.Model)
		k.Conv, k.XProj, k.DtProj = normal(k.Channels*k.Width), small(columns*k.Channels, k.Channels), small(k.Channels*k.Rank, k.Rank)
		k.DtBias, k.ALog, k.D = normal(k.Channels), normal(k.Channels*k.State), normal(k.Channels)
		k.OutProj = small(k.Model*k.Channels, k.Channels)
		if r.IntN(2) == 0 {
			k.InBias, k.ConvBias, k.OutBias = normal(2*k.Channels), normal(k.Channels), normal(k.Model)
		}
		k.Context, k.Initial = normal(k.Batch*(k.Width-1)*k.Channels), normal(k.Batch*k.Channels*k.State)
		y, context, final := make([]float64, len(k.X)), make([]float64, len(k.Context)), make([]float64, len(k.Initial))
		k.Forward(y, context, final, kernel.BlockValues[float64]{})

		up := func(v []float64) Array[float32] { return put[float32](t, s, v) }
		step := &Step[T]{
			Batch: k.Batch, Model: k.Model, Channels: k.Channels, State: k.State, Width: k.Width, Rank: k.Rank, Eps: 1e-5, Norm: up(k.Norm),
			Conv: up(k.Conv), DtBias: up(k.DtBias), ALog: up(k.ALog), D: up(k.D), InProj: put[T](t, s, k.InProj), XProj: put[T](t, s, k.XProj),
			DtProj: put[T](t, s, k.DtProj), OutProj: put[T](t, s, k.OutProj), InBias: up(k.InBias), ConvBias: up(k.ConvBias), OutBias: up(k.OutBias),
		}
		x := blank[float32](t, s, k.Batch*k.Model)
		load := func(i int) {
			host := make([]float32, 0, x.Len())
			for b := range k.Batch {
				for _, v := range k.X[(b*k.Length+i)*k.Model:][:k.Model] {
					host = append(host, float32(v))
				}
			}
			do(t, x.CopyFrom(s, host))
		}
		// walk runs all steps and returns their results and the last states. at queues step i and returns the arrays of its results.
		walk := func(at func(i int) [3]Array[float32]) (all [3][]float64) {
			all[0] = make([]float64, len(y))
			for i := range k.Length {
				load(i)
				next := at(i)
				for b, row := 0, get(t, s, next[0]); b < k.Batch; b++ {
					copy(all[0][(b*k.Length+i)*k.Model:], row[b*k.Model:][:k.Model])
				}
				all[1], all[2] = get(t, s, next[1]), get(t, s, next[2])
			}
			return all
		}
		var set [2][3]Array[float32] // y, context, state
		for i := range set {
			set[i] = [3]Array[float32]{blank[float32](t, s, x.Len()), blank[float32](t, s, len(context)), blank[float32](t, s, len(final))}
		}
		queue := func(i int) error {
			step.X, step.Context, step.Scan = x, set[i%2][1], set[i%2][2]
			return step.Forward(s, set[1-i%2][0], set[1-i%2][1], set[1-i%2][2])
		}
		begin := func() { do(t, set[0][1].CopyOf(s, up(k.Context)), set[0][2].CopyOf(s, up(k.Initial))) }
		begin()
		apart := walk(func(i int) [3]Array[float32] {
			before := [][]float64{get(t, s, x), get(t, s, set[i%2][1]), get(t, s, set[i%2][2])}
			do(t, queue(i))
			for j, a := range []Array[float32]{x, set[i%2][1], set[i%2][2]} {
				if !slices.Equal(get(t, s, a), before[j]) {
					t.Fatalf("trial %d: step %d changed operand %d", trial, i, j)
				}
			}
			return set[1-i%2]
		})
		what := fmt.Sprintf("trial %d, batch %d, model %d, channels %d, state %d, width %d, rank %d: ", trial, k.Batch, k.Model, k.Channels, k.State,
			k.Width, k.Rank)
		near(t, what+"y", apart[0], y, 1e-4)
		near(t, what+"context", apart[1], context, 1e-4)
		near(t, what+"state", apart[2], final, 1e-4)

		inPlace := [3]Array[float32]{x, up(k.Context), up(k.Initial)}
		same := func(name string, got [3][]float64) {
			for j := range got {
				if !slices.Equal(got[j], apart[j]) {
					t.Errorf("%s%s, result %d differs", what, name, j)
				}
			}
		}
		same("in place", walk(func(int) [3]Array[float32] {
			step.X, step.Context, step.Scan = inPlace[0], inPlace[1], inPlace[2]
			do(t, step.Forward(s, inPlace[0], inPlace[1], inPlace[2]))
			return inPlace
		}))
		begin()
		var captured [2]*Capture
		for i := range captured {
			c, err := s.Capture(func() error { return queue(i) })
			do(t, err)
			captured[i] = c
		}
		same("captured", walk(func(i int) [3]Array[float32] {
			do(t, captured[i%2].Launch(s))
			return set[1-i%2]
		}))
		do(t, captured[0].Close(), captured[1].Close())
	}
}

// TestStepChain compares chains of steps in one launch, and the kernels of many sequences, with those of few sequences, for random sizes; and
// chains with themselves, in place and captured, bit for bit.
func TestStepChain(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testStepChain[float32](t, s) }, func(t *testing.T) { testStepChain[BFloat16](t, s) })
}

func testStepChain[T Activation](t *testing.T, s *Stream) {
	if s.device.kernels < 80 {
		t.Skip("the device uses kernels of compute capability 7.0, which have no chain")
	}
	defer func(kernels, n int) { s.device.kernels, s.device.multiprocessors = kernels, n }(s.device.kernels, s.device.multiprocessors)
	r := rand.New(rand.NewPCG(29, 29))
	for trial := range times(12, 5) {
		size := Step[T]{
			Batch: 1 + r.IntN(10)*r.IntN(2), Model: 8 * (1 + r.IntN(5)), Channels: 8 * (1 + r.IntN(5)), State: 1 + r.IntN(20),
			Width: []int{4, 4, 1, 2, 16}[r.IntN(5)], Rank: 1 + r.IntN(6), Eps: 1e-5,
		}
		s.device.multiprocessors = 1 + r.IntN(5) // few, so that a block of threads has several rows of small weights
		layers := 1 + r.IntN(3)
		if trial == 0 {
			layers = chainLayers + 2
		}
		half := typeName[T]() == "bf16"
		if _, ok := planChain(s.device, &size); ok == (half && size.Rank%2 != 0) {
			t.Fatalf("trial %d: %+v: a chain is %v", trial, size, ok)
		}
		normal := func(n int, scale float64) Array[float32] { return put[float32](t, s, numbers[float32](r, n, scale)) }
		weight := func(n, in int) Array[T] { return put[T](t, s, numbers[T](r, n, 1/float64(in)+0.1)) }
		b, taps := size.Batch*size.Channels, size.Width-1
		var chain []*Step[T]
		for i := range layers {
			step := size
			step.Norm, step.InProj, step.Conv = normal(size.Model, 0.5), weight(2*size.Channels*size.Model, size.Model), normal(size.Channels*size.Width, 0.5)
			step.XProj, step.DtProj = weight(size.columns()*size.Channels, size.Channels), weight(size.Channels*size.Rank, size.Rank)
			step.DtBias, step.ALog, step.D = normal(size.Channels, 0.5), normal(size.Channels*size.State, 0.5), normal(size.Channels, 0.5)
			step.OutProj = weight(size.Model*size.Channels, size.Channels)
			if (trial+i)%2 == 0 {
				step.InBias, step.ConvBias, step.OutBias = normal(2*size.Channels, 0.5), normal(size.Channels, 0.5), normal(size.Model, 0.5)
			}
			step.Context, step.Scan = normal(b*taps, 0.5), normal(b*size.State, 0.5)
			chain = append(chain, &step)
		}
		x := normal(size.Batch*size.Model, 0.5)
		results := func() (all []StepResult) {
			for range chain {
				all = append(all, StepResult{blank[float32](t, s, x.Len()), blank[float32](t, s, b*taps), blank[float32](t, s, b*size.State)})
			}
			return all
		}
		run := func(kernels int, to []StepResult) {
			s.device.kernels = kernels
			chain[0].X = x
			do(t, StepChain(s, chain, to))
		}
		values := func(of []StepResult) (all [][]float64) {
			for _, a := range of {
				all = append(all, get(t, s, a.Context), get(t, s, a.Scan))
			}
			return append(all, get(t, s, of[layers-1].Y))
		}
		plain, got := results(), results()
		run(70, plain)
		run(80, got)
		want, first := values(plain), values(got)
		for i := range want {
			near(t, fmt.Sprintf("trial %d, %d steps, batch %d, model %d, channels %d, state %d, width %d, rank %d: result %d", trial, layers, size.Batch,
				size.Model, size.Channels, size.State, size.Width, size.Rank, i), first[i], want[i], 1e-4)
		}
		same := func(name string, got [][]float64) {
			for i := range got {
				if !slices.Equal(got[i], first[i]) {
					t.Errorf("trial %d, %s: result %d differs", trial, name, i)
				}
			}
		}
		if layers < chainLayers { // the rounding of activations to bfloat16 adds up
			many, tolerance := results(), 1e-4
			if typeName[T]() == "bf16" {
				tolerance = 0.02
			}
			for i, step := range chain {
				step.X = x
				if i > 0 {
					step.X = many[i-1].Y
				}
				do(t, step.many(s, many[i]))
			}
			for i, v := range values(many) {
				near(t, fmt.Sprintf("trial %d: result %d of many sequences", trial, i), v, want[i], tolerance)
			}
		}
		c, err := s.Capture(func() error { chain[0].X = x; return StepChain(s, chain, got) })
		do(t, err, c.Launch(s))
		same("captured", values(got))
		do(t, c.Close())
		for i, step := range chain {
			got[i].Context, got[i].Scan = step.Context, step.Scan
		}
		got[layers-1].Y = x
		run(80, got)
		same("in place", values(got))
	}
}
