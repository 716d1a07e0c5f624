package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The mean is that of the marked steps, whatever the others hold. The gradient equals central differences. Without a mark, both are zero.
func TestMeanPool(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, masked := range []bool{false, true} {
		p := &MeanPool{Batch: 3, Length: 7, Channels: 5}
		x, dy := make([]float64, 105), make([]float64, 15)
		for i := range x {
			x[i] = r.NormFloat64()
		}
		for i := range dy {
			dy[i] = r.NormFloat64()
		}
		if masked {
			p.Mask = make([]bool, 21)
			for i := range 14 { // the last sequence has no mark
				p.Mask[i] = i%3 > 0
				if !p.Mask[i] {
					x[5*i] = math.NaN()
				}
			}
		}
		y, dx := make([]float64, 15), make([]float64, 105)
		MeanPoolForward(p, y, x)
		MeanPoolBackward(p, dx, dy)
		for i := range y {
			sum, n := 0.0, 0
			for s := range 7 {
				if at := i/5*7 + s; p.Mask == nil || p.Mask[at] {
					sum += x[at*5+i%5]
					n++
				}
			}
			if want := sum / math.Max(float64(n), 1); math.Abs(y[i]-want) > 1e-15 {
				t.Errorf("masked %t: y[%d] is %v, want %v", masked, i, y[i], want)
			}
		}
		for i := range x {
			loss := func(by float64) (sum float64) {
				old := x[i]
				x[i] += by
				MeanPoolForward(p, y, x)
				x[i] = old
				for j := range y {
					sum += y[j] * dy[j]
				}
				return sum
			}
			if want := (loss(0.5) - loss(-0.5)); math.Abs(dx[i]-want) > 1e-14 {
				t.Errorf("masked %t: dx[%d] is %v, want %v", masked, i, dx[i], want)
			}
		}
	}
}
