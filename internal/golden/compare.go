package golden

import (
	"fmt"
	"math"
)

// Elements returns the elements of a value's data, widened to float64.
func Elements(data any) []float64 {
	switch d := data.(type) {
	case []float64:
		return append([]float64(nil), d...)
	case []float32:
		s := make([]float64, len(d))
		for i, x := range d {
			s[i] = float64(x)
		}
		return s
	case float64:
		return []float64{d}
	case float32:
		return []float64{float64(d)}
	}
	panic(fmt.Sprintf("golden: elements of %T", data))
}

// Distance returns the largest difference between got and want, divided by the largest magnitude of want. It returns an error if the lengths
// differ.
func Distance(got, want []float64) (float64, error) {
	if len(got) != len(want) {
		return 0, fmt.Errorf("%d elements, want %d", len(got), len(want))
	}
	var scale, largest float64
	for i, x := range want {
		scale = max(scale, math.Abs(x))
		largest = max(largest, math.Abs(got[i]-x))
	}
	if largest == 0 {
		return 0, nil
	}
	return largest / scale, nil
}

// Near returns an error that names the first element of got whose distance from want exceeds tol times the largest magnitude of want.
func Near(got, want []float64, tol float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d elements, want %d", len(got), len(want))
	}
	var scale float64
	for _, x := range want {
		scale = max(scale, math.Abs(x))
	}
	for i, x := range want {
		if d := math.Abs(got[i] - x); !(d <= tol*scale) {
			return fmt.Errorf("element %d is %v, want %v (largest magnitude %g)", i, got[i], x, scale)
		}
	}
	return nil
}
