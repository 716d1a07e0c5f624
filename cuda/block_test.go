package cuda

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/kernel"
)

// TestBlock compares the results and gradients of a block with those of the host in float64, for random sets of options.
func TestBlock(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testBlock[float32](t, s, Strict, 1, 1e-5) }, func(t *testing.T) { testBlock[BFloat16](t, s, BF16, 1, 0.04) })
	t.Run("narrow", func(t *testing.T) { // sizes for which there are products of ours
		split(t, 17)
		testBlock[float32](t, s, Strict, 16, 1e-5)
		group(t, 17)
		testBlock[float32](t, s, Strict, 16, 1e-5)
	})
	t.Run("fp16x3", func(t *testing.T) {
		eager(t, 48, 1<<30)
		testBlock[float32](t, s, FP16x3, 1, 1e-5)
	})
	t.Run("tf32", func(t *testing.T) { testBlock[float32](t, s, TF32, 1, 0.01) })
}

// testBlock draws sizes that are multiples of each.
func testBlock[T Activation](t *testing.T, s *Stream, p Precision, each int, tol float64) {
	r := rand.New(rand.NewPCG(12, 12))
	coin := func() bool { return r.IntN(2) == 0 }
	for trial := range 12 / (1 + each/8) {
		k := kernel.Block[float64]{
			Batch: 1 + r.IntN(3), Length: 1 + r.IntN(70), Model: each * (1 + r.IntN(40/each)), Channels: each * (1 + r.IntN(70/each)), State: 1 + r.IntN(16),
			Width: []int{4, 4, 1, 2}[r.IntN(4)], Rank: 1 + r.IntN(6), Eps: 1e-5, Gemm: gonum.Implementation{}.Dgemm,
		}
		if each > 1 && trial%2 == 0 {
			k.Rank, k.State = 4, 8+2*(trial%5) // sizes for which step sizes are computed with x_proj
		}
		rows, columns := k.Batch*k.Length, k.Rank+2*k.State
		small := func(n, in int) []float64 { return numbers[T](r, n, 1/float64(in)+0.1) }
		k.X, k.Norm = numbers[float32](r, rows*k.Model, 1), numbers[float32](r, k.Model, 1)
		k.InProj, k.Conv = small(2*k.Channels*k.Model, k.Model), numbers[float32](r, k.Channels*k.Width, 0.5)
		k.XProj, k.DtProj = small(columns*k.Channels, k.Channels), small(k.Channels*k.Rank, k.Rank)
		k.DtBias, k.ALog = numbers[float32](r, k.Channels, 0.1), numbers[float32](r, k.Channels*k.State, 0.5)
		k.D, k.OutProj = numbers[float32](r, k.Channels, 1), small(k.Model*k.Channels, k.Channels)
		optional := func(n int) []float64 {
			if coin() {
				return nil
			}
			return numbers[float32](r, n, 0.5)
		}
		k.InBias, k.ConvBias, k.OutBias = optional(2*k.Channels), optional(k.Channels), optional(k.Model)
		k.Initial = optional(k.Batch * k.Channels * k.State)
		states := k.Batch * (k.Width - 1) * k.Channels
		if states > 0 {
			k.Context = optional(states)
		}
		var start []uint8
		if coin() {
			k.Start, start = make([]bool, rows), make([]uint8, rows)
			for i := range start {
				if r.IntN(9) == 0 {
					k.Start[i], start[i] = true, 1
				}
			}
		}
		dy, dfinal := numbers[float32](r, rows*k.Model, 1), optional(k.Batch*k.Channels*k.State)
		var dcontext []float64
		if states > 0 {
			dcontext = optional(states)
		}
		y, context, final := make([]float64, rows*k.Model), make([]float64, states), make([]float64, k.Batch*k.Channels*k.State)
		k.Forward(y, context, final, kernel.BlockValues[float64]{})
		g := kernel.BlockGrad[float64]{
			X: like[float64](k.X), Context: like[float64](k.Context), Initial: like[float64](k.Initial),
			BlockWeights: kernel.MapBlock(k.BlockWeights, func(_ kernel.BlockWeight, w []float64) []float64 { return like[float64](w) }),
		}
		k.Backward(dy, dcontext, dfinal, kernel.BlockValues[float64]{}, &g)

		up := func(v []float64) Array[float32] { return put[float32](t, s, v) }
		to := func(v []float64) Array[float32] {
			if v == nil {
				return Array[float32]{}
			}
			return blank[float32](t, s, len(v))
		}
		b := &Block[T]{
			Batch: k.Batch, Length: k.Length, Model: k.Model, Channels: k.Channels, State: k.State, Width: k.Width, Rank: k.Rank,
			Eps: 1e-5, Precision: p, X: up(k.X), Norm: up(k.Norm), InProj: put[T](t, s, k.InProj), Conv: up(k.Conv),
			XProj: put[T](t, s, k.XProj), DtProj: put[T](t, s, k.DtProj), DtBias: up(k.DtBias), ALog: up(k.ALog), D: up(k.D),
			OutProj: put[T](t, s, k.OutProj), InBias: up(k.InBias), ConvBias: up(k.ConvBias), OutBias: up(k.OutBias),
			Context: up(k.Context), Initial: up(k.Initial),
		}
		if start != nil {
			b.Start = putInts(t, s, start)
		}
		ay, acontext, afinal := blank[float32](t, s, len(y)+trial%2).Slice(trial%2, len(y)), to(context), to(final) // in every second trial not at a multiple of 16 bytes
		ady, adcontext, adfinal := up(dy), up(dcontext), up(dfinal)
		on := &BlockGrad{
			X: to(k.X), Norm: to(k.Norm), InProj: to(k.InProj), Conv: to(k.Conv), XProj: to(k.XProj), DtProj: to(k.DtProj), DtBias: to(k.DtBias),
			ALog: to(k.ALog), D: to(k.D), OutProj: to(k.OutProj), InBias: to(k.InBias), ConvBias: to(k.ConvBias), OutBias: to(k.OutBias),
			Context: to(k.Context), Initial: to(k.Initial),
		}
		pairs := func() map[string][2][]float64 {
			m := map[string][2][]float64{}
			add := func(name string, a Array[float32], v []float64) { m[name] = [2][]float64{get(t, s, a), v} }
			add("y", ay, y)
			add("context", acontext, context)
			add("final", afinal, final)
			add("dX", on.X, g.X)
			add("dNorm", on.Norm, g.Norm)
			add("dInProj", on.InProj, g.InProj)
			add("dConv", on.Conv, g.Conv)
			add("dXProj", on.XProj, g.XProj)
			add("dDtProj", on.DtProj, g.DtProj)
			add("dDtBias", on.DtBias, g.DtBias)
			add("dALog", on.ALog, g.ALog)
			add("dD", on.D, g.D)
			add("dOutProj", on.OutProj, g.OutProj)
			add("dInBias", on.InBias, g.InBias)
			add("dConvBias", on.ConvBias, g.ConvBias)
			add("dOutBias", on.OutBias, g.OutBias)
			add("dContext", on.Context, g.Context)
			add("dInitial", on.Initial, g.Initial)
			return m
		}
		run := func() map[string][2][]float64 {
			kept, err := b.Forward(s, ay, acontext, afinal, true)
			do(t, err)
			before := b.X
			if trial%3 == 2 { // the same numbers, but not at a multiple of 16 bytes
				b.X = up(append([]float64{0}, k.X...)).Slice(1, len(k.X))
			}
			do(t, b.Backward(s, kept, ady, adcontext, adfinal, on))
			b.X = before
			kept.Free()
			return pairs()
		}
		first := run()
		for name, v := range first {
			near(t, fmt.Sprintf("trial %d, batch %d, length %d, model %d, channels %d, state %d, width %d, rank %d, start %v: %s", trial,
				k.Batch, k.Length, k.Model, k.Channels, k.State, k.Width, k.Rank, start != nil, name), v[0], v[1], tol)
		}
		for range 3 {
			for name, v := range run() {
				if !slices.Equal(v[0], first[name][0]) {
					t.Errorf("trial %d: %s differs in a second run", trial, name)
				}
			}
		}
		if _, err := b.Forward(s, ay, acontext, afinal, false); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(get(t, s, ay), first["y"][0]) {
			t.Errorf("trial %d: y differs without keep", trial)
		}
	}
}

// Memory has all arrays of a BlockKept: those that it leaves out would be free while they are used (operator.Steady).
func TestBlockKeptMemory(t *testing.T) {
	var k BlockKept[float32]
	if got, want := len(k.Memory()), reflect.TypeOf(k).NumField(); got != want {
		t.Errorf("%d arrays, want %d, one for each field", got, want)
	}
}
