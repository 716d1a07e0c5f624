package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/gputest"
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
		if trial == 0 && typeName[T]() == "float" { // many sequences, four at a time
			k.Batch, k.State, k.Rank = 21, 12, 68
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

// TestStepChain compares the kernels of compute capability 8.0 and newer for chains of steps (one launch in float32, tensor cores in bfloat16), and
// those of many sequences, with the kernels that every device has, for random sizes; and chains with themselves, in place and captured, bit for bit.
func TestStepChain(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testStepChain[float32](t, s) }, func(t *testing.T) { testStepChain[BFloat16](t, s) })
}

func testStepChain[T Activation](t *testing.T, s *Stream) {
	if s.device.kernels < 80 {
		t.Skip("the device uses kernels of compute capability 7.0, which have no chain")
	}
	newest := s.device.kernels
	defer func(n int) { s.device.kernels, s.device.multiprocessors = newest, n }(s.device.multiprocessors)
	r := rand.New(rand.NewPCG(29, 29))
	half := typeName[T]() == "bf16"
	for trial := range times(14, 7) {
		size := Step[T]{
			Batch: 1 + r.IntN(10)*r.IntN(2), Model: 8 * (1 + r.IntN(5)), Channels: 8 * (1 + r.IntN(5)), State: 1 + r.IntN(20),
			Width: []int{4, 4, 1, 2, 16}[r.IntN(5)], Rank: 1 + r.IntN(6), Eps: 1e-5,
		}
		s.device.multiprocessors = 1 + r.IntN(5) // few, so that a block of threads has several rows of small weights
		layers := 1 + r.IntN(3)
		switch {
		case trial == 0:
			layers = chainLayers + 2
		case trial == 1 && half: // more of a row than a warp reads ahead
			size.Model, size.Channels = 1608, 24
		case trial == 2 && half:
			size.Model, size.Channels, size.Rank = 24, 1608, 98
		case trial == 3: // many sequences, four at a time
			size.Batch, size.State, size.Rank = 10, 16, 8
		}
		if _, ok := planChain(s.device, &size); ok == half {
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
		want := values(plain)
		var first [][]float64
		for _, kernels := range []int{80, newest} {
			run(kernels, got)
			first = values(got)
			for i := range want {
				near(t, fmt.Sprintf("trial %d, %d steps, batch %d, model %d, channels %d, state %d, width %d, rank %d, kernels %d: result %d", trial, layers,
					size.Batch, size.Model, size.Channels, size.State, size.Width, size.Rank, kernels, i), first[i], want[i], 1e-4)
			}
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
			if half {
				tolerance = 0.02
			}
			for name, queue := range map[string]func(step *Step[T], to StepResult) error{
				"many": func(step *Step[T], to StepResult) error { return step.many(s, to, step == chain[0]) },
				"rows": func(step *Step[T], to StepResult) error {
					if !step.isFew(s.device) {
						return step.many(s, to, step == chain[0])
					}
					return step.rows(s, to, step == chain[0])
				},
			} {
				for i, step := range chain {
					step.X = x
					if i > 0 {
						step.X = many[i-1].Y
					}
					do(t, queue(step, many[i]))
				}
				for i, v := range values(many) {
					near(t, fmt.Sprintf("trial %d: result %d of %s", trial, i, name), v, want[i], tolerance)
				}
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
		run(newest, got)
		same("in place", values(got))
	}
}

// TestStepFewAlone checks that a sequence in bfloat16 does not depend on the others, bit for bit.
func TestStepFewAlone(t *testing.T) {
	s := open(t)
	if s.device.kernels < 80 {
		t.Skip("the device uses kernels of compute capability 7.0, which compute a sequence in groups of different sizes")
	}
	r := rand.New(rand.NewPCG(37, 37))
	const batch, model, channels, state, rank, width = 11, 48, 96, 16, 3, 4
	normal := func(n int, scale float64) Array[float32] { return put[float32](t, s, numbers[float32](r, n, scale)) }
	weight := func(n int) Array[BFloat16] { return put[BFloat16](t, s, numbers[BFloat16](r, n, 0.2)) }
	all := &Step[BFloat16]{
		Batch: batch, Model: model, Channels: channels, State: state, Width: width, Rank: rank, Eps: 1e-5, X: normal(batch*model, 1), Norm: normal(model, 1),
		Conv: normal(channels*width, 0.5), DtBias: normal(channels, 0.5), ALog: normal(channels*state, 0.5), D: normal(channels, 0.5),
		InProj: weight(2 * channels * model), XProj: weight((rank + 2*state) * channels), DtProj: weight(channels * rank), OutProj: weight(model * channels),
		Context: normal(batch*(width-1)*channels, 1), Scan: normal(batch*channels*state, 1),
	}
	run := func(step *Step[BFloat16]) [][]float64 {
		y, context, scan := blank[float32](t, s, step.X.Len()), blank[float32](t, s, step.Context.Len()), blank[float32](t, s, step.Scan.Len())
		do(t, step.Forward(s, y, context, scan))
		return [][]float64{get(t, s, y), get(t, s, context), get(t, s, scan)}
	}
	want := run(all)
	for b := range batch {
		row := func(a Array[float32]) Array[float32] { n := a.Len() / batch; return a.Slice(b*n, n) }
		one := *all
		one.Batch, one.X, one.Context, one.Scan = 1, row(all.X), row(all.Context), row(all.Scan)
		for i, got := range run(&one) {
			n := len(want[i]) / batch
			if !slices.Equal(got, want[i][b*n:][:n]) {
				t.Errorf("sequence %d, result %d is not the same alone", b, i)
			}
		}
	}
}

// TestFollow checks that what follows a step begins early, if its kernel waits for the one before, and that nothing does after other work, which may write weights.
func TestFollow(t *testing.T) {
	s := open(t)
	if !s.device.overlaps {
		t.Skip("on the device no kernel begins before the one before it has ended")
	}
	const model = 16
	x, w, y := zeros[float32](t, s, model), zeros[float32](t, s, model), zeros[float32](t, s, model)
	half, index := zeros[BFloat16](t, s, model*model), putInts(t, s, make([]int32, 1))
	step := &Step[BFloat16]{
		Batch: 1, Model: model, Channels: model, State: 4, Width: 1, Rank: 4, Eps: 1e-5, X: x, Norm: w, Conv: w, DtBias: w, ALog: zeros[float32](t, s, 4*model), D: w,
		InProj: zeros[BFloat16](t, s, 2*model*model), XProj: zeros[BFloat16](t, s, 12*model), DtProj: zeros[BFloat16](t, s, 4*model), OutProj: half,
		Context: zeros[float32](t, s, 0), Scan: zeros[float32](t, s, 4*model),
	}
	head := &Linear{Rows: 1, In: model, Out: model, Precision: BF16, X: x, Weight: zeros[float32](t, s, model*model), Half: half}
	o, err := NewOutbox[int32](s, 1)
	do(t, err)
	defer o.Close()
	after := []struct {
		name  string
		queue func() error
	}{
		{"the norm", func() error { return RMSNormForward(s, 1, model, 1e-5, x, w, y) }},
		{"the head", func() error { return head.Forward(s, y) }},
		{"the largest logit", func() error { return Largest(s, 1, model, y, index) }},
		{"the outbox", func() error { return o.Send(index) }},
	}
	for _, steps := range []bool{true, false} {
		if do(t, x.Fill(s, 0)); steps {
			do(t, step.Forward(s, y, step.Context, step.Scan))
		}
		for _, f := range after {
			if do(t, f.queue()); s.early != steps {
				t.Errorf("%s begins early: %v, want %v", f.name, s.early, steps)
			}
		}
		if do(t, RMSNormForward(s, 1, 5, 1e-5, x.Slice(0, 5), w.Slice(0, 5), y.Slice(0, 5))); s.early {
			t.Error("the norm of a width that is no multiple of four begins early, want after the kernel before, for which it does not wait")
		}
	}
}

// TestFewProduct compares products of bfloat16 weights with few vectors with products in float64.
func TestFewProduct(t *testing.T) {
	s := open(t)
	if s.device.kernels < 80 {
		t.Skip("the device uses kernels of compute capability 7.0, which have no such product")
	}
	defer func(n int) { s.device.multiprocessors = n }(s.device.multiprocessors)
	r := rand.New(rand.NewPCG(41, 41))
	for trial := range times(20, 8) {
		batch, in, out := 1+r.IntN(20), 8*(1+r.IntN(30)), 1+r.IntN(200)
		if trial%4 == 0 {
			in = 1536 + 8*r.IntN(30)
		}
		s.device.multiprocessors = 1 + trial%2*1000 // one: some tiles for each block of threads
		x, w := numbers[float32](r, batch*in, 1), numbers[BFloat16](r, out*in, 1)
		bias, residual := numbers[float32](r, out, 1), numbers[float32](r, batch*out, 1)
		want := slices.Clone(residual)
		for b := range batch {
			for o := range out {
				for i := range in {
					want[b*out+o] += x[b*in+i] * w[o*in+i]
				}
				want[b*out+o] += bias[o]
			}
		}
		y := put[float32](t, s, residual)
		do(t, fewProduct(s, false, batch, in, out, put[float32](t, s, x), put[BFloat16](t, s, w), put[float32](t, s, bias), y, y))
		near(t, fmt.Sprintf("batch %d, in %d, out %d", batch, in, out), get(t, s, y), want, 2e-5)
	}
}

// TestStepChainRefused checks that a device without cooperative launches, and one that refuses a chain, compute the steps one by one, and say why.
func TestStepChainRefused(t *testing.T) {
	refuse := gputest.Cooperative(t)
	if open(t).device.kernels < 80 {
		t.Skip("the kernels of a chain are for compute capability 8.0")
	}
	const model, channels, state, rank, width = 16, 24, 5, 3, 4
	results := func(before, after int) (y []float64, apart string) {
		refuse(before)
		s := open(t)
		refuse(after)
		r := rand.New(rand.NewPCG(43, 43))
		normal := func(n int) Array[float32] { return put[float32](t, s, numbers[float32](r, n, 0.3)) }
		step := func() *Step[float32] {
			return &Step[float32]{
				Batch: 2, Model: model, Channels: channels, State: state, Width: width, Rank: rank, Eps: 1e-5, X: normal(2 * model), Norm: normal(model),
				Conv: normal(channels * width), DtBias: normal(channels), ALog: normal(channels * state), D: normal(channels), InProj: normal(2 * channels * model),
				XProj: normal((rank + 2*state) * channels), DtProj: normal(channels * rank), OutProj: normal(model * channels),
				Context: normal(2 * (width - 1) * channels), Scan: normal(2 * channels * state),
			}
		}
		steps := []*Step[float32]{step(), step()}
		to := make([]StepResult, 2)
		for i := range to {
			to[i] = StepResult{blank[float32](t, s, 2*model), blank[float32](t, s, 2*(width-1)*channels), blank[float32](t, s, 2*channels*state)}
		}
		x := steps[0].X
		for range 2 { // the second time it is known
			steps[0].X = x
			do(t, StepChain(s, steps, to))
		}
		return get(t, s, to[1].Y), s.device.Launches().Apart
	}
	want, why := results(-1, -1)
	if why != "" {
		t.Errorf("a chain in one launch: %s", why)
	}
	for text, got := range map[string]func() ([]float64, string){
		"no cooperative launches":                 func() ([]float64, string) { return results(0, 0) },
		"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": func() ([]float64, string) { return results(-1, 0) },
	} {
		y, why := got()
		near(t, text, y, want, 1e-5)
		if !strings.Contains(why, text) {
			t.Errorf("the reason is %q, want %s", why, text)
		}
	}
}

// A rank for whose numbers a block has no shared memory takes the kernels of many sequences.
func TestStepOfLargeRank(t *testing.T) {
	d := open(t).device
	step := Step[BFloat16]{Model: 8, Channels: 8, State: 1, Rank: 8}
	if step.isFew(d) != (d.kernels >= 80) {
		t.Errorf("rank 8 is few: %t", step.isFew(d))
	}
	if step.Rank = d.shared / 4; step.isFew(d) {
		t.Errorf("rank %d is few, with %d bytes of shared memory", step.Rank, d.shared)
	}
}
