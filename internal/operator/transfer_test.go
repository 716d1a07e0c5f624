package operator

import (
	"math"
	"testing"
)

// TestInt32sOf converts integers, also those that no int32 holds.
func TestInt32sOf(t *testing.T) {
	for _, c := range []struct {
		at, x, least, most int
		want               int32
	}{
		{7, 3, 3, 5, 3}, {0, -100, -100, 5, -100}, {39999, 1 << 20, 5, 1 << 20, 1 << 20},
		{20000, math.MinInt, math.MinInt, 5, math.MinInt32}, {16384, math.MaxInt, 5, math.MaxInt, math.MaxInt32},
	} {
		from, to := make([]int, 40000), make([]int32, 40000)
		for i := range from {
			from[i] = 5
		}
		from[c.at] = c.x
		least, most := int32sOf(to, from)
		if least != c.least || most != c.most || to[c.at] != c.want || to[c.at^1] != 5 {
			t.Errorf("%d: %d to %d, converted to %d beside %d, want %d to %d, %d and 5", c.x, least, most, to[c.at], to[c.at^1], c.least, c.most, c.want)
		}
	}
	if least, most := int32sOf(nil, nil); least <= most {
		t.Errorf("of nothing: %d to %d", least, most)
	}
}
