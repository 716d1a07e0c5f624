package cuda

import (
	"errors"
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

// problem is a scan with random operands on the host, in float64.
type problem struct {
	kernel.Scan[float64]
	alog       []float64 // log(-A), which the device gets instead of A, or nil
	dy, dfinal []float64
}

// draw returns a problem of the given sizes with random options. Its activations are numbers that T holds exactly.
func draw[T Activation](r *rand.Rand, batch, length, perGroup, groups, state int) *problem {
	channels := perGroup * groups
	normal := func(n int, scale float64) []float64 { return numbers[float32](r, n, scale) }
	activations := func(n int, scale float64) []float64 { return numbers[T](r, n, scale) }
	coin := func() bool { return r.IntN(2) == 0 }
	rows := batch * length
	projection := func() kernel.Projection[float64] {
		p := kernel.Projection[float64]{Groups: []int{0, 1, groups, 1}[r.IntN(4)]}
		if typeName[T]() == "bf16" {
			p.Groups = max(p.Groups, 1) // constant B and C are only supported in float32
		}
		if p.Groups == 0 {
			p.Data = normal(channels*state, 1)
			return p
		}
		if coin() {
			p.Stride = p.Groups*state + r.IntN(5)
		}
		p.Data = activations(rows*max(p.Stride, p.Groups*state), 1)
		return p
	}
	p := &problem{Scan: kernel.Scan[float64]{
		Batch: batch, Length: length, Channels: channels, State: state,
		U: activations(rows*channels, 1), Delta: activations(rows*channels, 0.5), A: normal(channels*state, 1),
		B: projection(), C: projection(), Softplus: coin(), Reverse: coin(),
	}}
	for i, v := range p.A {
		p.A[i] = -math.Abs(v)
	}
	if coin() {
		p.alog = normal(channels*state, 1)
		for i, v := range p.alog {
			p.A[i] = -math.Exp(v)
		}
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
		p.Z = activations(rows*max(p.ZStride, channels), 1)
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
	p.dy = activations(rows*channels, 1)
	if coin() {
		p.dfinal = normal(batch*channels*state, 1)
	}
	return p
}

func (p *problem) String() string {
	return fmt.Sprintf("batch %d, length %d, channels %d, state %d, groups %d and %d, strides %d, %d and %d, D %v, Z %v, bias %v, "+
		"initial %v, dfinal %v, start %v, softplus %v, reverse %v, log A %v", p.Batch, p.Length, p.Channels, p.State, p.B.Groups,
		p.C.Groups, p.B.Stride, p.C.Stride, p.ZStride, p.D != nil, p.Z != nil, p.DeltaBias != nil, p.Initial != nil, p.dfinal != nil,
		p.Start != nil, p.Softplus, p.Reverse, p.alog != nil)
}

// results holds y, the final state and the gradients.
type results struct {
	y, final, u, delta, a, b, c, d, z, bias, initial []float64
}

func (r *results) each(f func(name string, v []float64)) {
	for i, v := range [][]float64{r.y, r.final, r.u, r.delta, r.a, r.b, r.c, r.d, r.z, r.bias, r.initial} {
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
func (p *problem) onHost() *results {
	r := &results{
		y: like[float64](p.U), final: make([]float64, p.Batch*p.Channels*p.State),
		u: like[float64](p.U), delta: like[float64](p.U), a: like[float64](p.A), b: like[float64](p.B.Data), c: like[float64](p.C.Data),
		d: like[float64](p.D), z: like[float64](p.Z), bias: like[float64](p.DeltaBias), initial: like[float64](p.Initial),
	}
	p.Scan.Forward(r.y, r.final)
	p.Scan.Backward(p.dy, p.dfinal, &kernel.ScanGrad[float64]{
		U: r.u, Delta: r.delta, A: r.a, B: r.b, C: r.c, D: r.d, Z: r.z, DeltaBias: r.bias, Initial: r.initial,
	})
	if p.alog != nil {
		for i, a := range p.A {
			r.a[i] *= a // d(-exp(x))/dx
		}
	}
	return r
}

// rig is a problem on the device.
type rig[T Activation] struct {
	stream             *Stream
	scan               Scan[T]
	y, dy              Array[T]
	final, checkpoints Array[float32]
	dfinal             Array[float32]
	grad               ScanGrad[T]
	arrays             []interface{ Free() }
}

func onDevice[T Activation](t *testing.T, s *Stream, p *problem) *rig[T] {
	t.Helper()
	r := &rig[T]{stream: s}
	a := p.A
	if p.alog != nil {
		a = p.alog
	}
	r.scan = Scan[T]{
		Batch: p.Batch, Length: p.Length, Channels: p.Channels, State: p.State,
		U: keep[T](t, r, p.U), Delta: keep[T](t, r, p.Delta), A: keep[float32](t, r, a), ALog: p.alog != nil,
		B: Projection[T]{keep[T](t, r, p.B.Data), p.B.Groups, p.B.Stride},
		C: Projection[T]{keep[T](t, r, p.C.Data), p.C.Groups, p.C.Stride},
		D: keep[float32](t, r, p.D), Z: keep[T](t, r, p.Z), ZStride: p.ZStride, DeltaBias: keep[float32](t, r, p.DeltaBias),
		Initial: keep[float32](t, r, p.Initial), Softplus: p.Softplus, Reverse: p.Reverse,
	}
	if p.Start != nil {
		start := make([]uint8, len(p.Start))
		for i, v := range p.Start {
			if v {
				start[i] = 1
			}
		}
		a, err := Upload(s, start)
		do(t, err)
		r.arrays = append(r.arrays, a)
		r.scan.Start = a
	}
	g := &r.scan
	r.dy, r.dfinal = keep[T](t, r, p.dy), keep[float32](t, r, p.dfinal)
	r.y, r.final = room[T](t, r, len(p.U), false), room[float32](t, r, p.Batch*p.Channels*p.State, false)
	r.checkpoints = room[float32](t, r, g.CheckpointLen(), false)
	r.grad = ScanGrad[T]{
		U: room[T](t, r, g.U.n, false), Delta: room[T](t, r, g.Delta.n, false), A: room[float32](t, r, g.A.n, false),
		B: room[T](t, r, g.B.Data.n, p.B.Stride > 0), C: room[T](t, r, g.C.Data.n, p.C.Stride > 0), D: room[float32](t, r, g.D.n, false),
		Z: room[T](t, r, g.Z.n, p.ZStride > 0), DeltaBias: room[float32](t, r, g.DeltaBias.n, false),
		Initial: room[float32](t, r, g.Initial.n, false),
	}
	return r
}

// keep uploads numbers. The rig's free frees them.
func keep[X, T Activation](t *testing.T, r *rig[T], v []float64) Array[X] {
	t.Helper()
	if v == nil {
		return Array[X]{}
	}
	host := make([]X, len(v))
	for i := range v {
		host[i] = fromFloat[X](float32(v[i]))
	}
	a, err := Upload(r.stream, host)
	do(t, err)
	r.arrays = append(r.arrays, a)
	return a
}

// room returns an array for a result. It is filled with NaN, so that an element that is not written fails the test. If strided, it is filled
// with zeros, since the gaps between rows are not written.
func room[X, T Activation](t *testing.T, r *rig[T], n int, strided bool) Array[X] {
	t.Helper()
	if n == 0 {
		return Array[X]{}
	}
	a, err := NewArray[X](r.stream, n)
	do(t, err)
	fill := byte(0xff)
	if strided {
		fill = 0
	}
	do(t, a.Fill(r.stream, fill))
	r.arrays = append(r.arrays, a)
	return a
}

func (r *rig[T]) run() error {
	return firstError(
		r.scan.Forward(r.stream, r.y, r.final, r.checkpoints),
		r.scan.Backward(r.stream, r.checkpoints, r.dy, r.dfinal, &r.grad),
	)
}

func (r *rig[T]) results(t *testing.T) *results {
	t.Helper()
	g := &r.grad
	return &results{
		y: get(t, r.stream, r.y), final: get(t, r.stream, r.final), u: get(t, r.stream, g.U), delta: get(t, r.stream, g.Delta),
		a: get(t, r.stream, g.A), b: get(t, r.stream, g.B), c: get(t, r.stream, g.C), d: get(t, r.stream, g.D), z: get(t, r.stream, g.Z),
		bias: get(t, r.stream, g.DeltaBias), initial: get(t, r.stream, g.Initial),
	}
}

func (r *rig[T]) free() {
	for _, a := range r.arrays {
		a.Free()
	}
}

// against compares the results of a problem on the device with those on the host.
func against[T Activation](t *testing.T, s *Stream, p *problem) {
	t.Helper()
	r := onDevice[T](t, s, p)
	defer r.free()
	if err := r.run(); err != nil {
		t.Fatalf("%v: %v", p, err)
	}
	compare[T](t, p, r.results(t), p.onHost())
}

// compare fails the test if a result on the device is further from that on the host than 2e-5 times the largest magnitude, or 2e-5 if that is
// larger. Activations of bfloat16 have a larger tolerance, since rounding to bfloat16 alone gives a relative error of up to 2^-9.
func compare[T Activation](t *testing.T, p *problem, got, want *results) {
	t.Helper()
	wants := map[string][]float64{}
	want.each(func(name string, v []float64) { wants[name] = v })
	var bad []string
	got.each(func(name string, v []float64) {
		tol := 2e-5
		if typeName[T]() == "bf16" && slices.Contains([]string{"y", "U", "Delta", "B", "C", "Z"}, name) {
			tol += 1.0 / 256
		}
		want := wants[name]
		scale, far, at := 1.0, 0.0, -1
		for _, w := range want {
			scale = max(scale, math.Abs(w))
		}
		for i, w := range want {
			if d := math.Abs(v[i] - w); !(d <= far) {
				far, at = d, i
				if d != d {
					break
				}
			}
		}
		if !(far <= tol*scale) {
			bad = append(bad, fmt.Sprintf("%s[%d] is %v, want %v (largest %g)", name, at, v[at], want[at], scale))
		}
	})
	if bad != nil {
		t.Errorf("%v:\n\t%s", p, strings.Join(bad, "\n\t"))
	}
}

func TestScanAgainstHost(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { againstHost[float32](t, s) }, func(t *testing.T) { againstHost[BFloat16](t, s) })
}

func againstHost[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(3, 3))
	lengths := []int{1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 130, 257, 700}
	states := []int{1, 2, 3, 4, 8, 15, 16, 16, 16, 16, 17, 32, 64, 65, 128, 256}
	if typeName[T]() == "bf16" {
		states = states[:10]
	}
	count := 150
	if testing.Short() {
		count = 40
	}
	for range count {
		against[T](t, s, draw[T](r, 1+r.IntN(3), lengths[r.IntN(len(lengths))], 1+r.IntN(90), 1+r.IntN(3), states[r.IntN(len(states))]))
	}
}

// TestScanChunks tests lengths that are cut into chunks, whose last chunk has few steps or all, with every kind of B, C and starts.
func TestScanChunks(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { chunks[float32](t, s) }, func(t *testing.T) { chunks[BFloat16](t, s) })
}

func chunks[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(8, 8))
	seen, longest := map[string]bool{}, 4097
	if testing.Short() {
		longest = 1025
	}
	for i := range 24 {
		p := draw[T](r, 1+r.IntN(2), []int{256, 257, 1000, 1024, longest}[i%5], 1+r.IntN(30), 1+r.IntN(2), 1+r.IntN(16))
		scan := Scan[T]{Batch: p.Batch, Length: p.Length, Channels: p.Channels, State: p.State, U: Array[T]{stream: s}}
		if z := scanSizes[0]; scan.chunks(z, z.forward) < fewChunks || scan.chunks(z, z.backward) < fewChunks {
			t.Fatalf("%v is cut into %d and %d chunks", p, scan.chunks(z, z.forward), scan.chunks(z, z.backward))
		}
		seen[fmt.Sprint(p.B.Groups > 0, p.C.Groups > 0, p.Start != nil)] = true
		against[T](t, s, p)
	}
	if len(seen) < 2 {
		t.Errorf("the problems had only the kinds %v", seen)
	}
}

// TestScanSizes tests numbers of channels from few to many, since the choice of the kernel depends on it. Small problems do not reach all
// kernels.
func TestScanSizes(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { everySize[float32](t, s) }, func(t *testing.T) { everySize[BFloat16](t, s) })
}

func everySize[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, channels := range []int{1536, 48 * s.device.multiprocessors, 130 * s.device.multiprocessors} {
		p := draw[T](r, 1, 40, channels, 1, 16)
		for p.B.Groups == 0 || p.C.Groups == 0 || p.Start != nil {
			p = draw[T](r, 1, 40, channels, 1, 16)
		}
		against[T](t, s, p)
	}
}

// TestScanAsync tests problems that the kernels for compute capability 8.0 compute, and the kernels for 7.0 on the same problems.
func TestScanAsync(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { async[float32](t, s) }, func(t *testing.T) { async[BFloat16](t, s) })
}

func async[T Activation](t *testing.T, s *Stream) {
	if s.device.kernels < 80 {
		t.Skip("the device has no kernels for compute capability 8.0")
	}
	defer func(kernels, n int) { s.device.kernels, s.device.multiprocessors = kernels, n }(s.device.kernels, s.device.multiprocessors)
	r := rand.New(rand.NewPCG(31, 31))
	all, seen := s.device.multiprocessors, map[string]bool{}
	for i := range times(32, 8) {
		// A length of several chunks, or a device that some 50 channels fill, in the last case with whole blocks and tiles.
		batch, length, perGroup, groups := 1+r.IntN(2), 192+r.IntN(times(1000, 200)), 4*(1+r.IntN(12)), 1+r.IntN(2)
		s.device.multiprocessors = all
		if i == 0 { // chunks of more than the 32 tiles that a warp looks at
			s.device.multiprocessors = 1
			batch, length, perGroup, groups = 1, 3*1024+77, 40, 1
		} else if i%2 == 1 {
			s.device.multiprocessors = 1
			perGroup, length = 44+4*r.IntN(times(30, 6)), []int{1 + r.IntN(70), 17, 1, 16}[i/4%4]
		}
		if i%4 == 3 {
			perGroup, length = 64*(1+r.IntN(2)), 16*(1+r.IntN(times(20, 12)))
		}
		p := drawAsync[T](r, batch, length, perGroup, groups)
		if i%4 == 3 && p.Z == nil {
			p.Z = numbers[T](r, batch*length*p.Channels, 1)
		}
		p.Start = nil
		if i%8 < 4 { // in the long problem between starts more than the 32 tiles that a warp looks at, in others tiles with and without a start
			p.Start = make([]bool, batch*length)
			for j := range p.Start {
				p.Start[j] = i == 0 && j%701 == 3 || i > 0 && r.IntN(40) == 0
			}
		}
		for _, s.device.kernels = range []int{80, 70} {
			rig := onDevice[T](t, s, p)
			args := rig.scan.args()
			z := rig.scan.size()
			if eighty := s.device.kernels == 80; z.asyncForward == nil || rig.scan.async(&args) != eighty ||
				rig.scan.asyncBackward(&args) != (eighty && s.device.shared >= z.asyncBackward.shared) {
				t.Errorf("%v: the kernels for compute capability %d do not compute it", p, s.device.kernels)
			}
			_, name := rig.scan.kernel(*z.asyncBackward, "backward", z)
			seen[name] = true
			do(t, rig.run())
			compare[T](t, p, rig.results(t), p.onHost())
			rig.free()
		}
	}
	if len(seen) != 4 { // whole and any, with starts and without
		t.Errorf("the backward passes were only %v", seen)
	}
}

// TestScanTwoChunks tests short scans whose backward pass has two chunks, and that gradients which are no sums over time have the same bits in one piece.
func TestScanTwoChunks(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { twoChunks[float32](t, s) }, func(t *testing.T) { twoChunks[BFloat16](t, s) })
}

func twoChunks[T Activation](t *testing.T, s *Stream) {
	pass := *scanSizes[0].asyncBackward
	if s.device.kernels < 80 || s.device.shared < pass.shared {
		t.Skip("the device does not run this pass")
	}
	defer func(n int) { s.device.multiprocessors = n }(s.device.multiprocessors)
	r := rand.New(rand.NewPCG(47, 47))
	for i := range times(24, 8) {
		batch, length, perGroup, groups := 2+r.IntN(2), 16*(8+r.IntN(24)), 64*(1+r.IntN(2)), 1+r.IntN(2)
		p := drawAsync[T](r, batch, length, perGroup, groups)
		if p.Z == nil {
			p.Z = numbers[T](r, batch*length*p.Channels, 1)
		}
		p.Start = nil
		if i%2 == 0 {
			p.Start = make([]bool, batch*length)
			for j := range p.Start {
				p.Start[j] = r.IntN(60) == 0
			}
		}
		rig := onDevice[T](t, s, p)
		defer rig.free()
		var all [2]*results
		for j := range all { // the least multiprocessors for two chunks, and one for one chunk
			s.device.multiprocessors = 1
			for j == 0 && rig.scan.chunks(scanSizes[0], pass) < 2 {
				s.device.multiprocessors++
			}
			if got := rig.scan.chunks(scanSizes[0], pass); got != 2-j {
				t.Fatalf("%v: %d chunks", p, got)
			}
			do(t, rig.run())
			all[j] = rig.results(t)
		}
		compare[T](t, p, all[0], p.onHost())
		same := func(name string, a, b []float64) {
			if !slices.Equal(a, b) {
				t.Errorf("%v: %s is not the same in two chunks as in one", p, name)
			}
		}
		same("dU", all[0].u, all[1].u)
		same("dDelta", all[0].delta, all[1].delta)
		same("dZ", all[0].z, all[1].z)
		same("dB", all[0].b, all[1].b)
		same("dC", all[0].c, all[1].c)
		same("dInitial", all[0].initial, all[1].initial)
	}
}

// drawAsync returns a problem with random options that the kernels for compute capability 8.0 support.
func drawAsync[T Activation](r *rand.Rand, batch, length, perGroup, groups int) *problem {
	p := draw[T](r, batch, length, perGroup, groups, 16)
	rows, part := batch*length, 0
	for _, b := range []*kernel.Projection[float64]{&p.B, &p.C} {
		b.Groups = []int{1, groups}[r.IntN(2)]
		part = b.Groups*16 + 4*r.IntN(3)
		b.Stride, b.Data = part, numbers[T](r, rows*part, 1)
	}
	if p.ZStride > 0 {
		p.ZStride = p.Channels + 4*r.IntN(3)
		p.Z = numbers[T](r, rows*p.ZStride, 1)
	}
	for i := range p.Start { // so that there are tiles without a start
		p.Start[i] = p.Start[i] && r.IntN(8) == 0
	}
	p.Softplus = true
	return p
}

// TestScanBesideOthers checks that a sequence of 16 states has the same results bit for bit alone, without a start, and at the end of a row of a batch, marked where it
// begins, as prompts are read together.
func TestScanBesideOthers(t *testing.T) {
	s := open(t)
	if s.device.kernels < 80 {
		t.Skip("the device uses kernels of compute capability 7.0, which add a step's states in several orders")
	}
	both(t, func(t *testing.T) { besideOthers[float32](t, s) }, func(t *testing.T) { besideOthers[BFloat16](t, s) })
}

func besideOthers[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(43, 43))
	const batch, length, channels, state = 3, 50, 36, 16
	all := draw[T](r, batch, length, channels, 1, state)
	all.B, all.C = kernel.Projection[float64]{Data: numbers[T](r, batch*length*state, 1), Groups: 1}, kernel.Projection[float64]{Data: numbers[T](r, batch*length*state, 1), Groups: 1}
	all.Z, all.ZStride, all.D = numbers[T](r, batch*length*channels, 1), 0, numbers[float32](r, channels, 1)
	all.Softplus, all.Reverse, all.Initial, all.Start = true, false, nil, make([]bool, batch*length)
	run := func(p *problem) (y, final []float64) {
		rig := onDevice[T](t, s, p)
		defer rig.free()
		do(t, rig.scan.Forward(s, rig.y, rig.final, Array[float32]{}))
		return get(t, s, rig.y), get(t, s, rig.final)
	}
	lengths := [batch]int{50, 49, 17}
	for b, n := range lengths {
		all.Start[(b+1)*length-n] = true
	}
	y, final := run(all)
	for b, n := range lengths {
		from, to := (b+1)*length-n, (b+1)*length
		one := *all
		one.Batch, one.Length, one.Start, one.dfinal = 1, n, nil, nil
		one.U, one.Delta, one.Z, one.dy = all.U[from*channels:to*channels], all.Delta[from*channels:to*channels], all.Z[from*channels:to*channels], all.dy[from*channels:to*channels]
		one.B.Data, one.C.Data = all.B.Data[from*state:to*state], all.C.Data[from*state:to*state]
		gotY, gotFinal := run(&one)
		if !slices.Equal(gotY, y[from*channels:to*channels]) || !slices.Equal(gotFinal, final[b*channels*state:][:channels*state]) {
			t.Errorf("a sequence of %d steps is not the same alone", n)
		}
	}
}

func TestScanIsDeterministic(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { sameAgain[float32](t, s, 200) }, func(t *testing.T) { sameAgain[BFloat16](t, s, times(5000, 300)) })
}

// times returns short with -short, else long.
func times(long, short int) int {
	if testing.Short() {
		return short
	}
	return long
}

func sameAgain[T Activation](t *testing.T, s *Stream, channels int) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, p := range []*problem{draw[T](r, 2, 300, channels, 1, 16), drawAsync[T](r, 2, 300, 36, 1)} {
		rig := onDevice[T](t, s, p)
		defer rig.free()
		firsts := map[string][]float64{}
		for i := range times(20, 5) {
			do(t, rig.run())
			rig.results(t).each(func(name string, v []float64) {
				if i == 0 {
					firsts[name] = v
				} else if !slices.EqualFunc(v, firsts[name], func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }) {
					t.Fatalf("%v: run %d: %s differs", p, i, name)
				}
			})
		}
	}
}

// TestScanStreams checks that two scans at the same time on different streams do not affect each other.
func TestScanStreams(t *testing.T) {
	s := open(t)
	other, err := s.device.NewStream()
	do(t, err)
	r := rand.New(rand.NewPCG(9, 9))
	problems := [2]*problem{draw[float32](r, 2, 400, 70, 1, 16), draw[float32](r, 3, 300, 50, 2, 9)}
	var rigs [2]*rig[float32]
	for i, s := range []*Stream{s, other} {
		rigs[i] = onDevice[float32](t, s, problems[i])
	}
	for range times(20, 4) {
		do(t, rigs[0].run(), rigs[1].run())
	}
	for i, p := range problems {
		compare[float32](t, p, rigs[i].results(t), p.onHost())
	}
}

// TestScanExtremes tests step sizes and rates at the limits of float32.
func TestScanExtremes(t *testing.T) {
	s := open(t)
	const length, channels, state = 200, 12, 16
	r := rand.New(rand.NewPCG(10, 10))
	for name, change := range map[string]func(p *problem){
		"large Δ":       func(p *problem) { scale(p.Delta, 3e4) },
		"softplus":      func(p *problem) { p.Softplus = true; scale(p.Delta, 300) },
		"tiny Δ":        func(p *problem) { scale(p.Delta, 1e-30) },
		"Δ 0":           func(p *problem) { scale(p.Delta, 0) },
		"A very small":  func(p *problem) { scale(p.A, 1e30) },
		"A nearly 0":    func(p *problem) { scale(p.A, 1e-30) },
		"A 0":           func(p *problem) { scale(p.A, 0) },
		"A of log -100": func(p *problem) { p.alog = make([]float64, len(p.A)); setLog(p, -100) },
		"A of log 80":   func(p *problem) { p.alog = make([]float64, len(p.A)); setLog(p, 80) },
	} {
		t.Run(name, func(t *testing.T) {
			p := &problem{Scan: kernel.Scan[float64]{
				Batch: 1, Length: length, Channels: channels, State: state, U: numbers[float32](r, length*channels, 1),
				Delta: numbers[float32](r, length*channels, 0.5), A: numbers[float32](r, channels*state, 1),
				B: kernel.Projection[float64]{Data: numbers[float32](r, length*state, 1), Groups: 1},
				C: kernel.Projection[float64]{Data: numbers[float32](r, length*state, 1), Groups: 1},
			}, dy: numbers[float32](r, length*channels, 1)}
			for i, v := range p.Delta {
				p.Delta[i] = math.Abs(v)
			}
			for i, v := range p.A {
				p.A[i] = -math.Abs(v)
			}
			change(p)
			against[float32](t, s, p)
		})
	}
}

func scale(v []float64, by float64) {
	for i := range v {
		v[i] = float64(float32(v[i] * by))
	}
}

func setLog(p *problem, log float64) {
	for i := range p.alog {
		p.alog[i], p.A[i] = log, -math.Exp(log)
	}
}

// TestScanNaNStays checks that a NaN in one channel affects the output of this channel at all later steps, and no other channel, forward and
// backward.
func TestScanNaNStays(t *testing.T) {
	s := open(t)
	for _, length := range []int{100, 1000} { // in one piece, and in chunks
		const channels, at, bad = 70, 40, 33
		r := rand.New(rand.NewPCG(11, 11))
		p := draw[float32](r, 1, length, channels, 1, 16)
		p.Start, p.Reverse, p.Z, p.ZStride = nil, false, nil, 0
		p.Delta[at*channels+bad] = math.NaN()
		rig := onDevice[float32](t, s, p)
		do(t, rig.run())
		got := rig.results(t)
		for i, y := range got.y {
			if step, d := i/channels, i%channels; (y != y) != (d == bad && step >= at) {
				t.Fatalf("of %d steps, with NaN at step %d of channel %d, y at step %d of channel %d is %v", length, at, bad, step, d, y)
			}
		}
		for i, v := range got.u {
			if d := i % channels; d != bad && v != v {
				t.Fatalf("of %d steps, with NaN in channel %d, the gradient of U at step %d of channel %d is %v", length, bad, i/channels, d, v)
			}
		}
		rig.free()
	}
}

// TestScanFarApart tests rows of B, C and Z with a stride so large that element indices exceed 2^31.
func TestScanFarApart(t *testing.T) {
	s := open(t)
	const length, stride = 70, 1 << 25
	r := rand.New(rand.NewPCG(13, 13))
	for _, reverse := range []bool{false, true} {
		p := draw[float32](r, 1, length, 40, 1, 16)
		p.B, p.C = kernel.Projection[float64]{Data: numbers[float32](r, length*16, 1), Groups: 1},
			kernel.Projection[float64]{Data: numbers[float32](r, length*16, 1), Groups: 1}
		p.Z, p.ZStride, p.Reverse = numbers[float32](r, length*40, 1), 0, reverse
		rig := onDevice[float32](t, s, p)
		wide, gradients := roomy[float32](t, s, length*stride), roomy[float32](t, s, length*stride)
		// part copies a to columns of the wide matrix, and returns these columns and the same columns of the gradient.
		part := func(a Array[float32], from, width int) (Array[float32], Array[float32]) {
			for i := range length {
				do(t, wide.Slice(i*stride+from, width).CopyOf(s, a.Slice(i*width, width)))
			}
			n := (length-1)*stride + width
			return wide.Slice(from, n), gradients.Slice(from, n)
		}
		collect := func(from, width int) []float64 {
			var v []float64
			for i := range length {
				v = append(v, get(t, s, gradients.Slice(i*stride+from, width))...)
			}
			return v
		}
		scan, grad := &rig.scan, &rig.grad
		scan.B.Data, grad.B = part(scan.B.Data, 0, 16)
		scan.C.Data, grad.C = part(scan.C.Data, stride-16, 16)
		scan.Z, grad.Z = part(scan.Z, 100, 40)
		scan.B.Stride, scan.C.Stride, scan.ZStride = stride, stride, stride
		do(t, rig.run())
		grad.B, grad.C, grad.Z = Array[float32]{}, Array[float32]{}, Array[float32]{} // too large to copy to the host
		got := rig.results(t)
		got.b, got.c, got.z = collect(0, 16), collect(stride-16, 16), collect(100, 40)
		compare[float32](t, p, got, p.onHost())
		rig.free()
		wide.Free()
		gradients.Free()
	}
}

// roomy returns an array of n elements. If the device has too little memory it skips the test.
func roomy[T Activation](t *testing.T, s *Stream, n int) Array[T] {
	t.Helper()
	a, err := NewArray[T](s, n)
	if full := new(OutOfMemory); errors.As(err, &full) {
		t.Skipf("this test needs a GPU with more memory: %v", full)
	}
	do(t, err)
	do(t, a.Fill(s, 0xff))
	return a
}

// TestScanOfMany tests a batch of more than 2^31 activations. All sequences are the same, so the last has the same results as the first.
func TestScanOfMany(t *testing.T) {
	s := open(t)
	for _, state := range []int{2, 16} { // with the kernels for compute capability 7.0 and 8.0
		t.Run(itoa(state), func(t *testing.T) { ofMany(t, s, state) })
	}
}

func ofMany(t *testing.T, s *Stream, state int) {
	const batch, length, channels = 1<<14 + 1, 64, 2048
	const row = length * channels
	r := rand.New(rand.NewPCG(14, 14))
	one := &problem{Scan: kernel.Scan[float64]{
		Batch: 1, Length: length, Channels: channels, State: state, U: numbers[BFloat16](r, row, 1),
		Delta: numbers[BFloat16](r, row, 0.5), A: numbers[float32](r, channels*state, 1),
		B: kernel.Projection[float64]{Data: numbers[BFloat16](r, length*state, 1), Groups: 1},
		C: kernel.Projection[float64]{Data: numbers[BFloat16](r, length*state, 1), Groups: 1}, Softplus: true,
	}, dy: numbers[BFloat16](r, row, 1)}
	for i, v := range one.A {
		one.A[i] = -math.Abs(v)
	}
	var arrays []interface{ Free() }
	defer func() {
		for _, a := range arrays {
			a.Free()
		}
	}()
	blank := func(n int) Array[BFloat16] {
		a := roomy[BFloat16](t, s, n)
		arrays = append(arrays, a)
		return a
	}
	many := func(v []float64) Array[BFloat16] {
		a, part := blank(batch*len(v)), put[BFloat16](t, s, v)
		do(t, a.Slice(0, len(v)).CopyOf(s, part))
		for n := 1; n < batch; n *= 2 { // doubles the number of copies
			some := min(n, batch-n) * len(v)
			do(t, a.Slice(n*len(v), some).CopyOf(s, a.Slice(0, some)))
		}
		return a
	}
	scan := Scan[BFloat16]{
		Batch: batch, Length: length, Channels: channels, State: state, U: many(one.U), Delta: many(one.Delta),
		A: put[float32](t, s, one.A), Softplus: true,
		B: Projection[BFloat16]{Data: many(one.B.Data), Groups: 1}, C: Projection[BFloat16]{Data: many(one.C.Data), Groups: 1},
	}
	checkpoints := roomy[float32](t, s, scan.CheckpointLen())
	arrays = append(arrays, checkpoints)
	dy, y := many(one.dy), blank(batch*row)
	grad := ScanGrad[BFloat16]{U: blank(batch * row), Delta: blank(batch * row), A: put[float32](t, s, one.A),
		B: blank(batch * length * state), C: blank(batch * length * state)}
	do(t, scan.Forward(s, y, Array[float32]{}, checkpoints), scan.Backward(s, checkpoints, dy, Array[float32]{}, &grad))
	want := one.onHost()
	for name, v := range map[string]struct {
		got  Array[BFloat16]
		want []float64
	}{"y": {y, want.y}, "U": {grad.U, want.u}, "Delta": {grad.Delta, want.delta}, "B": {grad.B, want.b}, "C": {grad.C, want.c}} {
		n := len(v.want)
		first, last := get(t, s, v.got.Slice(0, n)), get(t, s, v.got.Slice((batch-1)*n, n))
		if !slices.Equal(first, last) {
			t.Errorf("%s of the last sequence differs from that of the first", name)
		}
		largest := 1.0
		for _, w := range v.want {
			largest = max(largest, math.Abs(w))
		}
		for i, w := range v.want {
			if d := math.Abs(last[i] - w); !(d <= (1.0/256+2e-5)*largest) {
				t.Fatalf("%s[%d] of the last sequence is %v, want %v", name, i, last[i], w)
			}
		}
	}
}

// TestScanLong tests a scan of a million steps.
func TestScanLong(t *testing.T) {
	s := open(t)
	if testing.Short() {
		t.Skip("too slow for -short")
	}
	against[float32](t, s, draw[float32](rand.New(rand.NewPCG(6, 6)), 1, 1<<20, 4, 1, 2))
}

// TestScanLeavesNothing checks that a thousand steps, or fifty with -short, do not increase the memory in use.
func TestScanLeavesNothing(t *testing.T) {
	s := open(t)
	p := draw[float32](rand.New(rand.NewPCG(7, 7)), 2, 64, 64, 1, 16)
	rig := onDevice[float32](t, s, p)
	var used, held int64
	for i := range times(1000, 50) {
		do(t, rig.run())
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
