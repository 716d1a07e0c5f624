package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// For extreme steps, decays and frequencies, the results and gradients of Convolve and Scan are finite and equal to within rounding. The
// cases include powers that underflow, w that rounds to 1, and w = 0.
func TestS4Extremes(t *testing.T) {
	const length, batch = 300, 2
	for _, bilinear := range []bool{false, true} {
		for _, logDelta := range []float64{-80, -20, -7, 0, 5, 80} {
			for _, logDecay := range []float64{-80, -20, 0, 8, 80} {
				for _, frequency := range []float64{0, 1, -1e4, 1e12} {
					s := newS4(rand.New(rand.NewPCG(8, 1)), batch, length, 1, 1, true, bilinear, true)
					s.LogDelta[0], s.LogDecay[0], s.Frequency[0] = logDelta, logDecay, frequency
					y, want := make([]float64, len(s.U)), make([]float64, len(s.U))
					s.Convolve(y)
					s.Scan(want, nil)
					got, expected := newS4Grad(s), newS4Grad(s)
					s.ConvolveBackward(s.U, got)
					s.ScanBackward(s.U, nil, expected)
					each := expected.all()
					each["y"] = want
					for name, want := range each {
						have := got.all()[name]
						if name == "y" {
							have = y
						}
						for _, v := range want {
							if math.IsNaN(v) || math.IsInf(v, 0) {
								t.Fatalf("bilinear %t, log Δ %v, log decay %v, frequency %v: %s is %v", bilinear, logDelta, logDecay, frequency, name, v)
							}
						}
						if e := farthest(have, want); !(e < 1e-9) {
							t.Errorf("bilinear %t, log Δ %v, log decay %v, frequency %v: %s is off by %.2g (%v, %v)",
								bilinear, logDelta, logDecay, frequency, name, e, have[0], want[0])
						}
					}
				}
			}
		}
	}
}
