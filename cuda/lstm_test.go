package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/kernel"
)

// TestLSTM compares results and gradients with those of the host in float64, for random sets of options. Batches of more than one group,
// widths of several blocks, and recurrent products that need more than one piece of shared memory are among them.
func TestLSTM(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(26, 26))
	coin := func() bool { return r.IntN(2) == 0 }
	sizes := [][3]int{{1, 1, 1}, {1, 9, 40}, {2, 1, 33}, {9, 12, 20}, {17, 5, 7}, {2, 2, 264}}
	if !testing.Short() {
		sizes = append(sizes, [3]int{2, 2, 1030}, [3]int{1, 2, 2060}, [3]int{5, 30, 64})
	}
	for range times(8, 2) {
		sizes = append(sizes, [3]int{1 + r.IntN(20), 1 + r.IntN(20), 1 + r.IntN(50)})
	}
	for _, size := range sizes {
		batch, length, width := size[0], size[1], size[2]
		l := kernel.LSTM[float64]{Batch: batch, Length: length, Channels: width, Z: numbers[float32](r, batch*length*4*width, 1),
			R: numbers[float32](r, 4*width*width, 1/float64(width))}
		optional := func(n int) []float64 {
			if coin() {
				return nil
			}
			return numbers[float32](r, n, 1)
		}
		l.H, l.C = optional(batch*width), optional(batch*width)
		var start Array[uint8]
		if coin() {
			l.Start = make([]bool, batch*length)
			marks := make([]uint8, batch*length)
			for i := range marks {
				if r.IntN(5) == 0 {
					l.Start[i], marks[i] = true, 1
				}
			}
			start = putInts(t, s, marks)
		}
		dy, dnextH, dnextC := numbers[float32](r, batch*length*width, 1), optional(batch*width), optional(batch*width)
		y, nextH, nextC := make([]float64, len(dy)), make([]float64, batch*width), make([]float64, batch*width)
		dz, dr, dh, dc := like[float64](l.Z), like[float64](l.R), like[float64](l.H), like[float64](l.C)
		l.Forward(y, nextH, nextC)
		l.Backward(dy, dnextH, dnextC, dz, dr, dh, dc)

		up := func(v []float64) Array[float32] { return put[float32](t, s, v) }
		to := func(v []float64) Array[float32] {
			if v == nil {
				return Array[float32]{}
			}
			return blank[float32](t, s, len(v))
		}
		on := &LSTM{Batch: batch, Length: length, Channels: width, Z: up(l.Z), R: up(l.R), H: up(l.H), C: up(l.C), Start: start}
		ay, anextH, anextC, adz, adr, adh, adc := to(y), to(nextH), to(nextC), to(dz), to(dr), to(dh), to(dc)
		ady, adnextH, adnextC := up(dy), up(dnextH), up(dnextC)
		what := fmt.Sprintf("batch %d, length %d, width %d, h %v, c %v, start %v, dnext %v %v: ", batch, length, width, l.H != nil, l.C != nil, l.Start != nil,
			dnextH != nil, dnextC != nil)
		run := func() [][]float64 {
			kept, err := on.Forward(s, ay, anextH, anextC, true)
			do(t, err)
			do(t, on.Backward(s, kept, ady, adnextH, adnextC, adz, adr, adh, adc))
			kept.Free()
			return [][]float64{get(t, s, ay), get(t, s, anextH), get(t, s, anextC), get(t, s, adz), get(t, s, adr), get(t, s, adh), get(t, s, adc)}
		}
		first := run()
		for i, want := range [][]float64{y, nextH, nextC, dz, dr, dh, dc} {
			near(t, what+[]string{"y", "nextH", "nextC", "dz", "dr", "dh", "dc"}[i], first[i], want, 1e-5)
		}
		for i, again := range run() {
			if !slices.Equal(again, first[i]) {
				t.Errorf("%sresult %d differs in a second run", what, i)
			}
		}
		_, err := on.Forward(s, ay, Array[float32]{}, Array[float32]{}, false)
		do(t, err)
		if !slices.Equal(get(t, s, ay), first[0]) {
			t.Errorf("%sy differs without keep", what)
		}
	}
}

// TestLSTMPrecisions compares the gradient of the recurrent weight in each precision. Absent gradients of results count as zeros.
func TestLSTMPrecisions(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(27, 27))
	const batch, length, width = 2, 6, 24
	z, weight, dnextH := put[float32](t, s, numbers[float32](r, batch*length*4*width, 1)), put[float32](t, s, numbers[float32](r, 4*width*width, 0.1)),
		put[float32](t, s, numbers[float32](r, batch*width, 1))
	var want []float64
	for p, tol := range []float64{0, 1e-6, 2e-3, 2e-2} {
		l := &LSTM{Batch: batch, Length: length, Channels: width, Precision: Precision(p), Z: z, R: weight}
		kept, err := l.Forward(s, blank[float32](t, s, batch*length*width), Array[float32]{}, Array[float32]{}, true)
		do(t, err)
		dr := blank[float32](t, s, 4*width*width)
		do(t, l.Backward(s, kept, Array[float32]{}, dnextH, Array[float32]{}, blank[float32](t, s, z.n), dr, Array[float32]{}, Array[float32]{}))
		kept.Free()
		got := get(t, s, dr)
		if p == 0 {
			want = got
		}
		near(t, Precision(p).String(), got, want, tol)
	}
}

// TestOperatorsOutOfMemory makes each allocation of the operators with working memory fail in turn.
func TestOperatorsOutOfMemory(t *testing.T) {
	limit := gputest.Allocations(t)
	s := open(t)
	f := func(n int) Array[float32] { return blank[float32](t, s, n) }
	none := Array[float32]{}
	do(t, (&Linear{Rows: 40, In: 4, Out: 9, X: f(160), Weight: f(36)}).Forward(s, f(360))) // makes cuBLAS's workspace
	l := &LSTM{Batch: 2, Length: 3, Channels: 4, Precision: BF16, Z: f(96), R: f(64)}
	y, dz, dr, dh := f(24), f(96), f(64), f(8)
	eachAllocationFails(t, s, limit, 7, func() error {
		kept, err := l.Forward(s, y, none, none, true)
		if err != nil {
			return err
		}
		defer kept.Free()
		return l.Backward(s, kept, y, none, none, dz, dr, dh, dh)
	})
	linear := &Linear{Rows: 40, In: 4, Out: 9, Precision: BF16, X: f(160), Weight: f(36)}
	out, dx, dweight, dbias := f(360), f(160), f(36), f(9)
	eachAllocationFails(t, s, limit, 3, func() error {
		return firstOf(linear.Forward(s, out), func() error { return linear.Backward(s, out, dx, dweight, dbias) })
	})
	c := &Conv[float32]{Batch: 2, Length: 3, Channels: 4, Width: 20, X: f(24), XStride: 4, Weight: f(80), SiLU: true}
	dw := f(80)
	eachAllocationFails(t, s, limit, 3, func() error {
		return firstOf(c.Forward(s, y, none), func() error { return c.Backward(s, y, none, y, 4, dw, none, none) })
	})
	g := &MinGRU{Batch: 2, Length: 3, Channels: 4, Z: f(24), Candidate: f(24)}
	p := &S4{Batch: 2, Length: 3, Channels: 4, Modes: 1, U: f(24), LogDelta: f(4), LogDecay: f(4), C: f(4)}
	into := &S4Grad{U: f(24), LogDelta: f(4), LogDecay: f(4), C: f(4)}
	for way, least := range map[s4Way]int{s4Recurrence: 3, s4Convolution: 7} { // with plans
		by(t, s, way)
		eachAllocationFails(t, s, limit, least, func() error {
			return firstOf(p.Forward(s, y, none), func() error { return p.Backward(s, y, none, into) })
		})
	}
	eachAllocationFails(t, s, limit, 1, func() error { return g.Backward(s, y, none, dz, dz, none) })
	b := &Block[float32]{Batch: 2, Length: 3, Model: 4, Channels: 4, State: 2, Width: 2, Rank: 1, X: f(24), Norm: f(4), InProj: f(32), Conv: f(8), XProj: f(20),
		DtProj: f(4), DtBias: f(4), ALog: f(8), D: f(4), OutProj: f(16)}
	of := &BlockGrad{X: f(24), Norm: f(4), InProj: f(32), Conv: f(8), XProj: f(20), DtProj: f(4), DtBias: f(4), ALog: f(8), D: f(4), OutProj: f(16)}
	eachAllocationFails(t, s, limit, 10, func() error {
		kept, err := b.Keep(s)
		if err != nil {
			return err
		}
		defer kept.Free()
		return b.Backward(s, kept, y, none, none, of)
	})
	h := &Head[float32]{Rows: 70, In: 1, Vocabulary: smallVocabulary + 1, X: f(70), Weight: f(smallVocabulary + 1), Targets: putInts(t, s, make([]int32, 70))}
	loss, dhidden, dhead := f(1), f(70), f(smallVocabulary+1)
	eachAllocationFails(t, s, limit, 2, func() error {
		g, err := h.Forward(s, loss, true)
		if err != nil {
			return err
		}
		defer g.Free()
		return g.Scale(s, loss, dhidden, dhead)
	})
	order := make([]int32, 130)
	for i := range order {
		order[i] = int32(i)
	}
	on, err := GridOrders(s, [][]int32{order})
	do(t, err)
	scans := &SS2D[float32]{Batch: 1, Cells: 130, Channels: 4, State: 3, Rank: 1, Directions: 1, Order: on, X: f(520), XProj: f(28), DtProj: f(4), DtBias: f(4), ALog: f(12), D: f(4)}
	cells, ofScans := f(520), &SS2DGrad{X: f(520), XProj: f(28), DtProj: f(4), DtBias: f(4), ALog: f(12), D: f(4)}
	eachAllocationFails(t, s, limit, 15, func() error {
		kept, err := scans.Forward(s, cells, true)
		if err != nil {
			return err
		}
		if kept.entries.Absent() {
			t.Error("a scan in chunks keeps no states that enter them")
		}
		defer kept.Free()
		return scans.Backward(s, kept, cells, ofScans)
	})
}

// firstOf returns err, or the error of next.
func firstOf(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}

// BenchmarkLSTM measures all steps of an LSTM. The floor is the time to copy what it reads and writes once, without the recurrent weight.
func BenchmarkLSTM(b *testing.B) {
	for _, n := range []struct{ batch, length, width int }{{1, 1024, 256}, {8, 1024, 256}, {8, 1024, 1024}, {64, 256, 512}} {
		b.Run(fmt.Sprintf("B%dL%dW%d", n.batch, n.length, n.width), func(b *testing.B) {
			s := open(b)
			rows := n.batch * n.length
			l := &LSTM{Batch: n.batch, Length: n.length, Channels: n.width, Precision: TF32, Z: zeros[float32](b, s, 4*rows*n.width),
				R: zeros[float32](b, s, 4*n.width*n.width)}
			y, dz, dr := zeros[float32](b, s, rows*n.width), zeros[float32](b, s, 4*rows*n.width), zeros[float32](b, s, 4*n.width*n.width)
			b.Run("forward", func(b *testing.B) {
				measure(b, s, 4*5*rows*n.width, func() error { _, err := l.Forward(s, y, Array[float32]{}, Array[float32]{}, false); return err })
			})
			b.Run("backward", func(b *testing.B) {
				kept, err := l.Forward(s, y, Array[float32]{}, Array[float32]{}, true)
				do(b, err)
				measure(b, s, 4*10*rows*n.width, func() error {
					return l.Backward(s, kept, y, Array[float32]{}, Array[float32]{}, dz, dr, Array[float32]{}, Array[float32]{})
				})
				kept.Free()
			})
		})
	}
}
