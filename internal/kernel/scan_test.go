package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/cpu"
)

// scanCase describes a scan to be filled with random operands.
type scanCase struct {
	batch, length, channels, state int
	bGroups, cGroups               int
	d, z, bias, initial, start     bool
	softplus, reverse              bool
	directions                     int // 0 for a scan without orders
	oneU, merge                    bool
}

func (c scanCase) make64(seed uint64) *Scan[float64] {
	r := rand.New(rand.NewPCG(seed, 1))
	normal := func(n int, scale float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = r.NormFloat64() * scale
		}
		return v
	}
	size := c.batch * c.length * c.channels
	projection := func(groups int) Projection[float64] {
		if groups == 0 {
			return Projection[float64]{Data: normal(c.channels*c.state, 1)}
		}
		return Projection[float64]{Data: normal(c.batch*c.length*groups*c.state, 1), Groups: groups}
	}
	ofU := size
	if c.oneU {
		ofU /= c.directions
	}
	s := &Scan[float64]{
		Batch: c.batch, Length: c.length, Channels: c.channels, State: c.state, OneU: c.oneU, Merge: c.merge,
		U: normal(ofU, 1), Delta: normal(size, 0.5), A: normal(c.channels*c.state, 1),
		B: projection(c.bGroups), C: projection(c.cGroups), Softplus: c.softplus, Reverse: c.reverse,
	}
	for range c.directions {
		var order []int32
		for _, cell := range r.Perm(c.length) {
			order = append(order, int32(cell))
		}
		s.Orders = append(s.Orders, order)
	}
	for i, v := range s.A {
		s.A[i] = -math.Abs(v)
	}
	if !c.softplus {
		for i, v := range s.Delta {
			s.Delta[i] = math.Abs(v)
		}
	}
	if c.d {
		s.D = normal(c.channels, 1)
	}
	if c.z {
		s.Z = normal(size, 1)
	}
	if c.bias {
		s.DeltaBias = normal(c.channels, 0.1)
	}
	if c.initial {
		s.Initial = normal(c.batch*c.channels*c.state, 1)
	}
	if c.start {
		s.Start = make([]bool, c.batch*c.length)
		for i := range s.Start {
			s.Start[i] = r.IntN(5) == 0
		}
	}
	return s
}

func convertAll[T Float](v []float64) []T {
	if v == nil {
		return nil
	}
	w := make([]T, len(v))
	for i, x := range v {
		w[i] = T(x)
	}
	return w
}

func narrow(v []float64) []float32 { return convertAll[float32](v) }

func (s *Scan[T]) narrow(v *Scan[float64]) *Scan[float32] { return convert[float32](v) }

func convert[T Float](v *Scan[float64]) *Scan[T] {
	return &Scan[T]{
		Batch: v.Batch, Length: v.Length, Channels: v.Channels, State: v.State,
		U: convertAll[T](v.U), Delta: convertAll[T](v.Delta), A: convertAll[T](v.A),
		B: Projection[T]{convertAll[T](v.B.Data), v.B.Groups, v.B.Stride}, C: Projection[T]{convertAll[T](v.C.Data), v.C.Groups, v.C.Stride},
		D: convertAll[T](v.D), Z: convertAll[T](v.Z), ZStride: v.ZStride, DeltaBias: convertAll[T](v.DeltaBias), Initial: convertAll[T](v.Initial),
		Start: v.Start, Softplus: v.Softplus, Reverse: v.Reverse, Orders: v.Orders, OneU: v.OneU, Merge: v.Merge,
	}
}

func like[T Float](v []T) []T {
	if v == nil {
		return nil
	}
	w := make([]T, len(v))
	for i := range w {
		w[i] = T(math.NaN()) // every element must be written
	}
	return w
}

func (s *Scan[T]) newGrad() *ScanGrad[T] {
	return &ScanGrad[T]{
		U: like(s.U), Delta: like(s.Delta), A: like(s.A), B: like(s.B.Data), C: like(s.C.Data),
		D: like(s.D), Z: like(s.Z), DeltaBias: like(s.DeltaBias), Initial: like(s.Initial),
	}
}

func (g *ScanGrad[T]) named() map[string][]T {
	return map[string][]T{
		"U": g.U, "Delta": g.Delta, "A": g.A, "B": g.B, "C": g.C,
		"D": g.D, "Z": g.Z, "DeltaBias": g.DeltaBias, "Initial": g.Initial,
	}
}

// far returns an error that names an element of got whose distance from want exceeds tol times the largest magnitude of want, or tol if that
// is larger. The lower bound is for sums whose terms, of magnitude 1, cancel: their errors do not.
func far[T, U Float](got []T, want []U, tol float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d elements, want %d", len(got), len(want))
	}
	scale := 1.0
	for _, v := range want {
		scale = max(scale, math.Abs(float64(v)))
	}
	for i := range got {
		if d := math.Abs(float64(got[i]) - float64(want[i])); !(d <= tol*scale) {
			return fmt.Errorf("element %d is %v, want %v (largest magnitude %g)", i, got[i], want[i], scale)
		}
	}
	return nil
}

func drawScan(t *rapid.T) scanCase {
	c := scanCase{
		batch:   rapid.IntRange(1, 3).Draw(t, "batch"),
		length:  rapid.SampledFrom([]int{1, 2, 3, 7, 63, 64, 65, 130}).Draw(t, "length"),
		state:   rapid.SampledFrom([]int{1, 2, 3, 5, 8, 15, 16, 17, 32, 64, 128}).Draw(t, "state"),
		d:       rapid.Bool().Draw(t, "D"),
		z:       rapid.Bool().Draw(t, "Z"),
		bias:    rapid.Bool().Draw(t, "bias"),
		initial: rapid.Bool().Draw(t, "initial"),
		start:   rapid.Bool().Draw(t, "start"),

		softplus: rapid.Bool().Draw(t, "softplus"),
		reverse:  rapid.Bool().Draw(t, "reverse"),
	}
	perGroup := rapid.SampledFrom([]int{1, 2, 15, 16, 17, 70}).Draw(t, "channels per group")
	groups := rapid.SampledFrom([]int{1, 2, 3}).Draw(t, "groups")
	c.channels = perGroup * groups
	c.bGroups = rapid.SampledFrom([]int{0, 1, groups}).Draw(t, "groups of B")
	c.cGroups = rapid.SampledFrom([]int{0, 1, groups}).Draw(t, "groups of C")
	if rapid.Bool().Draw(t, "orders") {
		c.directions, c.bGroups, c.cGroups, c.z, c.start, c.reverse = groups, groups, groups, false, false, false
		c.oneU, c.merge = rapid.Bool().Draw(t, "one U"), rapid.Bool().Draw(t, "merge")
	}
	return c
}

func TestScanAgainstReference(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			c := drawScan(t)
			if c.state > 17 { // large states are slow
				c.length, c.channels = min(c.length, 40), min(c.channels, 70)
				c.bGroups, c.cGroups, c.directions = min(c.bGroups, 1), min(c.cGroups, 1), min(c.directions, 1)
			}
			s := c.make64(rapid.Uint64().Draw(t, "seed"))
			if level == cpu.Generic { // float64 has no other level
				compareWithReference(t, s, s, 1e-12)
			}
			compareWithReference(t, s.narrow(s), s, 2e-5)
		})
	})
}

// compareWithReference compares the results of s with those of the reference for ref, the same problem in float64.
func compareWithReference[T Float](t interface{ Fatalf(string, ...any) }, s *Scan[T], ref *Scan[float64], tol float64) {
	size := ref.Batch * ref.Length * ref.Channels
	if ref.Merge {
		size /= len(ref.Orders)
	}
	state := ref.Batch * ref.Channels * ref.State
	wantY, wantFinal := make([]float64, size), make([]float64, state)
	states := ref.Reference(wantY, wantFinal)

	y, final := like(make([]T, size)), like(make([]T, state))
	s.Forward(y, final)
	if err := far(y, wantY, tol); err != nil {
		t.Fatalf("y: %v", err)
	}
	if err := far(final, wantFinal, tol); err != nil {
		t.Fatalf("final state: %v", err)
	}

	r := rand.New(rand.NewPCG(7, 7))
	dy, dfinal := make([]float64, size), make([]float64, state)
	dyT, dfinalT := make([]T, size), make([]T, state)
	for i := range dy {
		dyT[i] = T(r.NormFloat64())
		dy[i] = float64(dyT[i])
	}
	for i := range dfinal {
		dfinalT[i] = T(r.NormFloat64())
		dfinal[i] = float64(dfinalT[i])
	}
	want, got := ref.newGrad(), s.newGrad()
	ref.ReferenceBackward(states, dy, dfinal, want)
	s.Backward(dyT, dfinalT, got)
	for name, g := range got.named() {
		if err := far(g, want.named()[name], tol); err != nil {
			t.Fatalf("gradient of %s: %v", name, err)
		}
	}
}

// A long scan with many blocks, whose gradients are sums over stripes, tiles and the batch.
func TestScanAgainstReferenceLong(t *testing.T) { eachLevel(t, scanAgainstReferenceLong) }

func scanAgainstReferenceLong(t *testing.T) {
	c := scanCase{batch: 2, length: 700, channels: 200, state: 4, bGroups: 1, cGroups: 2, d: true, z: true, bias: true,
		initial: true, start: true, softplus: true}
	s := c.make64(3)
	compareWithReference(t, s, s, 1e-12)
	compareWithReference(t, s.narrow(s), s, 2e-5)
	c = scanCase{batch: 1, length: 65, channels: 20, state: 256, bGroups: 1, d: true}
	s = c.make64(4)
	compareWithReference(t, s, s, 1e-12)
}

func TestScanBitIdentical(t *testing.T) { eachLevel(t, scanBitIdentical) }

func scanBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	c := scanCase{batch: 2, length: 150, channels: 100, state: 21, bGroups: 1, cGroups: 0, d: true, z: true, bias: true,
		initial: true, softplus: true}
	var s *Scan[float32]
	s = s.narrow(c.make64(5))
	run := func() (out [][]float32) {
		y, final := make([]float32, len(s.U)), make([]float32, len(s.Initial))
		s.Forward(y, final)
		g := s.newGrad()
		s.Backward(y, final, g)
		return [][]float32{y, final, g.U, g.Delta, g.A, g.B, g.C, g.D, g.Z, g.DeltaBias, g.Initial}
	}
	want, runs := run(), 5
	if testing.Short() { // under the race detector each run takes half a second
		runs = 1
	}
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for i := range runs {
			for j, got := range run() {
				if !slices.Equal(got, want[j]) {
					t.Fatalf("GOMAXPROCS %d, run %d: result %d differs", procs, i, j)
				}
			}
		}
	}
}

// Neither a NaN nor an infinity crosses a start, in either direction or pass.
func TestScanStartStopsNaN(t *testing.T) {
	t.Run("float64", scanStartStopsNaN[float64])
	eachLevel(t, scanStartStopsNaN[float32])
}

func scanStartStopsNaN[T Float](t *testing.T) {
	for _, reverse := range []bool{false, true} {
		c := scanCase{batch: 1, length: 6, channels: 3, state: 2, bGroups: 1, cGroups: 1, softplus: true, reverse: reverse}
		s := convert[T](c.make64(1))
		s.Start = []bool{true, false, false, true, false, false}
		bad, clean := 1, 4 // a step of the sequence with a NaN, and one of the sequence without
		if reverse {
			bad, clean = clean, bad
		}
		s.U[bad*3] = T(math.NaN())
		y := make([]T, 18)
		s.Forward(y, nil)
		if y[clean*3] != y[clean*3] || y[bad*3] == y[bad*3] {
			t.Errorf("reverse %v: y = %v", reverse, y)
		}
		s.U[bad*3] = 1
		dy := make([]T, 18)
		for i := range dy {
			dy[i] = 1
		}
		dy[clean*3] = T(math.NaN())
		g := s.newGrad()
		s.Backward(dy, nil, g)
		if g.U[bad*3] != g.U[bad*3] || g.U[clean*3] == g.U[clean*3] {
			t.Errorf("reverse %v: gradient of U = %v", reverse, g.U)
		}
	}
}

func TestExp32(t *testing.T) {
	for _, x := range []float32{float32(math.Inf(-1)), -200, -104, -88, -87, -1, -1e-10, 0, 1e-3, 1, 87.9, 88, 88.7, 89, float32(math.Inf(1))} {
		got, want := float64(exp32(x)), math.Exp(float64(x))
		if want > math.MaxFloat32 {
			want = math.Inf(1)
		}
		if got != want && !(math.Abs(got-want) <= 2.5e-7*want+1.5e-45) {
			t.Errorf("exp32(%v) = %v, want %v", x, got, want)
		}
	}
	if got := exp32(float32(math.NaN())); got == got {
		t.Errorf("exp32(NaN) = %v", got)
	}
	worst := 0.0
	for x := float32(-87); x < 88; x += 0.00137 {
		want := math.Exp(float64(x))
		worst = max(worst, math.Abs(float64(exp32(x))-want)/want)
	}
	if worst > 2.4e-7 { // two units in the last place
		t.Errorf("worst relative error %g", worst)
	}
}

func TestSoftplus32(t *testing.T) {
	worst, at := 0.0, float32(0)
	for x := float32(-87); x < 20.5; x += 0.000913 {
		want := math.Log1p(math.Exp(float64(x)))
		if x > 20 {
			want = float64(x)
		}
		if d := math.Abs(float64(softplus(x))-want) / want; d > worst {
			worst, at = d, x
		}
	}
	if worst > 3.6e-7 { // three units in the last place
		t.Errorf("worst relative error %g, at %v", worst, at)
	}
	for _, x := range []float32{float32(math.Inf(-1)), -104, -100, -88, 20, 21, 1e30, float32(math.Inf(1))} {
		want := float64(x)
		if x <= 20 {
			want = math.Log1p(math.Exp(want))
		}
		if got := float64(softplus(x)); got != want && !(math.Abs(got-want) <= 3.6e-7*want+1.5e-45) {
			t.Errorf("softplus(%v) = %v, want %v", x, got, want)
		}
	}
	if got := softplus(float32(math.NaN())); got == got {
		t.Errorf("softplus(NaN) = %v", got)
	}
	for _, x := range []float32{1 << 30, 1e30, float32(math.Inf(1))} {
		if got, want := log1p32(x), float32(math.Log1p(float64(x))); math.Abs(float64(got-want)) > 3.6e-7*math.Abs(float64(want)) {
			t.Errorf("log1p32(%v) = %v, want %v", x, got, want)
		}
	}
}

// BenchmarkScan measures the scan alone, at the sizes of a layer of a 130M model. ns/tdn is the time per step, channel and state.
func BenchmarkScan(b *testing.B) {
	for _, bench := range []struct {
		name string
		scanCase
	}{
		{"plain", scanCase{batch: 1, length: 1024, channels: 1536, state: 16, bGroups: 1, cGroups: 1}},
		{"small", scanCase{batch: 1, length: 256, channels: 64, state: 16, bGroups: 1, cGroups: 1}},
		{"full", scanCase{batch: 1, length: 1024, channels: 1536, state: 16, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, softplus: true}},
	} {
		var s *Scan[float32]
		s = s.narrow(bench.make64(1))
		y, g := make([]float32, len(s.U)), s.newGrad()
		per := float64(len(s.U) * s.State)
		b.Run(bench.name+"/forward", func(b *testing.B) {
			benchtest.Processors(b)
			for b.Loop() {
				s.Forward(y, nil)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/per, "ns/tdn")
		})
		b.Run(bench.name+"/backward", func(b *testing.B) {
			benchtest.Processors(b)
			for b.Loop() {
				s.Backward(y, nil, g)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/per, "ns/tdn")
		})
	}
}

// The garbage collector can read the arguments of a scan's assembly while it runs: no pointer there leaves its array. A program that has one ends.
func TestScanBesideCollector(t *testing.T) {
	const length, channels, state, room = 64, 32, 16, 10_000 // no whole pages, so that what follows an array is nobody's
	eachLevel(t, func(t *testing.T) {
		done := make(chan bool)
		defer func() { <-done }()
		var stop atomic.Bool
		defer stop.Store(true)
		go func() {
			defer close(done)
			for !stop.Load() {
				runtime.GC()
			}
		}()
		atEnd := func(n int) []float32 { return make([]float32, room)[room-n:] }
		for range 40 {
			s := &Scan[float32]{Batch: 1, Length: length, Channels: channels, State: state, U: atEnd(length * channels), Delta: atEnd(length * channels), A: atEnd(channels * state),
				B: Projection[float32]{Data: atEnd(length * state), Groups: 1}, C: Projection[float32]{Data: atEnd(length * state), Groups: 1}}
			s.States = atEnd(s.KeptStates())
			y := atEnd(length * channels)
			g := &ScanGrad[float32]{U: atEnd(len(y)), Delta: atEnd(len(y)), A: atEnd(len(s.A)), B: atEnd(length * state), C: atEnd(length * state)}
			for range 5 {
				s.Forward(y, nil)
				s.Backward(y, nil, g)
			}
		}
	})
}
