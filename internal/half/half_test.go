package half

import (
	"math"
	"testing"
)

// nearest returns the number of table, which is sorted, that is nearest to x, and of two the one with the even index.
func nearest(table []float64, x float64) float64 {
	low, high := 0, len(table)-1
	for high-low > 1 {
		if middle := (low + high) / 2; table[middle] <= x {
			low = middle
		} else {
			high = middle
		}
	}
	switch a, b := x-table[low], table[high]-x; {
	case a < b || a == b && low%2 == 0:
		return table[low]
	}
	return table[high]
}

func TestRounding(t *testing.T) {
	for name, c := range map[string]struct {
		infinity uint16
		next     float64 // where the number after the largest would be
		from     func(uint16) float32
		to       func(float32) uint16
	}{
		"float16":  {0x7c00, 65536, FromFloat16, ToFloat16},
		"bfloat16": {0x7f80, 0x1p128, FromBFloat16, ToBFloat16},
	} {
		table := make([]float64, c.infinity+1)
		for i := range c.infinity {
			x := c.from(i)
			table[i] = float64(x)
			if c.to(x) != i || c.to(-x) != i|0x8000 || c.from(i|0x8000) != -x {
				t.Fatalf("%s: %#x becomes %v and %#x", name, i, x, c.to(x))
			}
		}
		table[c.infinity] = c.next
		check := func(x float32) {
			want := nearest(table, float64(x))
			if want == c.next {
				want = math.Inf(1)
			}
			if got := float64(c.from(c.to(x))); got != want {
				t.Fatalf("%s: %g becomes %g, want %g", name, x, got, want)
			}
		}
		for i := range c.infinity {
			middle := float32((table[i] + table[i+1]) / 2)
			for _, x := range []float32{middle, math.Nextafter32(middle, 0), math.Nextafter32(middle, math.MaxFloat32)} {
				check(x)
			}
		}
		nan := float32(math.NaN())
		if x := c.from(c.to(nan)); x == x {
			t.Errorf("%s: NaN becomes %v", name, x)
		}
		if x := c.from(c.to(math.Float32frombits(0x7f800001))); x == x {
			t.Errorf("%s: a NaN with a low bit becomes %v", name, x)
		}
		if x := c.from(c.to(float32(math.Inf(-1)))); !math.IsInf(float64(x), -1) {
			t.Errorf("%s: -Inf becomes %v", name, x)
		}
	}
}
