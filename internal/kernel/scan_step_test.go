package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// A step is a scan of length 1, bit for bit, for any number of channels and states, whatever strips are computed together. The state may be
// written over.
func TestScanStep(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, size := range [][2]int{{1, 1}, {5, 2}, {16, 3}, {17, 16}, {40, 16}, {300, 5}, {272, 8}} {
			channels, state := size[0], size[1]
			random := func(n int, scale float64) []float32 {
				v := make([]float32, n)
				for i := range v {
					v[i] = float32(scale * r.NormFloat64())
				}
				return v
			}
			aLog, bc, d, bias := random(channels*state, 1), random(2*state, 1), random(channels, 1), random(channels, 1)
			u, delta, z, h := random(channels, 1), random(channels, 2), random(channels, 3), random(channels*state, 1)
			delta[0], z[channels-1] = 90, -90
			a := make([]float32, len(aLog))
			NegExp(a, aLog)
			whole := Scan[float32]{
				Batch: 1, Length: 1, Channels: channels, State: state, U: u, Delta: delta, A: a, D: d, Z: z, DeltaBias: bias, Initial: h, Softplus: true,
				B: Projection[float32]{Data: bc, Groups: 1}, C: Projection[float32]{Data: bc[state:], Groups: 1},
			}
			y, final := make([]float32, channels), make([]float32, channels*state)
			whole.Forward(y, final)

			strips, stride := Strips(channels), StripSize(state)+16*(channels%3)
			s := NewScanStep(channels, state, d, bias, make([]float32, strips*stride), stride)
			s.SetA(aLog, 0, strips)
			before := make([]float32, strips*stride)
			s.LayState(before, h)
			for _, cut := range []int{1, 2, strips} {
				for _, over := range []bool{false, true} {
					got := make([]float32, channels)
					row := ScanStepRow{U: u, Delta: delta, Z: z, Y: got, B: bc[:state], C: bc[state:], Before: slices.Clone(before)}
					if row.After = row.Before; !over {
						row.After = make([]float32, len(before))
					}
					var w ScanStepper
					for from := 0; from < strips; from += cut {
						s.Advance(&w, &row, from, min(from+cut, strips))
					}
					after := make([]float32, channels*state)
					s.UnlayState(after, row.After)
					what := fmt.Sprintf("%d channels, %d states, %d strips at a time, over %t", channels, state, cut, over)
					sameBits(t, what+": y", got, y)
					sameBits(t, what+": state", after, final)
					if !over {
						sameBits(t, what+": state before", row.Before, before)
					}
				}
			}
		}
	})
}

func sameBits(t *testing.T, what string, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Errorf("%s[%d] is %v, want %v", what, i, got[i], want[i])
			return
		}
	}
}

// A step of a convolution is a convolution of length 1 with a context, bit for bit.
func TestConvStep(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for _, channels := range []int{1, 15, 40} {
			for _, width := range []int{1, 2, 4, 5} {
				for _, biased := range []bool{false, true} {
					random := func(n int) []float32 {
						v := make([]float32, n)
						for i := range v {
							v[i] = float32(r.NormFloat64())
						}
						return v
					}
					c := Conv[float32]{Batch: 1, Length: 1, Channels: channels, Width: width, X: random(channels), Weight: random(channels * width), SiLU: true}
					if biased {
						c.Bias = random(channels)
					}
					if width > 1 {
						c.Context = random((width - 1) * channels)
					}
					want, got := make([]float32, channels), make([]float32, channels)
					c.Forward(want, nil)
					var taps, inputs [][]float32
					for k := range width {
						tap := make([]float32, channels)
						for d := range tap {
							tap[d] = c.Weight[d*width+width-1-k]
						}
						taps = append(taps, tap)
						if k == 0 {
							inputs = append(inputs, c.X)
						} else {
							inputs = append(inputs, c.Context[(width-1-k)*channels:][:channels])
						}
					}
					ConvStep(got, c.Bias, taps, inputs)
					sameBits(t, fmt.Sprintf("%d channels, width %d", channels, width), got, want)
				}
			}
		}
	})
}
