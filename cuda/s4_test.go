package cuda

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/gomamba/mamba/internal/kernel"
)

// s4Case is an S4 on the host, whose numbers are float32, with gradients of its results, and its twin on the device.
type s4Case struct {
	host        kernel.S4[float64]
	dy, dfinal  []float64 // dfinal may be nil
	start       []uint8
	device      *S4
	states, all int
}

// newS4Case draws operands in the range that training reaches: Δ from 0.001 to 0.1, decays around 1/2, frequencies up to modes·π.
func newS4Case(r *rand.Rand, batch, length, channels, modes int) *s4Case {
	coin := func() bool { return r.IntN(2) == 0 }
	between := func(n int, f func() float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = float64(float32(f()))
		}
		return v
	}
	h := kernel.S4[float64]{Batch: batch, Length: length, Channels: channels, Modes: modes, Bilinear: coin()}
	h.U = numbers[float32](r, batch*length*channels, 1)
	h.LogDelta = between(channels, func() float64 { return math.Log(0.001) + r.Float64()*math.Log(100) })
	h.LogDecay = between(channels*modes, func() float64 { return math.Log(0.5) + r.NormFloat64() })
	state := modes
	if coin() {
		h.Frequency = between(channels*modes, func() float64 { return math.Pi * float64(modes) * r.Float64() })
		state = 2 * modes
	}
	h.C = numbers[float32](r, channels*state, 1)
	if coin() {
		h.D = numbers[float32](r, channels, 1)
	}
	c := &s4Case{host: h, states: batch * channels * state, all: len(h.U), dy: numbers[float32](r, len(h.U), 1)}
	if coin() {
		c.host.Initial = numbers[float32](r, c.states, 1)
	}
	if coin() {
		c.dfinal = numbers[float32](r, c.states, 1)
	}
	if coin() {
		c.host.Start, c.start = make([]bool, batch*length), make([]uint8, batch*length)
		for i := range c.start {
			if r.IntN(1+length/3) == 0 {
				c.host.Start[i], c.start[i] = true, 1
			}
		}
	}
	return c
}

func (c *s4Case) String() string {
	h := c.host
	return fmt.Sprintf("batch %d, length %d, channels %d, modes %d, bilinear %t, complex %t, D %t, initial %t, dfinal %t, start %t", h.Batch, h.Length,
		h.Channels, h.Modes, h.Bilinear, h.Frequency != nil, h.D != nil, h.Initial != nil, c.dfinal != nil, h.Start != nil)
}

// s4Results maps names to the results and gradients.
type s4Results map[string][]float64

func (c *s4Case) onHost() s4Results {
	h := c.host
	y, final := make([]float64, c.all), make([]float64, c.states)
	h.Scan(y, final)
	g := kernel.S4Grad[float64]{U: like[float64](h.U), LogDelta: like[float64](h.LogDelta), LogDecay: like[float64](h.LogDecay),
		Frequency: like[float64](h.Frequency), C: like[float64](h.C), D: like[float64](h.D), Initial: like[float64](h.Initial)}
	h.ScanBackward(c.dy, c.dfinal, &g)
	return s4Results{"y": y, "final": final, "dU": g.U, "dLogDelta": g.LogDelta, "dLogDecay": g.LogDecay, "dFrequency": g.Frequency, "dC": g.C,
		"dD": g.D, "dInitial": g.Initial}
}

func (c *s4Case) on(t testing.TB, s *Stream) *S4 {
	if c.device == nil {
		h, up := c.host, func(v []float64) Array[float32] { return put[float32](t, s, v) }
		c.device = &S4{Batch: h.Batch, Length: h.Length, Channels: h.Channels, Modes: h.Modes, Bilinear: h.Bilinear, U: up(h.U), LogDelta: up(h.LogDelta),
			LogDecay: up(h.LogDecay), Frequency: up(h.Frequency), C: up(h.C), D: up(h.D), Initial: up(h.Initial)}
		if c.start != nil {
			c.device.Start = putInts(t, s, c.start)
		}
	}
	return c.device
}

// gradients returns arrays for the gradients.
func (p *S4) gradients(make func(n int) Array[float32]) *S4Grad {
	to := func(a Array[float32]) Array[float32] {
		if a.Absent() {
			return a
		}
		return make(a.n)
	}
	return &S4Grad{U: to(p.U), LogDelta: to(p.LogDelta), LogDecay: to(p.LogDecay), Frequency: to(p.Frequency), C: to(p.C), D: to(p.D), Initial: to(p.Initial)}
}

func (c *s4Case) onDevice(t testing.TB, s *Stream) s4Results {
	p := c.on(t, s)
	y, final := blank[float32](t, s, c.all), Array[float32]{}
	if s.s4 != s4Convolution {
		final = blank[float32](t, s, c.states)
	}
	do(t, p.Forward(s, y, final))
	g := p.gradients(func(n int) Array[float32] { return blank[float32](t, s, n) })
	do(t, p.Backward(s, put[float32](t, s, c.dy), put[float32](t, s, c.dfinal), g))
	all := s4Results{}
	if final.Absent() {
		defer delete(all, "final")
	}
	for name, a := range map[string]Array[float32]{"y": y, "final": final, "dU": g.U, "dLogDelta": g.LogDelta, "dLogDecay": g.LogDecay,
		"dFrequency": g.Frequency, "dC": g.C, "dD": g.D, "dInitial": g.Initial} {
		all[name] = get(t, s, a)
	}
	return all
}

// crowd makes the stream's device one of few multiprocessors until the test ends: lengths are not cut, and blocks take several sequences.
func crowd(t *testing.T, s *Stream) {
	before := s.device.multiprocessors
	s.device.multiprocessors = 1
	t.Cleanup(func() { s.device.multiprocessors = before })
}

// whole makes c a case of whole sequences, which a convolution can compute.
func (c *s4Case) whole() *s4Case {
	c.host.Initial, c.host.Start, c.start, c.dfinal = nil, nil, nil, nil
	return c
}

// bothWays runs a test with the recurrence and with the convolution.
func bothWays(t *testing.T, test func(*testing.T, *Stream)) {
	s := open(t)
	for name, way := range map[string]s4Way{"recurrence": s4Recurrence, "convolution": s4Convolution} {
		t.Run(name, func(t *testing.T) { by(t, s, way); test(t, s) })
	}
}

// by chooses the way of every S4 on the stream until the test ends.
func by(t testing.TB, s *Stream, way s4Way) {
	before := s.s4
	s.s4 = way
	t.Cleanup(func() { s.s4 = before })
}

// TestS4 compares results and gradients with those of the host in float64, for random sizes and options. The results are the host's, rounded
// to float32. A second run gives the same bits.
func TestS4(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(30, 30))
	compare := func(t *testing.T, c *s4Case) {
		got, want := c.onDevice(t, s), c.onHost()
		if s.s4 == s4Convolution {
			delete(want, "final")
		}
		for name, w := range want {
			near(t, fmt.Sprint(c, ": ", name), got[name], w, 1e-6)
		}
		for name, v := range c.onDevice(t, s) {
			if !slices.Equal(v, got[name]) {
				t.Errorf("%v: %s differs in a second run", c, name)
			}
		}
	}
	t.Run("small", func(t *testing.T) {
		for range times(40, 14) {
			compare(t, newS4Case(r, 1+r.IntN(3), 1+r.IntN(70), 1+r.IntN(40), []int{1, 3, 8, 9, 16, 20, 32}[r.IntN(7)]))
		}
	})
	t.Run("many modes", func(t *testing.T) {
		for _, modes := range []int{33, 64, 100, 256} {
			compare(t, newS4Case(r, 1+r.IntN(2), 1+r.IntN(40), 1+r.IntN(9), modes))
		}
	})
	t.Run("chunks", func(t *testing.T) {
		for range times(16, 4) {
			compare(t, newS4Case(r, 1+r.IntN(2), 3*s4Chunk+r.IntN(200), 1+r.IntN(3), []int{1, 5, 16}[r.IntN(3)]))
		}
	})
	t.Run("convolution", func(t *testing.T) {
		by(t, s, s4Convolution)
		defer func(n int) { s4Bytes = n }(s4Bytes)
		for range times(40, 8) {
			s4Bytes = 1 << (15 + r.IntN(6)) // a few channels at a time, or all
			compare(t, newS4Case(r, 1+r.IntN(3), 1+r.IntN(70), 1+r.IntN(70), []int{1, 3, 8, 9, 16, 40}[r.IntN(6)]).whole())
		}
		for _, modes := range []int{3, 256} { // several parts of a sum, and several blocks of an impulse response
			s4Bytes = 1 << 20
			compare(t, newS4Case(r, 2, 2100+r.IntN(100), 2, modes).whole())
		}
		if len(s.ffts) == 0 {
			t.Error("there was no transform")
		}
		for f, plan := range s.ffts {
			if plan.wrong != nil {
				t.Errorf("%+v: %v", f, plan.wrong)
			}
		}
	})
	t.Run("several sequences in a block", func(t *testing.T) {
		crowd(t, s)
		for range times(12, 3) {
			compare(t, newS4Case(r, 7+r.IntN(20), 1+r.IntN(40), 1+r.IntN(8), []int{1, 5, 16}[r.IntN(3)]))
		}
	})
}

// TestS4PTX checks that the PTX has every kernel, and that s4Args and s4Piece have the sizes that the kernels expect.
func TestS4PTX(t *testing.T) {
	text, err := readPTX("s4")
	do(t, err)
	convolution, err := readPTX("s4fft")
	do(t, err)
	names := []string{"s4_modes", "s4_forward_ends", "s4_carry", "s4_backward_ends", "s4_carry_back", "s4_gradients", "s4_step"}
	for _, modes := range []int{1, 16, 256} {
		lanes := fmt.Sprint((&S4{Modes: modes}).lanes())
		names = append(names, "s4_forward_"+lanes, "s4_backward_"+lanes, "s4_backward_final_"+lanes)
	}
	check := func(name string, text []byte, i int, size uintptr) {
		m := regexp.MustCompile(fmt.Sprintf(`\.param \.align 8 \.b8 %s_param_%d\[(\d+)\]`, name, i)).FindSubmatch(text)
		if m == nil || string(m[1]) != fmt.Sprint(size) {
			t.Errorf("%s takes %q bytes, want %d", name, m, size)
		}
	}
	for _, name := range names {
		check(name, text, 0, unsafe.Sizeof(s4Args{}))
	}
	for _, name := range []string{"load", "impulse", "multiply", "multiply_back", "store", "modes"} {
		check("s4_fft_"+name, convolution, 0, unsafe.Sizeof(s4Args{}))
		check("s4_fft_"+name, convolution, 1, unsafe.Sizeof(s4Piece{}))
	}
}

// One gradient that is absent is one of zeros.
func TestS4WithoutGradient(t *testing.T) {
	s := open(t)
	for _, length := range []int{1, 20, 3 * s4Chunk} {
		c := newS4Case(rand.New(rand.NewPCG(31, 31)), 2, length, 3, 4)
		c.host.Initial = numbers[float32](rand.New(rand.NewPCG(1, 1)), c.states, 1)
		c.dfinal = slices.Clone(c.host.Initial)
		c.dy = make([]float64, c.all)
		want := c.onDevice(t, s)
		c.dy = nil
		for name, v := range c.onDevice(t, s) {
			if !slices.Equal(v, want[name]) {
				t.Errorf("length %d: without dy, %s differs", length, name)
			}
		}
	}
}

// For extreme steps, decays and frequencies, the device has what the host has.
func TestS4Extremes(t *testing.T) { bothWays(t, testS4Extremes) }

func testS4Extremes(t *testing.T, s *Stream) {
	frequencies := []float64{0, 1, -1e4, 1e12}
	decays := []float64{-80, -20, 0, 8, 80}
	for _, bilinear := range []bool{false, true} {
		for _, length := range []int{70, 3 * s4Chunk} {
			if length > 70 && testing.Short() && bilinear {
				continue
			}
			c := newS4Case(rand.New(rand.NewPCG(32, 1)), 1, length, 6, len(decays)*len(frequencies))
			h := &c.host
			h.Bilinear, h.Frequency, h.C = bilinear, make([]float64, len(h.LogDecay)), numbers[float32](rand.New(rand.NewPCG(2, 2)), 2*len(h.LogDecay), 1)
			c.states, h.Initial, c.dfinal = 2*len(h.LogDecay), nil, nil
			if s.s4 == s4Convolution {
				c.whole()
			}
			for i := range h.LogDecay {
				n := i % h.Modes
				h.LogDecay[i], h.Frequency[i] = float64(float32(decays[n%len(decays)])), float64(float32(frequencies[n/len(decays)]))
			}
			h.LogDelta = []float64{-80, -20, -7, 0, 5, 80}
			got, want := c.onDevice(t, s), c.onHost()
			if s.s4 == s4Convolution {
				delete(want, "final")
			}
			for name, w := range want {
				for d := range h.Channels { // channels differ by many orders of magnitude
					var a, b []float64
					switch n := len(w); {
					case name == "y" || name == "dU":
						for i := d; i < n; i += h.Channels {
							a, b = append(a, got[name][i]), append(b, w[i])
						}
					default:
						a, b = got[name][d*n/h.Channels:(d+1)*n/h.Channels], w[d*n/h.Channels:(d+1)*n/h.Channels]
					}
					largest := 0.0
					for _, v := range b {
						largest = max(largest, math.Abs(v))
					}
					for i, v := range b {
						if !(math.Abs(a[i]-float64(float32(v))) <= 1e-6*largest+1e-45) && !(math.Abs(v) > math.MaxFloat32 && math.IsInf(a[i], 0)) {
							t.Fatalf("bilinear %t, length %d, channel %d: %s[%d] is %v, want %v (largest %g)", bilinear, length, d, name, i, a[i], v, largest)
						}
					}
				}
			}
		}
	}
}

// What is not finite goes forwards in time only, and not beyond the start of a sequence.
func TestS4NotFinite(t *testing.T) { bothWays(t, testS4NotFinite) }

func testS4NotFinite(t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(33, 33))
	for _, length := range []int{1, 40, 4 * s4Chunk} {
		for _, bad := range []float64{math.NaN(), math.Inf(1)} {
			for range times(3, 1) {
				c := newS4Case(r, 2, length, 3, 5)
				if s.s4 == s4Convolution {
					c.whole()
				}
				c.host.U[r.IntN(len(c.host.U))] = bad
				c.dy[r.IntN(len(c.dy))] = bad
				got, want := c.onDevice(t, s), c.onHost()
				for name := range got {
					for i, w := range want[name] {
						if g := got[name][i]; (g-g == 0) != (w-w == 0) {
							t.Fatalf("%v: %s[%d] is %v, want %v", c, name, i, g, w)
						}
					}
				}
			}
		}
	}
}

// Steps, and pieces of several steps, each from the state of the one before, give what the whole gives. Steps may write the state in place,
// and may be captured.
func TestS4Pieces(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(34, 34))
	for range 4 {
		c := newS4Case(r, 2, 9, 5, []int{3, 16, 40}[r.IntN(3)])
		c.host.Initial, c.host.Start, c.start = numbers[float32](r, c.states, 1), nil, nil
		whole, p := c.onDevice(t, s), *c.on(t, s)
		y := make([]float64, 0, c.all)
		u, out, state := blank[float32](t, s, 10), blank[float32](t, s, 10), put[float32](t, s, c.host.Initial)
		p.Length, p.Initial, p.U = 1, state, u
		do(t, p.Forward(s, out, state), state.CopyOf(s, c.on(t, s).Initial)) // loads the kernel
		step, err := s.Capture(func() error { return p.Forward(s, out, state) })
		do(t, err)
		rows := make([][]float64, 2)
		for i := range 9 {
			var row []float32
			for b := range 2 {
				for _, v := range c.host.U[(b*9+i)*5:][:5] {
					row = append(row, float32(v))
				}
			}
			do(t, u.CopyFrom(s, row), step.Launch(s))
			for b, v := range slices.Collect(slices.Chunk(get(t, s, out), 5)) {
				rows[b] = append(rows[b], v...)
			}
		}
		do(t, step.Close())
		y = append(append(y, rows[0]...), rows[1]...)
		near(t, fmt.Sprint(c, ": y step by step"), y, whole["y"], 1e-6)
		near(t, fmt.Sprint(c, ": the state step by step"), get(t, s, state), whole["final"], 1e-6)
	}
}

// Without cuFFT whole sequences are computed by the recurrence. A file in $MAMBA_CUFFT that cannot be loaded is an error.
func TestS4WithoutCuFFT(t *testing.T) {
	s := open(t)
	c := newS4Case(rand.New(rand.NewPCG(35, 35)), 4, 300, 2, 20).whole()
	before := cufft
	defer func() { cufft = before }()
	by(t, s, s4Recurrence)
	want := c.onDevice(t, s)
	delete(want, "final")
	by(t, s, s4Convolution)
	cufft = newCuFFT()
	cufft.file = "libnothing.so"
	t.Setenv("MAMBA_CUFFT", "")
	for name, v := range c.onDevice(t, s) {
		if !slices.Equal(v, want[name]) {
			t.Errorf("without cuFFT, %s is not that of the recurrence", name)
		}
	}
	cufft, s.ffts = newCuFFT(), nil
	file := filepath.Join(t.TempDir(), "libcufft.so.12")
	t.Setenv("MAMBA_CUFFT", file)
	g := c.device.gradients(func(n int) Array[float32] { return blank[float32](t, s, n) })
	for _, err := range []error{c.device.Forward(s, c.device.U, Array[float32]{}), c.device.Backward(s, c.device.U, Array[float32]{}, g)} {
		if err == nil || !strings.HasPrefix(err.Error(), "cuda: cuFFT: MAMBA_CUFFT is "+file) {
			t.Errorf("the error is %v", err)
		}
	}
}

// The sizes choose the way.
func TestS4Rule(t *testing.T) {
	s := open(t)
	if cufft.load() != nil {
		t.Skip("this machine has no cuFFT")
	}
	for _, test := range []struct {
		batch, length, modes int
		convolves            bool
	}{{8, 1024, 32, true}, {8, 1024, 16, false}, {8, 1300, 32, false}, {4, 1024, 32, false}, {4, 1024, 33, true}, {1, 1024, 256, false}, {2, 4096, 64, true},
		{8, 8192, 32, false}, {8, 8192, 64, true}, {8, 65536, 32, false}, {8, 65536, 64, true}, {8, 100, 64, false}, {8, 1 << 24, 256, false}} {
		p := &S4{Batch: test.batch, Length: test.length, Channels: 1536, Modes: test.modes}
		for _, back := range []bool{false, true} {
			channels, err := p.convolves(s, Array[float32]{}, back)
			do(t, err)
			if channels > 0 != test.convolves || 16*channels*p.rows(back)*fftPoints(test.length) > s4Bytes {
				t.Errorf("%+v, back %t: %d channels at a time", test, back, channels)
			}
		}
	}
	for _, length := range []int{1, 2, 5, 6, 1000, 1025, 1 << 20} {
		if n := fftPoints(length); n < length || n > max(4, 4*length/3+2) || n>>bits.TrailingZeros(uint(n)) > 5 {
			t.Errorf("length %d: a transform of %d points", length, n)
		}
	}
}

// A captured convolution gives the same bits in every launch.
func TestS4Captured(t *testing.T) {
	s := open(t)
	by(t, s, s4Convolution)
	c := newS4Case(rand.New(rand.NewPCG(36, 36)), 2, 40, 5, 3).whole()
	want := c.onDevice(t, s) // makes the plans
	u, y, dy := c.device.U, blank[float32](t, s, c.all), put[float32](t, s, c.dy)
	g := c.device.gradients(func(n int) Array[float32] { return blank[float32](t, s, n) })
	run, err := s.Capture(func() error {
		return firstError(c.device.Forward(s, y, Array[float32]{}), c.device.Backward(s, dy, Array[float32]{}, g))
	})
	do(t, err)
	for range 2 {
		do(t, u.CopyFrom(s, make([]float32, c.all)), run.Launch(s), u.CopyOf(s, put[float32](t, s, c.host.U)), run.Launch(s))
		for name, a := range map[string]Array[float32]{"y": y, "dU": g.U, "dLogDelta": g.LogDelta, "dC": g.C} {
			if !slices.Equal(get(t, s, a), want[name]) {
				t.Errorf("%s differs in a launch", name)
			}
		}
	}
	do(t, run.Close())
}

// A length of 0 leaves the state as it is.
func TestS4WithoutSteps(t *testing.T) {
	s := open(t)
	v := []float64{1, 2, 3, 4}
	up := func(v []float64) Array[float32] { return put[float32](t, s, v) }
	p := &S4{Batch: 2, Channels: 1, Modes: 2, U: up([]float64{}), LogDelta: up(v[:1]), LogDecay: up(v[:2]), C: up(v[:2]), Initial: up(v)}
	final := blank[float32](t, s, 4)
	g := &S4Grad{U: up([]float64{}), LogDelta: blank[float32](t, s, 1), LogDecay: blank[float32](t, s, 2), C: blank[float32](t, s, 2), Initial: blank[float32](t, s, 4)}
	do(t, p.Forward(s, p.U, final), p.Backward(s, p.U, up(v), g))
	near(t, "final", get(t, s, final), v, 0)
	near(t, "the gradient of Initial", get(t, s, g.Initial), v, 0)
	near(t, "the gradient of C", get(t, s, g.C), []float64{0, 0}, 0)
	p.Initial, g.Initial = Array[float32]{}, Array[float32]{}
	do(t, p.Forward(s, p.U, final), p.Backward(s, p.U, up(v), g))
	near(t, "final", get(t, s, final), make([]float64, 4), 0)
}

// BenchmarkS4 measures S4 with complex states of 64 and 128 numbers (32 and 64 modes), by the recurrence and by convolution.
func BenchmarkS4(b *testing.B) {
	s := open(b)
	for _, modes := range []int{32, 64} {
		b.Run(fmt.Sprint("recurrence/N", 2*modes), func(b *testing.B) { by(b, s, s4Recurrence); benchmarkS4(b, s, modes) })
		b.Run(fmt.Sprint("convolution/N", 2*modes), func(b *testing.B) { by(b, s, s4Convolution); benchmarkS4(b, s, modes) })
	}
}

func benchmarkS4(b *testing.B, s *Stream, modes int) {
	for _, n := range []struct{ batch, channels, length int }{{8, 1536, 1024}, {8, 1536, 4096}, {8, 1536, 8192}, {1, 1536, 65536}, {1, 768, 65536}, {64, 256, 1024}, {1, 1536, 1}, {8, 1536, 1}} {
		rows := n.batch * n.length * n.channels
		each := func(k int) Array[float32] { return zeros[float32](b, s, k*n.channels) }
		p := &S4{Batch: n.batch, Length: n.length, Channels: n.channels, Modes: modes, U: each(n.batch * n.length), LogDelta: each(1),
			LogDecay: each(modes), Frequency: each(modes), C: each(2 * modes), D: each(1)}
		size := fmt.Sprintf("B%dD%dL%d", n.batch, n.channels, n.length)
		y, final := each(n.batch*n.length), Array[float32]{}
		if n.length == 1 && s.s4 == s4Convolution {
			continue
		}
		if n.length == 1 {
			p.Initial = each(2 * modes * n.batch)
			final = p.Initial
		}
		b.Run("forward/"+size, func(b *testing.B) { measure(b, s, 8*rows, func() error { return p.Forward(s, y, final) }) })
		if n.length == 1 {
			continue
		}
		g := &S4Grad{U: each(n.batch * n.length), LogDelta: each(1), LogDecay: each(modes), Frequency: each(modes), C: each(2 * modes), D: each(1)}
		b.Run("backward/"+size, func(b *testing.B) {
			measure(b, s, 12*rows, func() error { return p.Backward(s, y, Array[float32]{}, g) })
		})
	}
}
