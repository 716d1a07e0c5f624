package train

import "math"

// Schedule is a factor on the learn rate, for steps that are counted from 1.
type Schedule func(step int) float64

// WarmupCosine rises linearly to 1 over the first steps, while Adam's averages mean little, and falls along half a cosine to
// floor at the last of steps, where it stays.
func WarmupCosine(warmup, steps int, floor float64) Schedule {
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
