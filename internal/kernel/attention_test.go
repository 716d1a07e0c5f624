package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/benchtest"
)

func newAttention(r *rand.Rand, batch, length, dim, heads, window int, base float64, context, start bool) *Attention[float64] {
	draw := func(n int) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = r.NormFloat64()
		}
		return v
	}
	width := dim * heads
	a := &Attention[float64]{Batch: batch, Length: length, Channels: width, Heads: heads, Window: window, Base: base, Gemm: gonum.Implementation{}.Dgemm}
	a.Q, a.K, a.V = draw(batch*length*width), draw(batch*length*width), draw(batch*length*width)
	if context {
		a.Context = draw(batch * (window - 1) * (2*width + 1))
		for b := range batch { // the first rows of the context hold no step
			for s := range window - 1 {
				a.contextRow(b, s)[2*width] = 0
				if s >= b {
					a.contextRow(b, s)[2*width] = 1
				}
			}
		}
	}
	if start {
		a.Start = make([]bool, batch*length)
		a.Start[length/2], a.Start[batch*length-1] = true, true
	}
	return a
}

// plain writes y by the definition, one query at a time, and computes each angle separately.
func (a *Attention[T]) plain(y []float64) {
	dim, before := a.Channels/a.Heads, a.before()
	for b := range a.Batch {
		key := func(s, at int) (k, v float64, there bool) {
			if s < before {
				row := a.contextRow(b, s)
				return float64(row[at]), float64(row[a.Channels+at]), row[2*a.Channels] != 0
			}
			i := (b*a.Length+s-before)*a.Channels + at
			return float64(a.K[i]), float64(a.V[i]), true
		}
		for h := range a.Heads {
			for t := range a.Length {
				var p, values []float64
				sum := 0.0
				for s := before + t; s >= 0; s-- {
					_, _, there := key(s, 0)
					if !there || a.Window > 0 && s <= before+t-a.Window {
						break
					}
					score := 0.0
					for j := range dim {
						k, v, _ := key(s, h*dim+j)
						q := float64(a.Q[(b*a.Length+t)*a.Channels+h*dim+j])
						values = append(values, v)
						if a.Base == 0 {
							score += q * k
							continue
						}
						half := dim / 2
						pair := (j + half) % dim
						other := float64(a.Q[(b*a.Length+t)*a.Channels+h*dim+pair])
						// q·R(t-s)·k, where R rotates by the distance
						angle := float64(before+t-s) * math.Pow(a.Base, -float64(j%half)/float64(half))
						sin := math.Sin(angle)
						if j >= half {
							sin = -sin
						}
						score += k * (q*math.Cos(angle) - other*sin)
					}
					e := math.Exp(score / math.Sqrt(float64(dim)))
					p, sum = append(p, e), sum+e
					if s >= before && a.Start != nil && a.Start[b*a.Length+s-before] {
						break
					}
				}
				for j := range dim {
					at := (b*a.Length+t)*a.Channels + h*dim + j
					y[at] = 0
					for i, e := range p {
						y[at] += e / sum * values[i*dim+j]
					}
				}
			}
		}
	}
}

func eachAttention(test func(name string, a *Attention[float64])) {
	r := rand.New(rand.NewPCG(7, 1))
	for _, c := range []struct {
		batch, length, dim, heads, window int
		base                              float64
		context, start                    bool
	}{
		{1, 1, 1, 1, 0, 0, false, false}, {2, 7, 2, 3, 0, 100, false, false}, {1, 700, 4, 1, 0, 0, false, true}, {2, 300, 2, 2, 40, 1e4, true, true},
		{1, 9, 4, 2, 3, 10, true, false}, {2, 130, 3, 1, 200, 0, true, false}, {1, 5, 2, 1, 1, 0, false, true}, {1, 2, 2, 1, 6, 100, true, true},
	} {
		a := newAttention(r, c.batch, c.length, c.dim, c.heads, c.window, c.base, c.context, c.start)
		test(fmt.Sprintf("%+v", c), a)
	}
}

func TestAttention(t *testing.T) {
	eachAttention(func(name string, a *Attention[float64]) {
		y, want := make([]float64, len(a.Q)), make([]float64, len(a.Q))
		a.Forward(y, nil)
		a.plain(want)
		if e := farthest(y, want); e > 1e-12 {
			t.Errorf("%s: off by %.2g", name, e)
		}
		cos, sin := a.angles()
		for i := range a.Batch * a.Heads {
			h := a.newHead(i, cos, sin)
			h.reference(y)
			h.release()
		}
		if e := farthest(y, want); e > 1e-12 {
			t.Errorf("%s: the reference is off by %.2g", name, e)
		}
	})
}

func TestAttentionGradients(t *testing.T) {
	eachAttention(func(name string, a *Attention[float64]) {
		r := rand.New(rand.NewPCG(8, 1))
		draw := func(n int) []float64 {
			v := make([]float64, n)
			for i := range v {
				v[i] = r.NormFloat64()
			}
			return v
		}
		y, dy := make([]float64, len(a.Q)), draw(len(a.Q))
		var next, dnext []float64
		if a.Window > 1 {
			next = make([]float64, a.Batch*(a.Window-1)*(2*a.Channels+1))
			dnext = draw(len(next))
		}
		loss := func() (sum float64) {
			a.Forward(y, next)
			for i := range y {
				sum += y[i] * dy[i]
			}
			for i := range next {
				sum += next[i] * dnext[i]
			}
			return sum
		}
		grad := &AttentionGrad[float64]{Q: make([]float64, len(y)), K: make([]float64, len(y)), V: make([]float64, len(y))}
		if a.Context != nil {
			grad.Context = make([]float64, len(a.Context))
		}
		a.Backward(dy, dnext, grad)
		for what, of := range map[string][2][]float64{"Q": {a.Q, grad.Q}, "K": {a.K, grad.K}, "V": {a.V, grad.V}, "Context": {a.Context, grad.Context}} {
			for i := 0; i < len(of[0]); i += 1 + len(of[0])/41 {
				if what == "Context" && i%(2*a.Channels+1) == 2*a.Channels {
					continue // the mark of a step has no gradient
				}
				const step = 1e-5
				x := of[0][i]
				of[0][i] = x + step
				up := loss()
				of[0][i] = x - step
				down := loss()
				of[0][i] = x
				if want := (up - down) / (2 * step); math.Abs(of[1][i]-want) > 1e-7*(1+math.Abs(want)) {
					t.Errorf("%s: gradient by %s[%d] is %v, want %v", name, what, i, of[1][i], want)
				}
			}
		}
	})
}

// With a window, the results of a sequence processed in pieces equal those of the whole, for any number of processors.
func TestAttentionPieces(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, window := range []int{2, 9, 400} {
		a := newAttention(rand.New(rand.NewPCG(9, 1)), 1, 300, 4, 2, window, 1e4, true, true)
		want, wantNext := make([]float64, len(a.Q)), make([]float64, len(a.Context))
		runtime.GOMAXPROCS(1)
		a.Forward(want, wantNext)
		runtime.GOMAXPROCS(4)
		y := make([]float64, len(a.Q))
		if a.Forward(y, nil); !slices.Equal(y, want) {
			t.Errorf("window %d: GOMAXPROCS 4 gives other bits", window)
		}
		context := slices.Clone(a.Context)
		var got []float64
		for _, part := range [][2]int{{0, 1}, {1, 2}, {2, 100}, {100, 300}} {
			p := *a
			w := a.Channels
			p.Length, p.Context, p.Start = part[1]-part[0], slices.Clone(context), a.Start[part[0]:part[1]]
			p.Q, p.K, p.V = a.Q[part[0]*w:part[1]*w], a.K[part[0]*w:part[1]*w], a.V[part[0]*w:part[1]*w]
			y := make([]float64, len(p.Q))
			p.Forward(y, context)
			got = append(got, y...)
		}
		if e := farthest(got, want); e > 1e-12 {
			t.Errorf("window %d: pieces are off by %.2g", window, e)
		}
		if e := farthest(context, wantNext); e > 0 {
			t.Errorf("window %d: the context after the pieces is off by %.2g", window, e)
		}
	}
}

// A NaN or infinity does not affect earlier steps.
func TestAttentionNaN(t *testing.T) {
	a := newAttention(rand.New(rand.NewPCG(10, 1)), 1, 20, 2, 2, 0, 100, false, false)
	a.V[11*4+1], a.K[12*4+3] = math.Inf(1), math.NaN()
	y := make([]float64, len(a.Q))
	a.Forward(y, nil)
	for i, v := range y {
		step, head := i/4, i%4/2
		if bad := head == 0 && i%2 == 1 && step >= 11 || head == 1 && step >= 12; (math.IsNaN(v) || math.IsInf(v, 0)) != bad {
			t.Errorf("y[%d] is %v", i, v)
		}
	}
}

func BenchmarkAttention(b *testing.B) {
	for _, length := range []int{256, 2048} {
		if testing.Short() && length > 256 {
			continue
		}
		a := newAttention(rand.New(rand.NewPCG(11, 1)), 1, length, 32, 2, 0, 1e4, false, false)
		y := make([]float64, len(a.Q))
		grad := &AttentionGrad[float64]{Q: make([]float64, len(y)), K: make([]float64, len(y)), V: make([]float64, len(y))}
		b.Run(fmt.Sprintf("forward/L=%d/heads=2/dim=32", length), func(b *testing.B) {
			benchtest.Processors(b)
			for b.Loop() {
				a.Forward(y, nil)
			}
		})
		b.Run(fmt.Sprintf("backward/L=%d/heads=2/dim=32", length), func(b *testing.B) {
			benchtest.Processors(b)
			for b.Loop() {
				a.Backward(y, nil, grad)
			}
		})
	}
}
