package kernel

import (
	"fmt"
	"math"
	"math/cmplx"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
)

// newS4 draws random operands in the range that training reaches: Δ from 0.001 to 0.1, decays around 1/2, frequencies up to modes·π.
func newS4(r *rand.Rand, batch, length, channels, modes int, complexModes, bilinear, d bool) *S4[float64] {
	draw := func(n int, f func() float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = f()
		}
		return v
	}
	s := &S4[float64]{Batch: batch, Length: length, Channels: channels, Modes: modes, Bilinear: bilinear}
	s.U = draw(batch*length*channels, r.NormFloat64)
	s.LogDelta = draw(channels, func() float64 { return math.Log(0.001) + r.Float64()*math.Log(100) })
	s.LogDecay = draw(channels*modes, func() float64 { return math.Log(0.5) + r.NormFloat64() })
	if complexModes {
		s.Frequency = draw(channels*modes, func() float64 { return math.Pi * float64(modes) * r.Float64() })
	}
	s.C = draw(channels*s.state(), r.NormFloat64)
	if d {
		s.D = draw(channels, r.NormFloat64)
	}
	return s
}

func newS4Grad(s *S4[float64]) *S4Grad[float64] {
	like := func(v []float64) []float64 {
		if v == nil {
			return nil
		}
		return slices.Repeat([]float64{math.NaN()}, len(v)) // every element must be written
	}
	return &S4Grad[float64]{like(s.U), like(s.LogDelta), like(s.LogDecay), like(s.Frequency), like(s.C), like(s.D), like(s.Initial)}
}

func (g *S4Grad[T]) all() map[string][]T {
	return map[string][]T{"U": g.U, "LogDelta": g.LogDelta, "LogDecay": g.LogDecay, "Frequency": g.Frequency, "C": g.C, "D": g.D, "Initial": g.Initial}
}

// farthest returns the largest difference divided by the largest magnitude of want, or infinity if a difference is NaN.
func farthest(got, want []float64) float64 {
	worst, largest := 0.0, 1e-300
	for i := range want {
		d := math.Abs(got[i] - want[i])
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		worst = max(worst, d)
		largest = max(largest, math.Abs(want[i]))
	}
	return worst / largest
}

func eachS4(t *testing.T, test func(t *testing.T, complexModes, bilinear, d bool)) {
	for i := range 8 {
		a, b, c := i&1 != 0, i&2 != 0, i&4 != 0
		t.Run(fmt.Sprintf("complex=%t,bilinear=%t,D=%t", a, b, c), func(t *testing.T) { test(t, a, b, c) })
	}
}

// The convolution and the recurrence compute the same results and gradients.
func TestS4ConvolutionIsRecurrence(t *testing.T) {
	eachS4(t, func(t *testing.T, complexModes, bilinear, d bool) {
		for _, length := range []int{1, 2, 255, 4096} {
			r := rand.New(rand.NewPCG(1, uint64(length)))
			s := newS4(r, 2, length, 3, 4, complexModes, bilinear, d)
			y, want, dy := make([]float64, len(s.U)), make([]float64, len(s.U)), make([]float64, len(s.U))
			for i := range dy {
				dy[i] = r.NormFloat64()
			}
			s.Convolve(y)
			s.Scan(want, nil)
			if e := farthest(y, want); !(e < 1e-9) {
				t.Errorf("length %d: y is off by %.2g", length, e)
			}
			got, expected := newS4Grad(s), newS4Grad(s)
			s.ConvolveBackward(dy, got)
			s.ScanBackward(dy, nil, expected)
			for name, want := range expected.all() {
				if e := farthest(got.all()[name], want); !(e < 1e-9) {
					t.Errorf("length %d: the gradient by %s is off by %.2g", length, name, e)
				}
			}
		}
	})
}

// The response to an impulse is a sum of powers. The test computes each power from the exponential of the continuous system.
func TestS4Impulse(t *testing.T) {
	eachS4(t, func(t *testing.T, complexModes, bilinear, d bool) {
		r := rand.New(rand.NewPCG(2, 1))
		s := newS4(r, 1, 600, 2, 3, complexModes, bilinear, d)
		clear(s.U)
		s.U[0], s.U[1] = 1, 1 // an impulse in each channel
		y := make([]float64, len(s.U))
		s.Convolve(y)
		for ch := range s.Channels {
			for _, j := range []int{0, 1, 255, 256, 257, 599} {
				want := 0.0
				for n := range s.Modes {
					at := ch*s.Modes + n
					delta := complex(math.Exp(s.LogDelta[ch]), 0)
					a, c, twice := complex(-math.Exp(s.LogDecay[at]), 0), complex(0, 0), 1.0
					if complexModes {
						a += complex(0, s.Frequency[at])
						c, twice = complex(s.C[ch*6+n], s.C[ch*6+3+n]), 2
					} else {
						c = complex(s.C[at], 0)
					}
					w, b := cmplx.Exp(delta*a), (cmplx.Exp(delta*a)-1)/a
					if bilinear {
						w, b = (1+delta*a/2)/(1-delta*a/2), delta/(1-delta*a/2)
					}
					want += twice * real(c*b*cmplx.Pow(w, complex(float64(j), 0)))
				}
				if d && j == 0 {
					want += s.D[ch]
				}
				if got := y[j*s.Channels+ch]; math.Abs(got-want) > 1e-11*math.Max(1, math.Abs(want)) {
					t.Errorf("channel %d: K[%d] is %v, want %v", ch, j, got, want)
				}
			}
		}
	})
}

// The gradients of Convolve and Scan equal central differences. Scan has an initial state, a final state and starts.
func TestS4Gradients(t *testing.T) {
	eachS4(t, func(t *testing.T, complexModes, bilinear, d bool) {
		for _, scan := range []bool{false, true} {
			r := rand.New(rand.NewPCG(3, 1))
			s := newS4(r, 2, 150, 2, 3, complexModes, bilinear, d)
			var dfinal, final []float64
			draw := func(n int) []float64 {
				v := make([]float64, n)
				for i := range v {
					v[i] = r.NormFloat64()
				}
				return v
			}
			if scan {
				s.Initial, dfinal = draw(2*2*s.state()), draw(2*2*s.state())
				final = make([]float64, len(dfinal))
				s.Start = make([]bool, 300)
				s.Start[70], s.Start[150] = true, true // within a tile, and at the first step of the second row of the batch
			}
			y, dy := make([]float64, len(s.U)), draw(len(s.U))
			loss := func() (sum float64) {
				if scan {
					s.Scan(y, final)
				} else {
					s.Convolve(y)
				}
				for i := range y {
					sum += y[i] * dy[i]
				}
				for i := range final {
					sum += final[i] * dfinal[i]
				}
				return sum
			}
			grad := newS4Grad(s)
			if scan {
				s.ScanBackward(dy, dfinal, grad)
			} else {
				s.ConvolveBackward(dy, grad)
			}
			for name, of := range map[string][]float64{
				"U": s.U, "LogDelta": s.LogDelta, "LogDecay": s.LogDecay, "Frequency": s.Frequency, "C": s.C, "D": s.D, "Initial": s.Initial,
			} {
				for i := 0; i < len(of); i += 1 + len(of)/17 {
					const step = 1e-5
					x := of[i]
					of[i] = x + step
					up := loss()
					of[i] = x - step
					down := loss()
					of[i] = x
					want := (up - down) / (2 * step)
					if got := grad.all()[name][i]; math.Abs(got-want) > 2e-5*(1+math.Abs(want)) {
						t.Errorf("scan %t: gradient by %s[%d] is %v, want %v", scan, name, i, got, want)
					}
				}
			}
		}
	})
}

// A sequence scanned in pieces, each from the final state of the piece before, gives the same results as the whole sequence.
func TestS4Pieces(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 1))
	s := newS4(r, 1, 100, 3, 2, true, false, true)
	want, wantFinal := make([]float64, 300), make([]float64, 12)
	s.Scan(want, wantFinal)
	var got []float64
	state := make([]float64, 12)
	for _, part := range [][2]int{{0, 1}, {1, 40}, {40, 100}} {
		p := *s
		p.Length, p.U, p.Initial = part[1]-part[0], s.U[3*part[0]:3*part[1]], slices.Clone(state)
		y := make([]float64, len(p.U))
		p.Scan(y, state)
		got = append(got, y...)
	}
	if !slices.Equal(got, want) || !slices.Equal(state, wantFinal) {
		t.Error("the pieces differ from the whole")
	}
}

// The results in float32 are the rounded results in float64. They are the same for any number of processors.
func TestS4Types(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	narrow := func(v []float64) []float32 {
		if v == nil {
			return nil
		}
		w := make([]float32, len(v))
		for i := range v {
			w[i] = float32(v[i])
		}
		return w
	}
	widen := func(v []float32) []float64 {
		w := make([]float64, len(v))
		for i := range v {
			w[i] = float64(v[i])
		}
		return w
	}
	r := rand.New(rand.NewPCG(5, 1))
	s := newS4(r, 2, 333, 5, 4, true, false, true)
	n := &S4[float32]{Batch: 2, Length: 333, Channels: 5, Modes: 4,
		U: narrow(s.U), LogDelta: narrow(s.LogDelta), LogDecay: narrow(s.LogDecay), Frequency: narrow(s.Frequency), C: narrow(s.C), D: narrow(s.D)}
	w := &S4[float64]{Batch: 2, Length: 333, Channels: 5, Modes: 4,
		U: widen(n.U), LogDelta: widen(n.LogDelta), LogDecay: widen(n.LogDecay), Frequency: widen(n.Frequency), C: widen(n.C), D: widen(n.D)}
	want := make([]float64, len(w.U))
	w.Convolve(want)
	grad := newS4Grad(w)
	w.ConvolveBackward(want, grad)
	var first []float32
	for _, procs := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(procs)
		y := make([]float32, len(n.U))
		n.Convolve(y)
		if e := farthest(widen(y), want); e > 1e-7 {
			t.Errorf("float32 is off by %.2g", e)
		}
		g := &S4Grad[float32]{U: make([]float32, len(n.U)), LogDelta: make([]float32, 5), LogDecay: make([]float32, 20), Frequency: make([]float32, 20), C: make([]float32, 40), D: make([]float32, 5)}
		n.ConvolveBackward(y, g)
		for name, want := range grad.all() {
			if len(want) > 0 && farthest(widen(g.all()[name]), want) > 1e-6 {
				t.Errorf("float32: the gradient by %s is off", name)
			}
		}
		all := slices.Concat(y, g.U, g.LogDelta, g.LogDecay, g.Frequency, g.C, g.D)
		if first == nil {
			first = all
		}
		if !slices.Equal(first, all) {
			t.Errorf("GOMAXPROCS %d: the results differ", procs)
		}
	}
}

func TestTransformLength(t *testing.T) {
	for length := 1; length < 5000; length++ {
		n := transformLength(length)
		if n < 2*length-1 || n%2 != 0 || length > 8 && n > 5*length/2 {
			t.Fatalf("length %d: %d", length, n)
		}
	}
}

func BenchmarkS4(b *testing.B) {
	for _, length := range []int{256, 4096} {
		if testing.Short() && length > 256 {
			continue
		}
		s := newS4(rand.New(rand.NewPCG(6, 1)), 4, length, 64, 32, true, false, true)
		y, grad := make([]float64, len(s.U)), newS4Grad(s)
		for name, run := range map[string]func(){
			"convolve": func() { s.Convolve(y) }, "convolve/backward": func() { s.ConvolveBackward(s.U, grad) },
			"scan": func() { s.Scan(y, nil) }, "scan/backward": func() { s.ScanBackward(s.U, nil, grad) },
		} {
			b.Run(fmt.Sprintf("%s/B=4/L=%d/D=64/N=64", name, length), func(b *testing.B) {
				benchtest.Processors(b)
				for b.Loop() {
					run()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(s.U)), "ns/td")
			})
		}
	}
}
