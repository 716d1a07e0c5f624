package kernel

import (
	"math"
	"math/cmplx"
	"testing"
)

// (e^z - 1)/z and its derivative keep their digits near z = 0, where numerator and denominator vanish. The expected value is the mean of the
// plain fraction over a circle around z, far from z = 0: a function without poles equals this mean (Kassam and Trefethen, "Fourth-Order
// Time-Stepping for Stiff PDEs", section 3).
func TestS4SmallSteps(t *testing.T) {
	for name, f := range map[string]struct {
		got   func(z complex128) complex128
		plain func(z complex128) complex128
	}{
		"expm1OverZ": {expm1OverZ, func(z complex128) complex128 { return (cmplx.Exp(z) - 1) / z }},
		"slope":      {slope, func(z complex128) complex128 { return (z*cmplx.Exp(z) - cmplx.Exp(z) + 1) / (z * z) }},
	} {
		for _, size := range []float64{0, 1e-160, 1e-20, 1e-8, 1e-4, 0.01, 0.3, 0.49999, 0.50001, 1, 2} {
			for angle := math.Pi / 2; angle < 1.51*math.Pi; angle += math.Pi / 8 { // the left half-plane with its boundary
				z := cmplx.Rect(size, angle)
				const points, radius = 64, 4
				mean := complex(0, 0)
				for i := range points {
					mean += f.plain(z+cmplx.Rect(radius, 2*math.Pi*(float64(i)+0.5)/points)) / points
				}
				if got := f.got(z); !(cmplx.Abs(got-mean) <= 1e-14*(1+cmplx.Abs(mean))) {
					t.Errorf("%s(%v) is %v, want %v", name, z, got, mean)
				}
			}
		}
	}
}
