package kernel

import (
	"fmt"
	"testing"
)

func TestReverse(t *testing.T) {
	x := []float64{1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct {
		batch, length, channels int
		start                   []bool
		want                    []float64
	}{
		{1, 8, 1, nil, []float64{8, 7, 6, 5, 4, 3, 2, 1}},
		{2, 2, 2, nil, []float64{3, 4, 1, 2, 7, 8, 5, 6}},
		{2, 4, 1, []bool{false, true, false, false, true, false, false, true}, []float64{1, 4, 3, 2, 7, 6, 5, 8}},
	} {
		y := make([]float64, len(x))
		Reverse(y, x, c.batch, c.length, c.channels, c.start)
		if fmt.Sprint(y) != fmt.Sprint(c.want) {
			t.Errorf("%+v: %v", c, y)
		}
	}
}
