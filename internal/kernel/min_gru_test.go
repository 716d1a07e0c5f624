package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

func newMinGRU(length int, initial, start bool) *MinGRU[float64] {
	r := rand.New(rand.NewPCG(1, uint64(length)))
	draw := func(n int) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = 2 * r.NormFloat64()
		}
		return v
	}
	g := &MinGRU[float64]{Batch: 3, Length: length, Channels: 70, Z: draw(3 * length * 70), Candidate: draw(3 * length * 70)}
	if initial {
		g.Initial = draw(3 * 70)
	}
	if start {
		g.Start = make([]bool, 3*length)
		for i := range g.Start {
			g.Start[i] = r.IntN(3) == 0
		}
	}
	return g
}

func eachMinGRU(t *testing.T, test func(t *testing.T, g *MinGRU[float64])) {
	for _, length := range []int{1, 2, 9} {
		for i := range 4 {
			t.Run(fmt.Sprintf("length %d, initial %v, start %v", length, i&1 > 0, i&2 > 0), func(t *testing.T) {
				test(t, newMinGRU(length, i&1 > 0, i&2 > 0))
			})
		}
	}
}

func (g *MinGRU[T]) run() (y, final []T) {
	y, final = make([]T, len(g.Z)), make([]T, g.Batch*g.Channels)
	g.Forward(y, final)
	return y, final
}

// minGRUPlain computes the definition, one channel after another.
func minGRUPlain(g *MinGRU[float64]) (y, final []float64) {
	y, final = make([]float64, len(g.Z)), make([]float64, g.Batch*g.Channels)
	for i := range final {
		b, d, h := i/g.Channels, i%g.Channels, 0.0
		if g.Initial != nil {
			h = g.Initial[i]
		}
		for t := range g.Length {
			if g.Start != nil && g.Start[b*g.Length+t] {
				h = 0
			}
			at := (b*g.Length+t)*g.Channels + d
			u := 1 / (1 + math.Exp(-g.Z[at]))
			h = (1-u)*h + u*g.Candidate[at]
			y[at] = h
		}
		final[i] = h
	}
	return y, final
}

func TestMinGRUAgainstDefinition(t *testing.T) {
	eachMinGRU(t, func(t *testing.T, g *MinGRU[float64]) {
		y, final := g.run()
		wantY, wantFinal := minGRUPlain(g)
		got := append(y, final...)
		for i, want := range append(wantY, wantFinal...) {
			if math.Abs(got[i]-want) > 1e-14 {
				t.Fatalf("element %d is %v, want %v", i, got[i], want)
			}
		}
	})
}

// The gradients of a weighted sum of all results equal central differences.
func TestMinGRUGradients(t *testing.T) {
	eachMinGRU(t, func(t *testing.T, g *MinGRU[float64]) {
		weights := newMinGRU(g.Length+1, false, false).Z
		dy, dfinal := weights[:len(g.Z)], weights[len(g.Z):][:g.Batch*g.Channels]
		loss := func() (sum float64) {
			y, final := g.run()
			for i, v := range append(y, final...) {
				sum += v * weights[i]
			}
			return sum
		}
		dz, dcandidate, dinitial := make([]float64, len(g.Z)), make([]float64, len(g.Z)), make([]float64, len(g.Initial))
		if g.Initial == nil {
			dinitial = nil
		}
		g.Backward(dy, dfinal, dz, dcandidate, dinitial)
		for name, pair := range map[string][2][]float64{"Z": {g.Z, dz}, "Candidate": {g.Candidate, dcandidate}, "Initial": {g.Initial, dinitial}} {
			v, grad := pair[0], pair[1]
			for i := 0; i < len(v); i += 13 {
				const step = 1e-4
				x := v[i]
				v[i] = x + step
				up := loss()
				v[i] = x - step
				want := (up - loss()) / (2 * step)
				v[i] = x
				if !(math.Abs(grad[i]-want) <= 1e-7*max(1, math.Abs(want))) {
					t.Fatalf("the gradient of %s, element %d, is %v, want %v", name, i, grad[i], want)
				}
			}
		}
	})
}

func TestMinGRUProcessors(t *testing.T) {
	g := newMinGRU(33, true, true)
	all := func() []float64 {
		y, final := g.run()
		dz, dcandidate, dinitial := make([]float64, len(g.Z)), make([]float64, len(g.Z)), make([]float64, len(g.Initial))
		g.Backward(y, final, dz, dcandidate, dinitial)
		return slices.Concat(y, final, dz, dcandidate, dinitial)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := all()
	for _, n := range []int{2, 3, 8} {
		runtime.GOMAXPROCS(n)
		if !slices.Equal(all(), want) {
			t.Errorf("GOMAXPROCS %d: the results differ from those of GOMAXPROCS 1", n)
		}
	}
}
