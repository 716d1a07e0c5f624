package train

import (
	"math"
	"testing"
)

func TestCurveMean(t *testing.T) {
	c := &Curve{Training: []Point{{1, 2}, {2, 1}, {3, 0.5}}}
	for _, test := range []struct {
		c     *Curve
		steps int
		want  float64
	}{
		{c, 2, 0.75}, {c, 3, 3.5 / 3}, {c, math.MaxInt, 3.5 / 3}, {c, 0, math.NaN()}, {c, -3, math.NaN()}, {c, math.MinInt, math.NaN()},
		{new(Curve), 2, math.NaN()}, {nil, 2, math.NaN()},
	} {
		if got := test.c.Mean(test.steps); got != test.want && !(math.IsNaN(got) && math.IsNaN(test.want)) {
			t.Errorf("the mean of the last %d of %v is %v, want %v", test.steps, test.c, got, test.want)
		}
	}
}
