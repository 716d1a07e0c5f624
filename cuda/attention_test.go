package cuda

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/kernel"
)

// attentionCase is attention with random operands on the host, in float64.
type attentionCase struct {
	kernel.Attention[float64]
	dy, dnext []float64
	precision Precision
}

// brief reports whether a test shall do less: with -short, the kernels of tensor cores are tested on fewer cases, since the stand-in takes long.
func brief(p Precision) bool { return testing.Short() && p != Strict }

// eachPrecision runs a test in each precision, with its tolerance for a result whose largest number is about 1.
func eachPrecision(t *testing.T, test func(t *testing.T, s *Stream, p Precision, tol float64)) {
	s := open(t)
	for p, tol := range map[Precision]float64{Strict: 2e-6, TF32: 1.0 / 1024, BF16: 1.0 / 128} {
		t.Run(p.String(), func(t *testing.T) {
			if p != Strict && s.device.kernels < 80 {
				t.Skip("the device has no tensor cores for it, and computes in float32")
			}
			test(t, s, p, tol)
		})
	}
}

func drawAttention(r *rand.Rand, batch, length, dim, heads, window int, precision Precision, scale float64) *attentionCase {
	coin := func() bool { return r.IntN(2) == 0 }
	width, n := dim*heads, batch*length*dim*heads
	draw := func(n int) []float64 { return numbers[float32](r, n, scale) }
	p := &attentionCase{Attention: kernel.Attention[float64]{Batch: batch, Length: length, Channels: width, Heads: heads, Window: window,
		Q: draw(n), K: draw(n), V: numbers[float32](r, n, 1), Gemm: gonum.Implementation{}.Dgemm}, dy: numbers[float32](r, n, 1), precision: precision}
	if coin() && dim%2 == 0 {
		p.Base = []float64{10, 1e4}[r.IntN(2)]
	}
	if row := 2*width + 1; window > 1 {
		p.dnext = numbers[float32](r, batch*(window-1)*row, 1)
		if coin() {
			p.Context = draw(batch * (window - 1) * row)
			for b := range batch {
				missing := r.IntN(window) // the rows of the context that hold no step
				for s := range window - 1 {
					p.Context[(b*(window-1)+s)*row+2*width] = 1
					if s < missing && (s+1 == missing || coin()) {
						p.Context[(b*(window-1)+s)*row+2*width] = 0
					}
				}
			}
		}
	}
	if coin() {
		p.Start = make([]bool, batch*length)
		for i := range p.Start {
			p.Start[i] = r.IntN(40) == 0
		}
	}
	return p
}

func (p *attentionCase) String() string {
	return fmt.Sprintf("%v, batch %d, length %d, width %d, heads %d, window %d, base %v, context %t, starts %t", p.precision, p.Batch, p.Length, p.Channels, p.Heads,
		p.Window, p.Base, p.Context != nil, p.Start != nil)
}

// attentionResults are y, next and the gradients of Q, K, V and the context.
type attentionResults struct{ y, next, dq, dk, dv, dcontext []float64 }

func (r *attentionResults) named() map[string][]float64 {
	return map[string][]float64{"y": r.y, "next": r.next, "dQ": r.dq, "dK": r.dk, "dV": r.dv, "dContext": r.dcontext}
}

func (p *attentionCase) onHost() *attentionResults {
	n := len(p.Q)
	r := &attentionResults{make([]float64, n), like[float64](p.dnext), make([]float64, n), make([]float64, n), make([]float64, n), like[float64](p.Context)}
	p.Forward(r.y, r.next)
	p.Backward(p.dy, p.dnext, &kernel.AttentionGrad[float64]{Q: r.dq, K: r.dk, V: r.dv, Context: r.dcontext})
	return r
}

// upload returns the operands on the device.
func (p *attentionCase) upload(t testing.TB, s *Stream) *Attention {
	a := &Attention{Batch: p.Batch, Length: p.Length, Channels: p.Channels, Heads: p.Heads, Window: p.Window, Base: p.Base, Precision: p.precision, Q: put[float32](t, s, p.Q),
		K: put[float32](t, s, p.K), V: put[float32](t, s, p.V), Context: put[float32](t, s, p.Context)}
	if p.Start != nil {
		marks := make([]uint8, len(p.Start))
		for i, start := range p.Start {
			if start {
				marks[i] = uint8(1 + i%255)
			}
		}
		a.Start = putInts(t, s, marks)
	}
	return a
}

// onDevice returns the results on the device. Without keep, y is computed without the values for the backward pass.
func (p *attentionCase) onDevice(t testing.TB, s *Stream) *attentionResults {
	t.Helper()
	a, n, none := p.upload(t, s), len(p.Q), Array[float32]{}
	room := func(n int) Array[float32] {
		if n == 0 {
			return none
		}
		return blank[float32](t, s, n)
	}
	y, alone, next := room(n), room(n), room(len(p.dnext))
	g := &AttentionGrad{Q: room(n), K: room(n), V: room(n), Context: room(len(p.Context))}
	_, err := a.Forward(s, alone, none, false)
	do(t, err, a.bothWays(s, y, next, put[float32](t, s, p.dy), put[float32](t, s, p.dnext), g))
	r := &attentionResults{get(t, s, y), get(t, s, next), get(t, s, g.Q), get(t, s, g.K), get(t, s, g.V), get(t, s, g.Context)}
	if !slices.EqualFunc(get(t, s, alone), r.y, same) {
		t.Errorf("%v: y without the kept values has other bits", p)
	}
	return r
}

// bothWays queues the forward and the backward pass.
func (a *Attention) bothWays(s *Stream, y, next, dy, dnext Array[float32], g *AttentionGrad) error {
	k, err := a.Forward(s, y, next, true)
	if err != nil {
		return err
	}
	defer k.Free()
	return a.Backward(s, k, dy, dnext, g)
}

func same(a, b float64) bool { return a == b || a != a && b != b }

func (p *attentionCase) compare(t *testing.T, s *Stream, tol float64) {
	t.Helper()
	want, got := p.onHost().named(), p.onDevice(t, s).named()
	for name, w := range want {
		limit := tol
		if name == "next" {
			limit = 0
		} else if name != "y" { // dP - inner is a difference of two sums over the head
			limit *= 2 * math.Sqrt(max(1, float64(p.Channels/p.Heads)/64))
		}
		near(t, p.String()+": "+name, got[name], w, limit)
	}
}

func TestAttention(t *testing.T) {
	eachPrecision(t, func(t *testing.T, s *Stream, precision Precision, tol float64) {
		r := rand.New(rand.NewPCG(21, 21))
		for i, c := range [][5]int{ // batch, length, dim, heads, window
			{1, 1, 1, 1, 0}, {2, 64, 32, 2, 0}, {1, 65, 64, 1, 0}, {1, 129, 64, 2, 17}, {1, 70, 128, 1, 0}, {2, 33, 128, 1, 9}, {1, 40, 256, 1, 0},
			{1, 50, 250, 1, 20}, {3, 9, 7, 3, 1}, {1, 2, 4, 2, 300}, {2, 1, 64, 3, 600}, {1, 1, 256, 2, 40}, {2, 1, 100, 1, 2}, {1, 200, 16, 1, 64},
		} {
			if brief(precision) && (c[1] == 1 || c[2] > 128 || i%3 == 0) {
				continue // the kernels of a single step and of larger heads are those of float32
			}
			for range times(4, 1+i%2) {
				drawAttention(r, c[0], c[1], c[2], c[3], c[4], precision, 1).compare(t, s, tol)
			}
		}
		for i := range times(30, 12) {
			if brief(precision) && i >= 4 {
				break
			}
			dim := []int{1, 2, 3, 6, 16, 24, 32, 33, 50, 64, 64, 96, 128, 160, 256}[r.IntN(15)]
			length, window := 1+r.IntN(times(400, 150)), []int{0, 1, 2, 1 + r.IntN(30), 1 + r.IntN(300)}[r.IntN(5)]
			drawAttention(r, 1+r.IntN(3), length, dim, 1+r.IntN(3), window, precision, 1).compare(t, s, tol)
		}
	})
}

// TestAttentionSmall runs the kernels of devices with less shared memory.
func TestAttentionSmall(t *testing.T) {
	s := open(t)
	defer func(shared int) { s.device.shared = shared }(s.device.shared)
	r := rand.New(rand.NewPCG(22, 22))
	for _, dim := range []int{32, 64, 128} {
		s.device.shared = 64 << 10
		drawAttention(r, 1, 90, dim, 2, 40, Strict, 1).compare(t, s, 2e-6)
	}
	s.device.shared = usualShared
	p := drawAttention(r, 1, 2, 256, 1, 0, Strict, 1)
	a, y := p.upload(t, s), blank[float32](t, s, 512)
	_, err := a.Forward(s, y, Array[float32]{}, false)
	if err == nil || !strings.Contains(err.Error(), "a head of 256 elements needs 51200 bytes of shared memory for a block, and the device has 49152") {
		t.Errorf("too little shared memory: %v", err)
	}
}

// TestAttentionKernelSet checks that without the kernels for tensor cores every precision is computed in float32.
func TestAttentionKernelSet(t *testing.T) {
	s := open(t)
	defer func(kernels int) { s.device.kernels = kernels }(s.device.kernels)
	s.device.kernels = 70
	p := drawAttention(rand.New(rand.NewPCG(29, 29)), 1, 90, 32, 2, 40, Strict, 1)
	want := p.onDevice(t, s).named()
	p.precision = BF16
	for name, got := range p.onDevice(t, s).named() {
		if !slices.Equal(got, want[name]) {
			t.Errorf("%s in bf16 differs from that in float32", name)
		}
	}
	for _, c := range []struct {
		capability int
		asked      string
		want       int
		err        string
	}{
		{75, "", 70, ""}, {80, "", 80, ""}, {89, "", 80, ""}, {90, "", 90, ""}, {90, "70", 70, ""}, {120, "80", 80, ""},
		{75, "80", 0, "MAMBA_PTX is 80, and the device has compute capability 7.5"}, {120, "90", 90, ""},
		{80, "90", 0, "MAMBA_PTX is 90, and the device has compute capability 8.0"}, {90, "100", 0, `MAMBA_PTX is "100", want 70, 80 or 90`},
	} {
		got, err := kernelSet(c.capability, c.asked)
		if got != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("compute capability %d with MAMBA_PTX=%s: %d, %v", c.capability, c.asked, got, err)
		}
	}
}

// TestAttentionExtremes has scores of up to some 1e5, whose exponentials overflow and underflow, and scores that are all equal. The tolerance
// is that of a score in float32.
func TestAttentionExtremes(t *testing.T) {
	eachPrecision(t, func(t *testing.T, s *Stream, precision Precision, tol float64) {
		r := rand.New(rand.NewPCG(23, 23))
		for _, dim := range []int{8, 64} {
			if brief(precision) && dim > 8 {
				continue
			}
			p := drawAttention(r, 1, 150, dim, 2, 50, precision, 1)
			p.Base = 0
			for i := range p.Q { // small integers times powers of two
				p.Q[i], p.K[i] = 256*math.Round(p.Q[i]), 4*math.Round(p.K[i])
			}
			for i := range p.Context {
				p.Context[i] = math.Round(p.Context[i])
			}
			if precision == Strict { // rounding Q/√dim changes scores of 1e5 by more than 1
				p.compare(t, s, 1e-4)
			} else {
				p.inRange(t, s)
			}
			for i := range p.Q {
				p.Q[i] = 0
			}
			p.compare(t, s, tol)
		}
		p := drawAttention(r, 1, 70, 4, 1, 0, precision, 1e-30)
		p.compare(t, s, tol)
	})
}

// inRange checks that each y lies between the smallest and the largest value.
func (p *attentionCase) inRange(t *testing.T, s *Stream) {
	t.Helper()
	low, high := slices.Min(p.V)*1.01, slices.Max(p.V)*1.01
	for i, y := range p.onDevice(t, s).y {
		if !(y >= low && y <= high) {
			t.Errorf("%v: y[%d] is %v, want %v to %v", p, i, y, low, high)
			return
		}
	}
}

// TestAttentionNaN puts NaN and infinities into keys, values and the context. A step that sees none of them has the result that it has
// without them, bit for bit, and a step that sees one has a result that is not finite. The same holds for the gradients.
func TestAttentionNaN(t *testing.T) {
	eachPrecision(t, testAttentionNaN)
}

func testAttentionNaN(t *testing.T, s *Stream, precision Precision, _ float64) {
	r := rand.New(rand.NewPCG(24, 24))
	for _, window := range []int{0, 20} {
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			const length, dim = 150, 8
			if brief(precision) && (window == 0) == math.IsNaN(bad) {
				continue
			}
			p := drawAttention(r, 1, length, dim, 1, window, precision, 1)
			p.Base, p.Context, p.Start = 0, nil, make([]bool, length)
			p.Start[100] = true
			clean := p.onDevice(t, s)
			const at = 70 // seen from 70 on, up to the window or step 99
			for i := range dim {
				p.V[at*dim+i] = bad
			}
			got := p.onDevice(t, s)
			last := 99
			if window > 0 {
				last = at + window - 1
			}
			for step := range length {
				y, dq := got.y[step*dim:][:dim], got.dq[step*dim:][:dim]
				sees := step >= at && step <= last
				if finite := !math.IsNaN(y[0]-y[0]) && !math.IsNaN(dq[0]-dq[0]); finite == sees {
					t.Errorf("window %d, %v at step %d: y of step %d is %v, dQ %v", window, bad, at, step, y, dq)
				}
				if !sees && (!slices.Equal(y, clean.y[step*dim:][:dim]) || !slices.Equal(dq, clean.dq[step*dim:][:dim])) {
					t.Errorf("window %d, %v at step %d: y or dQ of step %d has changed", window, bad, at, step)
				}
			}
			// dK and dV of steps that no affected query sees.
			for step := range length {
				sees := step <= last && (window == 0 || step > at-window)
				dk, dv := got.dk[step*dim:][:dim], got.dv[step*dim:][:dim]
				if !sees && (!slices.Equal(dk, clean.dk[step*dim:][:dim]) || !slices.Equal(dv, clean.dv[step*dim:][:dim])) {
					t.Errorf("window %d, %v at step %d: dK or dV of step %d has changed", window, bad, at, step)
				}
			}
		}
	}
	// A single step that sees a NaN, and one that sees a row of the context without a step.
	p := drawAttention(r, 2, 1, 8, 1, 5, precision, 1)
	p.Base, p.Start = 0, nil
	p.Context = numbers[float32](r, 2*4*17, 1)
	for row := range 8 {
		p.Context[row*17+16] = 1
	}
	p.Context[1*17+9], p.Context[5*17+9] = math.NaN(), math.NaN()
	p.Context[5*17+16] = 0
	if y := p.onDevice(t, s).y; !math.IsNaN(y[1]) || slices.ContainsFunc(y[8:], math.IsNaN) {
		t.Errorf("y is %v, want NaN in the first row only", y)
	}
}

// TestAttentionPieces processes a sequence in pieces, down to single steps, each with the context of the piece before.
func TestAttentionPieces(t *testing.T) {
	eachPrecision(t, testAttentionPieces)
}

func testAttentionPieces(t *testing.T, s *Stream, precision Precision, tol float64) {
	r := rand.New(rand.NewPCG(25, 25))
	for _, window := range []int{2, 9, 200} {
		const length = 120
		if brief(precision) && window != 9 {
			continue
		}
		p := drawAttention(r, 1, length, 32, 2, window, precision, 1)
		p.Base, p.Start = 1e4, make([]bool, length)
		p.Start[60], p.Start[101] = true, true
		p.Context = make([]float64, len(p.dnext)) // the beginning
		whole := p.onHost()
		context := p.Context
		var y []float64
		for _, part := range [][2]int{{0, 1}, {1, 2}, {2, 60}, {60, 61}, {61, 101}, {101, 102}, {102, 103}, {103, length}} {
			q, w := &attentionCase{Attention: p.Attention, precision: precision}, p.Channels
			q.Length, q.Context, q.Start = part[1]-part[0], context, p.Start[part[0]:part[1]]
			q.Q, q.K, q.V = p.Q[part[0]*w:part[1]*w], p.K[part[0]*w:part[1]*w], p.V[part[0]*w:part[1]*w]
			q.dy, q.dnext = q.Q, context
			got := q.onDevice(t, s)
			y, context = append(y, got.y...), got.next
		}
		near(t, fmt.Sprintf("window %d: y", window), y, whole.y, tol)
		near(t, fmt.Sprintf("window %d: next", window), context, whole.next, 0)
	}
}

// TestAttentionDeterminism runs attention several times, also captured, and compares the bits.
func TestAttentionDeterminism(t *testing.T) {
	eachPrecision(t, testAttentionDeterminism)
}

func testAttentionDeterminism(t *testing.T, s *Stream, precision Precision, _ float64) {
	r := rand.New(rand.NewPCG(26, 26))
	for _, c := range [][4]int{{2, 1, 64, 2}, {2, 150, 64, 2}, {1, 70, 32, 1}} { // batch, length, dim, heads
		length := c[1]
		if brief(precision) != (length == 70) {
			continue
		}
		p := drawAttention(r, c[0], length, c[2], c[3], 300, precision, 1)
		first := p.onDevice(t, s)
		for range times(4, 1) {
			again := p.onDevice(t, s).named()
			for name, want := range first.named() {
				if !slices.Equal(again[name], want) {
					t.Errorf("length %d: a second run gives another %s", length, name)
				}
			}
		}
		a, y, next := p.upload(t, s), blank[float32](t, s, len(p.Q)), blank[float32](t, s, len(p.dnext))
		run := func() error { _, err := a.Forward(s, y, next, false); return err }
		do(t, run(), y.Fill(s, 0xff), next.Fill(s, 0xff)) // the first run loads the kernels and allocates
		c, err := s.Capture(run)
		do(t, err)
		do(t, c.Launch(s))
		if !slices.Equal(get(t, s, y), first.y) || !slices.Equal(get(t, s, next), first.next) {
			t.Errorf("length %d: captured, the result has other bits", length)
		}
		do(t, c.Close())
	}
}

// TestAttentionPartial computes some of the gradients, and those of a result that is not used.
func TestAttentionPartial(t *testing.T) {
	eachPrecision(t, testAttentionPartial)
}

func testAttentionPartial(t *testing.T, s *Stream, precision Precision, _ float64) {
	p := drawAttention(rand.New(rand.NewPCG(27, 27)), 1, 80, 16, 2, 30, precision, 1)
	none, n := Array[float32]{}, len(p.Q)
	for i, options := range []struct {
		base    float64
		context bool
	}{{0, false}, {100, false}, {0, true}, {100, true}} {
		if brief(precision) && i != 1 {
			continue
		}
		p.Base, p.Context = options.base, nil
		if options.context {
			p.Context = make([]float64, len(p.dnext))
			for i := range p.Context {
				p.Context[i] = float64(i%7) / 7
			}
		}
		whole := p.onDevice(t, s)
		a := p.upload(t, s)
		y, dy, dnext := blank[float32](t, s, n), put[float32](t, s, p.dy), put[float32](t, s, p.dnext)
		kept, err := a.Forward(s, y, none, true)
		do(t, err)
		defer kept.Free()
		for name, want := range whole.named() {
			if want == nil || name == "y" || name == "next" {
				continue
			}
			g, to := &AttentionGrad{}, blank[float32](t, s, len(want))
			*map[string]*Array[float32]{"dQ": &g.Q, "dK": &g.K, "dV": &g.V, "dContext": &g.Context}[name] = to
			do(t, a.Backward(s, kept, dy, dnext, g))
			if !slices.Equal(get(t, s, to), want) {
				t.Errorf("%v: %s alone has other bits", p, name)
			}
		}
		without := *p
		without.dy = make([]float64, n)
		want := without.onHost()
		g := &AttentionGrad{Q: blank[float32](t, s, n), K: blank[float32](t, s, n), V: blank[float32](t, s, n)}
		do(t, a.Backward(s, kept, none, dnext, g))
		for name, pair := range map[string][2][]float64{"dQ": {get(t, s, g.Q), want.dq}, "dK": {get(t, s, g.K), want.dk}, "dV": {get(t, s, g.V), want.dv}} {
			near(t, "without dy: "+name, pair[0], pair[1], 0)
		}
	}
}

// TestAttentionOutOfMemory makes each allocation fail in turn. The error says so, and nothing stays in use.
func TestAttentionOutOfMemory(t *testing.T) {
	limit := gputest.Allocations(t)
	s := open(t)
	p := drawAttention(rand.New(rand.NewPCG(28, 28)), 1, 20, 8, 1, 5, BF16, 1)
	p.Base, p.Context = 10, make([]float64, len(p.dnext))
	a, n := p.upload(t, s), len(p.Q)
	y, next, dy := blank[float32](t, s, n), blank[float32](t, s, len(p.dnext)), put[float32](t, s, p.dy)
	g := &AttentionGrad{Q: blank[float32](t, s, n), K: blank[float32](t, s, n), V: blank[float32](t, s, n), Context: blank[float32](t, s, len(p.Context))}
	eachAllocationFails(t, s, limit, 10, func() error { return a.bothWays(s, y, next, dy, next, g) })
}

// eachAllocationFails calls work with one more allocation allowed each time, until it succeeds. Each failure is an OutOfMemory and leaves
// nothing in use. At least least calls must fail.
func eachAllocationFails(t *testing.T, s *Stream, limit gputest.Limit, least int, work func() error) {
	t.Helper()
	used, _ := s.device.Memory()
	failed := 0
	for allowed := 0; ; allowed++ {
		do(t, s.Trim())
		limit(allowed)
		err := work()
		limit(-1)
		var out *OutOfMemory
		if now, _ := s.device.Memory(); now != used {
			t.Errorf("after %d allocations: %d bytes in use, want %d", allowed, now, used)
		}
		if err == nil {
			break
		}
		if failed++; !errors.As(err, &out) {
			t.Errorf("after %d allocations: %v", allowed, err)
		}
	}
	if failed < least {
		t.Errorf("%d allocations failed, want at least %d", failed, least)
	}
}

// TestAttentionMemory checks that twice the length takes at most about twice the memory, in each precision.
func TestAttentionMemory(t *testing.T) {
	eachPrecision(t, func(t *testing.T, s *Stream, precision Precision, _ float64) {
		var held [2]int64
		for i, length := range []int{256, 512} {
			do(t, s.Trim())
			before, _ := s.device.Memory()
			n := length * 8
			x := func() Array[float32] { return put[float32](t, s, make([]float64, n)) }
			a := &Attention{Batch: 1, Length: length, Channels: 8, Heads: 1, Base: 100, Precision: precision, Q: x(), K: x(), V: x()}
			g := &AttentionGrad{Q: x(), K: x(), V: x()}
			do(t, a.bothWays(s, x(), Array[float32]{}, x(), Array[float32]{}, g))
			_, all := s.device.Memory()
			held[i] = all - before
		}
		if held[1] > held[0]*9/4 {
			t.Errorf("%d bytes for 256 steps, %d for 512, want at most 9/4 as many", held[0], held[1])
		}
	})
}

func TestAttentionErrors(t *testing.T) {
	s := &Stream{device: &Device{multiprocessors: 132}}
	some, none := Array[float32]{stream: s, n: 1000}, Array[float32]{}
	for want, change := range map[string]func(a *Attention){
		"Batch is 0, want at least 1":                                func(a *Attention) { a.Batch = 0 },
		"Length is -1, want at least 1":                              func(a *Attention) { a.Length = -1 },
		"Heads is 0, want at least 1":                                func(a *Attention) { a.Heads = 0 },
		"Heads is 3, want a number that divides the channels, 8":     func(a *Attention) { a.Heads = 3 },
		"Channels/Heads is 257, want at most 256":                    func(a *Attention) { a.Channels, a.Heads = 257, 1 },
		"Window is -1, want at least 1":                              func(a *Attention) { a.Window = -1 },
		"precision is 9, want":                                       func(a *Attention) { a.Precision = 9 },
		"Base is 1, want above 1":                                    func(a *Attention) { a.Base = 1 },
		"Base is NaN, want above 1":                                  func(a *Attention) { a.Base = math.NaN() },
		"Base is +Inf, want above 1":                                 func(a *Attention) { a.Base = math.Inf(1) },
		"Base needs an even head dimension, and Channels/Heads is 1": func(a *Attention) { a.Base, a.Heads = 10, 8 },
		"there is a Context, and Window is 1, want at least 2":       func(a *Attention) { a.Context, a.Window = some, 1 },
		"Window 1099511627776, want at most 2^29":                    func(a *Attention) { a.Window = 1 << 40 },
		"Q has 1000 elements, want 9223372036854775807":              func(a *Attention) { a.Batch, a.Channels = 1<<40, 1<<30; a.Heads = 1 << 22 },
		"there is a next, and Window is 0, want at least 2":          func(a *Attention) { a.Window = 0 },
	} {
		a := &Attention{Batch: 2, Length: 3, Channels: 8, Heads: 2, Window: 2, Q: some, K: some, V: some}
		change(a)
		if err := refused(func() error { _, err := a.Forward(s, some, some, true); return err }, want); err != nil {
			t.Error(err)
		}
	}
	a, kept := &Attention{Batch: 2, Length: 3, Channels: 8, Heads: 2, Q: some, K: some, V: some}, &AttentionKept{some, some}
	for want, call := range map[string]func() error{
		"there is a gradient of Context, and no Context": func() error { return a.Backward(s, kept, some, none, &AttentionGrad{Context: some}) },
		"there is a dnext, and Window is 0":              func() error { return a.Backward(s, kept, some, some, &AttentionGrad{}) },
		"the kept values are missing":                    func() error { return a.Backward(s, nil, some, none, &AttentionGrad{}) },
		"gradients of attention: the operands are nil":   func() error { return a.Backward(s, kept, some, none, nil) },
		"attention: the operands are nil":                func() error { _, err := (*Attention)(nil).Forward(s, some, none, false); return err },
	} {
		if err := refused(call, want); err != nil {
			t.Error(err)
		}
	}
}

// TestAttentionPTX checks that the PTX has the kernels, and that their arguments have the sizes of ours.
func TestAttentionPTX(t *testing.T) {
	check := func(file, name string, size uintptr) {
		text, err := readPTX(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`\.entry ` + name + `\(\s*\.param \.align 8 \.b8 ` + name + `_param_0\[(\d+)\]`).FindStringSubmatch(string(text))
		if m == nil || m[1] != itoa(int(size)) {
			t.Errorf("%s in %s takes %v bytes, want %d", name, file, m, size)
		}
	}
	for _, tile := range attentionTiles {
		for _, kernel := range []string{"forward", "queries", "keys"} {
			check("attention"+tile.name, "attention_"+kernel+"_"+tile.name, unsafe.Sizeof(attentionArgs{}))
		}
	}
	for _, tile := range mmaTiles {
		for _, kernel := range []string{"forward", "queries", "keys"} {
			check("attention"+tile.name+"mma", "attention_"+kernel+"_"+tile.name, unsafe.Sizeof(attentionArgs{}))
		}
	}
	for _, kernel := range []string{"pack_bf16", "pack_tf32", "prepare", "gather", "next", "inner", "finish", "step_2", "step_4", "step_8", "join"} {
		check("attention", "attention_"+kernel, unsafe.Sizeof(aroundArgs{}))
	}
}
