package kernel

import (
	"fmt"
	"math"
	"testing"

	"github.com/gomamba/mamba/internal/cpu"
)

// TestScanSpecialValues puts a NaN and both infinities into each operand, one element at a time, and compares every result with the
// reference. A result must be finite exactly where that of the reference is, and close to it there.
func TestScanSpecialValues(t *testing.T) {
	cases := map[string]scanCase{
		"plain":     {batch: 2, length: 5, channels: 3, state: 2, bGroups: 1, cGroups: 1, softplus: true},
		"initial":   {batch: 1, length: 4, channels: 17, state: 3, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, initial: true, softplus: true},
		"starts":    {batch: 2, length: 19, channels: 3, state: 5, bGroups: 1, cGroups: 1, d: true, start: true, softplus: true},
		"reverse":   {batch: 1, length: 18, channels: 4, state: 17, bGroups: 2, cGroups: 1, z: true, start: true, softplus: true, reverse: true},
		"tiles":     {batch: 1, length: 19, channels: 1, state: 8, bGroups: 1, cGroups: 1, z: true, start: true, softplus: true}, // of scanTile
		"constant":  {batch: 1, length: 6, channels: 5, state: 3, bGroups: 0, cGroups: 1, initial: true, start: true, softplus: true},
		"constants": {batch: 1, length: 3, channels: 2, state: 1, bGroups: 0, cGroups: 0, d: true, softplus: true},
		"chunks":    {batch: 2, length: 2050, channels: 2, state: 1, bGroups: 1, cGroups: 1, d: true, initial: true, start: true, softplus: true},
	}
	eachLevel(t, func(t *testing.T) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) { scanSpecialValues(t, c) })
		}
	})
}

// scanSpecialValues tests one case. For a large operand it tests some elements, among them the first and the last.
func scanSpecialValues(t *testing.T, c scanCase) {
	places := 12
	if c.length > 1000 { // the scan is cut into chunks, and each run is slow
		places = 3
	}
	s := c.make64(1)
	if c.length > 1000 { // one start, in the second chunk of the first row of the batch
		clear(s.Start)
		s.Start[1500] = true
	}
	dy, dfinal := c.make64(2).U, scanCase{batch: c.batch, length: 1, channels: c.channels * c.state, state: 1}.make64(3).U
	for _, p := range []struct {
		name string
		v    []float64
	}{
		{"U", s.U}, {"Delta", s.Delta}, {"A", s.A}, {"B", s.B.Data}, {"C", s.C.Data}, {"D", s.D}, {"Z", s.Z}, {"DeltaBias", s.DeltaBias},
		{"Initial", s.Initial}, {"dy", dy}, {"dfinal", dfinal},
	} {
		for i := range min(places, len(p.v)) {
			at := i * (len(p.v) - 1) / max(min(places, len(p.v))-1, 1)
			was := p.v[at]
			for _, special := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
				p.v[at] = special
				what := fmt.Sprintf("%s[%d] is %v", p.name, at, special)
				if level == cpu.Generic {
					sameSpecial(t, what+", float64", s, s, dy, dfinal)
				}
				sameSpecial(t, what, s.narrow(s), s, dy, dfinal)
			}
			p.v[at] = was
		}
	}
}

// sameSpecial compares the results of s with those of the reference for ref, the same problem in float64.
func sameSpecial[T Float](t *testing.T, what string, s *Scan[T], ref *Scan[float64], dy, dfinal []float64) {
	t.Helper()
	wantY, wantFinal := like(ref.U), like(dfinal)
	states := ref.Reference(wantY, wantFinal)
	want := ref.newGrad()
	ref.ReferenceBackward(states, dy, dfinal, want)

	y, final := like(s.U), make([]T, len(dfinal))
	s.Forward(y, final)
	got := s.newGrad()
	s.Backward(convertAll[T](dy), convertAll[T](dfinal), got)

	compareSpecial(t, what, "y", y, wantY)
	compareSpecial(t, what, "the final state", final, wantFinal)
	for name, g := range got.named() {
		compareSpecial(t, what, "the gradient of "+name, g, want.named()[name])
	}
}

func compareSpecial[T Float](t *testing.T, what, result string, got []T, want []float64) {
	t.Helper()
	scale := 1.0
	for _, w := range want {
		if finite(w) {
			scale = max(scale, math.Abs(w))
		}
	}
	for i, w := range want {
		g := float64(got[i])
		if finite(g) != finite(w) || finite(w) && math.Abs(g-w) > 2e-5*scale {
			t.Fatalf("%s: %s[%d] is %v, want %v", what, result, i, g, w)
		}
	}
}

func finite(v float64) bool { return v-v == 0 }

// TestScanZeroInitial checks that a scan without an initial state equals one with a zero initial state, bit for bit, also if A is NaN or
// infinite.
func TestScanZeroInitial(t *testing.T) {
	t.Run("float64", scanZeroInitial[float64])
	eachLevel(t, scanZeroInitial[float32])
}

func scanZeroInitial[T Float](t *testing.T) {
	for _, special := range []float64{-1, math.NaN(), math.Inf(1), math.Inf(-1)} {
		s := convert[T](scanCase{batch: 1, length: 20, channels: 18, state: 5, bGroups: 1, cGroups: 1, d: true, start: true, softplus: true}.make64(1))
		s.A[7] = T(special)
		absent := scanBits(s)
		s.Initial = make([]T, s.Channels*s.State)
		if zero := scanBits(s); absent != zero {
			t.Errorf("A[7] is %v: the results with a zero initial state differ from those without one:\n%s\n%s", special, zero, absent)
		}
	}
}

// scanBits returns every result of a scan except the gradient of the initial state.
func scanBits[T Float](s *Scan[T]) string {
	y, final := like(s.U), make([]T, s.Batch*s.Channels*s.State)
	s.Forward(y, final)
	g := s.newGrad()
	s.Backward(s.U, nil, g)
	g.Initial = nil
	return fmt.Sprint(y, final, *g)
}
