package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/gomamba/mamba/internal/kernel"
)

func sizeOfScanArgs() string { return itoa(int(unsafe.Sizeof(scanArgs{}))) }
func itoa(n int) string      { return strconv.Itoa(n) }

// problem is a scan on the host, in float64 for the reference.
type problem struct {
	kernel.Scan[float64]
	dy, dfinal []float64
}

// draw makes a random problem of those sizes, with each of the options as chosen by a coin.
func draw(r *rand.Rand, batch, length, perGroup, groups, state int) *problem {
	channels := perGroup * groups
	normal := func(n int, scale float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = float64(float32(r.NormFloat64() * scale)) // so that both sides begin with the same
		}
		return v
	}
	coin := func() bool { return r.IntN(2) == 0 }
	rows := batch * length
	projection := func() kernel.Projection[float64] {
		p := kernel.Projection[float64]{Groups: []int{0, 1, groups, 1}[r.IntN(4)]}
		if p.Groups == 0 {
			p.Data = normal(channels*state, 1)
			return p
		}
		if coin() {
			p.Stride = p.Groups*state + r.IntN(5)
		}
		p.Data = normal(rows*max(p.Stride, p.Groups*state), 1)
		return p
	}
	p := &problem{Scan: kernel.Scan[float64]{
		Batch: batch, Length: length, Channels: channels, State: state,
		U: normal(rows*channels, 1), Delta: normal(rows*channels, 0.5), A: normal(channels*state, 1),
		B: projection(), C: projection(), Softplus: coin(), Reverse: coin(),
	}}
	for i, v := range p.A {
		p.A[i] = -math.Abs(v)
	}
	if !p.Softplus {
		for i, v := range p.Delta {
			p.Delta[i] = math.Abs(v)
		}
	}
	if coin() {
		p.D = normal(channels, 1)
	}
	if coin() {
		if coin() {
			p.ZStride = channels + r.IntN(9)
		}
		p.Z = normal(rows*max(p.ZStride, channels), 1)
	}
	if coin() && p.Softplus {
		p.DeltaBias = normal(channels, 0.1)
	}
	if coin() {
		p.Initial = normal(batch*channels*state, 1)
	}
	if r.IntN(3) == 0 {
		p.Start = make([]bool, rows)
		for i := range p.Start {
			p.Start[i] = r.IntN(5) == 0
		}
	}
	p.dy = normal(rows*channels, 1)
	if coin() {
		p.dfinal = normal(batch*channels*state, 1)
	}
	return p
}

func (p *problem) String() string {
	return fmt.Sprintf("batch %d, length %d, channels %d, state %d, groups %d and %d, strides %d, %d and %d, D %v, Z %v, bias %v, "+
		"initial %v, dfinal %v, start %v, softplus %v, reverse %v", p.Batch, p.Length, p.Channels, p.State, p.B.Groups, p.C.Groups,
		p.B.Stride, p.C.Stride, p.ZStride, p.D != nil, p.Z != nil, p.DeltaBias != nil, p.Initial != nil, p.dfinal != nil,
		p.Start != nil, p.Softplus, p.Reverse)
}

// results are y, the final state and the gradients, in either precision.
type results[T kernel.Float] struct {
	y, final                      []T
	u, delta, a, b, c, d, z, bias []T
	initial                       []T
}

func (r *results[T]) each(f func(name string, v *[]T)) {
	for i, v := range []*[]T{&r.y, &r.final, &r.u, &r.delta, &r.a, &r.b, &r.c, &r.d, &r.z, &r.bias, &r.initial} {
		f([]string{"y", "final", "U", "Delta", "A", "B", "C", "D", "Z", "DeltaBias", "Initial"}[i], v)
	}
}

func like[T kernel.Float](v []float64) []T {
	if v == nil {
		return nil
	}
	return make([]T, len(v))
}

// onHost computes a problem on the CPU.
func (p *problem) onHost() *results[float64] {
	r := &results[float64]{
		y: like[float64](p.U), final: make([]float64, p.Batch*p.Channels*p.State),
		u: like[float64](p.U), delta: like[float64](p.U), a: like[float64](p.A), b: like[float64](p.B.Data), c: like[float64](p.C.Data),
		d: like[float64](p.D), z: like[float64](p.Z), bias: like[float64](p.DeltaBias), initial: like[float64](p.Initial),
	}
	p.Scan.Forward(r.y, r.final)
	p.Scan.Backward(p.dy, p.dfinal, &kernel.ScanGrad[float64]{
		U: r.u, Delta: r.delta, A: r.a, B: r.b, C: r.c, D: r.d, Z: r.z, DeltaBias: r.bias, Initial: r.initial,
	})
	return r
}

// rig is a problem on the device.
type rig struct {
	stream                         *Stream
	scan                           Scan[float32]
	y, final, checkpoints, dy, dfi Array[float32]
	grad                           ScanGrad[float32]
	arrays                         []Array[float32]
}

func (p *problem) onDevice(t *testing.T, s *Stream) *rig {
	t.Helper()
	r := &rig{stream: s}
	up := func(v []float64) Array[float32] {
		if v == nil {
			return Array[float32]{}
		}
		host := make([]float32, len(v))
		for i := range v {
			host[i] = float32(v[i])
		}
		a, err := Upload(s, host)
		if err != nil {
			t.Fatal(err)
		}
		r.arrays = append(r.arrays, a)
		return a
	}
	blank := func(n int) Array[float32] {
		a, err := NewArray[float32](s, n)
		if err == nil {
			err = a.Fill(s, 0xff) // NaN: every element must be written
		}
		if err != nil {
			t.Fatal(err)
		}
		r.arrays = append(r.arrays, a)
		return a
	}
	like := func(a Array[float32]) Array[float32] {
		if a.Absent() {
			return a
		}
		return blank(a.n)
	}
	// Between strided rows nothing is written.
	likeStrided := func(a Array[float32]) Array[float32] {
		g := like(a)
		if err := g.Fill(s, 0); err != nil {
			t.Fatal(err)
		}
		return g
	}
	r.scan = Scan[float32]{
		Batch: p.Batch, Length: p.Length, Channels: p.Channels, State: p.State,
		U: up(p.U), Delta: up(p.Delta), A: up(p.A), B: Projection[float32]{up(p.B.Data), p.B.Groups, p.B.Stride},
		C: Projection[float32]{up(p.C.Data), p.C.Groups, p.C.Stride}, D: up(p.D), Z: up(p.Z), ZStride: p.ZStride,
		DeltaBias: up(p.DeltaBias), Initial: up(p.Initial), Softplus: p.Softplus, Reverse: p.Reverse,
	}
	if p.Start != nil {
		start := make([]uint8, len(p.Start))
		for i, v := range p.Start {
			if v {
				start[i] = 1
			}
		}
		a, err := Upload(s, start)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Free)
		r.scan.Start = a
	}
	r.dy, r.dfi = up(p.dy), up(p.dfinal)
	r.y, r.final, r.checkpoints = blank(len(p.U)), blank(p.Batch*p.Channels*p.State), blank(r.scan.CheckpointLen())
	r.grad = ScanGrad[float32]{
		U: like(r.scan.U), Delta: like(r.scan.Delta), A: like(r.scan.A), B: likeProjection(r.scan.B, like, likeStrided),
		C: likeProjection(r.scan.C, like, likeStrided), D: like(r.scan.D), Z: like(r.scan.Z), DeltaBias: like(r.scan.DeltaBias),
		Initial: like(r.scan.Initial),
	}
	if p.ZStride > 0 && p.Z != nil {
		r.grad.Z = likeStrided(r.scan.Z)
	}
	return r
}

func likeProjection(p Projection[float32], like, likeStrided func(Array[float32]) Array[float32]) Array[float32] {
	if p.Stride > 0 {
		return likeStrided(p.Data)
	}
	return like(p.Data)
}

func (r *rig) run() error {
	return firstError(
		r.scan.Forward(r.stream, r.y, r.final, r.checkpoints),
		r.scan.Backward(r.stream, r.checkpoints, r.dy, r.dfi, &r.grad),
	)
}

func (r *rig) results(t *testing.T) *results[float32] {
	t.Helper()
	down := func(a Array[float32]) []float32 {
		if a.Absent() {
			return nil
		}
		v := make([]float32, a.n)
		if err := a.CopyTo(r.stream, v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	g := &r.grad
	return &results[float32]{
		y: down(r.y), final: down(r.final), u: down(g.U), delta: down(g.Delta), a: down(g.A), b: down(g.B), c: down(g.C), d: down(g.D),
		z: down(g.Z), bias: down(g.DeltaBias), initial: down(g.Initial),
	}
}

func (r *rig) free() {
	for _, a := range r.arrays {
		a.Free()
	}
}

// compare reports where the device is further from the host than tol times the largest magnitude, or 1 if that is larger.
func compare(t *testing.T, p *problem, got *results[float32], want *results[float64], tol float64) {
	t.Helper()
	wants := map[string][]float64{}
	want.each(func(name string, v *[]float64) { wants[name] = *v })
	var bad []string
	got.each(func(name string, v *[]float32) {
		want := wants[name]
		scale, far, at := 1.0, 0.0, -1
		for _, w := range want {
			scale = max(scale, math.Abs(w))
		}
		for i, w := range want {
			if d := math.Abs(float64((*v)[i]) - w); !(d <= far) {
				far, at = d, i
			}
		}
		if !(far <= tol*scale) {
			bad = append(bad, fmt.Sprintf("%s[%d] is %v, want %v (largest %g)", name, at, (*v)[at], want[at], scale))
		}
	})
	if bad != nil {
		t.Errorf("%v:\n\t%s", p, strings.Join(bad, "\n\t"))
	}
}

func TestScanAgainstHost(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(3, 3))
	lengths := []int{1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 130, 257}
	states := []int{1, 2, 3, 4, 8, 15, 16, 16, 16, 16, 17, 32, 64, 65, 128, 256}
	count := 150
	if testing.Short() {
		count = 40
	}
	for range count {
		p := draw(r, 1+r.IntN(3), lengths[r.IntN(len(lengths))], 1+r.IntN(90), 1+r.IntN(3), states[r.IntN(len(states))])
		rig := p.onDevice(t, s)
		if err := rig.run(); err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		compare(t, p, rig.results(t), p.onHost(), 2e-5)
		rig.free()
	}
}

// TestScanSizes runs every cut of channels, which small problems do not reach.
func TestScanSizes(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(4, 4))
	for _, channels := range []int{1536, 48 * s.device.multiprocessors, 130 * s.device.multiprocessors} {
		p := draw(r, 1, 40, channels, 1, 16)
		for p.B.Groups == 0 || p.C.Groups == 0 || p.Start != nil {
			p = draw(r, 1, 40, channels, 1, 16)
		}
		rig := p.onDevice(t, s)
		if err := rig.run(); err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		compare(t, p, rig.results(t), p.onHost(), 2e-5)
		rig.free()
	}
}

func TestScanIsDeterministic(t *testing.T) {
	s := open(t)
	p := draw(rand.New(rand.NewPCG(5, 5)), 2, 300, 200, 1, 16)
	rig := p.onDevice(t, s)
	var first *results[float32]
	for i := range 20 {
		if err := rig.run(); err != nil {
			t.Fatal(err)
		}
		got := rig.results(t)
		if i == 0 {
			first = got
			continue
		}
		firsts := map[string][]float32{}
		first.each(func(name string, v *[]float32) { firsts[name] = *v })
		got.each(func(name string, v *[]float32) {
			if !slices.EqualFunc(*v, firsts[name], func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
				t.Fatalf("run %d has another %s", i, name)
			}
		})
	}
}

// TestScanLong: a million steps.
func TestScanLong(t *testing.T) {
	s := open(t)
	if testing.Short() {
		t.Skip("long")
	}
	p := draw(rand.New(rand.NewPCG(6, 6)), 1, 1<<20, 4, 1, 2)
	rig := p.onDevice(t, s)
	if err := rig.run(); err != nil {
		t.Fatal(err)
	}
	compare(t, p, rig.results(t), p.onHost(), 2e-5)
}

// TestScanLeavesNothing: the memory is the same after a thousand steps.
func TestScanLeavesNothing(t *testing.T) {
	s := open(t)
	p := draw(rand.New(rand.NewPCG(7, 7)), 2, 64, 64, 1, 16)
	rig := p.onDevice(t, s)
	var used, held int64
	for i := range 1000 {
		if err := rig.run(); err != nil {
			t.Fatal(err)
		}
		u, h := s.device.Memory()
		if i == 0 {
			used, held = u, h
		} else if u != used || h != held {
			t.Fatalf("after step %d %d bytes used and %d held, after the first %d and %d", i, u, h, used, held)
		}
	}
}

func TestScanErrors(t *testing.T) {
	s := new(Stream)
	array := func(n int) Array[float32] { return Array[float32]{stream: s, n: n} }
	good := func() Scan[float32] {
		return Scan[float32]{
			Batch: 2, Length: 3, Channels: 4, State: 5, U: array(24), Delta: array(24), A: array(20), B: Projection[float32]{array(30), 1, 0},
			C: Projection[float32]{array(60), 2, 0}, D: array(4), Z: array(24), DeltaBias: array(4), Initial: array(40),
		}
	}
	fine := good()
	if err := fine.check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Scan[float32]){
		"State is 257, want 1 to 256":             func(s *Scan[float32]) { s.State = 257 },
		"Length is -1, want at least 0":           func(s *Scan[float32]) { s.Length = -1 },
		"U has 23 elements, want 24":              func(s *Scan[float32]) { s.U = array(23) },
		"Delta has 0 elements, want 24":           func(s *Scan[float32]) { s.Delta = Array[float32]{} },
		"B has 3 groups, which does not divide 4": func(s *Scan[float32]) { s.B.Groups = 3 },
		"C has a stride of 9, want at least 2":    func(s *Scan[float32]) { s.C.Stride = 9 },
		"ZStride is 3, want at least the 4":       func(s *Scan[float32]) { s.ZStride = 3 },
		"Z has 24 elements, want 29":              func(s *Scan[float32]) { s.ZStride = 5 },
		"Initial has 39 elements, want 40":        func(s *Scan[float32]) { s.Initial = array(39) },
	} {
		s := good()
		spoil(&s)
		if err := s.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}
