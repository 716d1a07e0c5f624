package kernel

import (
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
)

// BenchmarkAdamW measures a step of a million weights. Its bytes are those of the four arrays.
func BenchmarkAdamW(b *testing.B) {
	n := 1 << 20
	if testing.Short() {
		n = 1 << 10
	}
	w, g, m, v := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
	a := AdamW[float32]{Scale: 1, Beta1: 0.9, Rest1: 0.1, Beta2: 0.999, Rest2: 0.001, Rate: 0.01, Root: 1.5, Eps: 1e-8, Keep: 0.999}
	b.SetBytes(int64(4 * 4 * n))
	benchtest.Processors(b)
	for b.Loop() {
		a.Step(w, g, m, v)
	}
}
