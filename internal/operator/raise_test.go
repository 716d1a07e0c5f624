package operator

import (
	"math"
	"testing"
)

func TestRangeOfNarrow(t *testing.T) {
	for _, c := range []struct{ at, x, least, most int }{
		{7, 3, 3, 5}, {0, -100, -100, 5}, {39999, 1 << 20, 5, 1 << 20}, {20000, math.MinInt, math.MinInt, 5}, {16384, math.MaxInt, 5, math.MaxInt},
	} {
		ints := make([]int, 40000)
		for i := range ints {
			ints[i] = 5
		}
		ints[c.at] = c.x
		if least, most := narrow(make([]int32, len(ints)), ints); least != c.least || most != c.most {
			t.Errorf("%d: %d to %d, want %d to %d", c.x, least, most, c.least, c.most)
		}
	}
	if least, most := narrow(nil, nil); least <= most {
		t.Errorf("of nothing: %d to %d", least, most)
	}
}
