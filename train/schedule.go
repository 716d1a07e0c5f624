package train

import "math"

// Schedule returns a factor for the learn rate at a step. Steps are counted from 1. The factor is finite and at least 0.
type Schedule func(step int) float64

// WarmupCosine returns a schedule that rises linearly to 1 during the first warmup steps, falls along half a cosine to floor at the
// step steps, and stays there. The rise is for AdamW, whose means say little in the first steps.
//
// If floor is negative or not finite, every factor is NaN, and AdamW.Step returns an error.
func WarmupCosine(warmup, steps int, floor float64) Schedule {
	if !(floor >= 0) || math.IsInf(floor, 1) {
		return func(int) float64 { return math.NaN() }
	}
	return func(step int) float64 {
		if step < warmup {
			return float64(step) / float64(warmup)
		}
		if step >= steps {
			return floor
		}
		done := float64(step-warmup) / float64(steps-warmup)
		return floor + (1-floor)*(1+math.Cos(math.Pi*done))/2
	}
}
