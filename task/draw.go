package task

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"unicode"
)

// Draw returns an index, drawn with the probabilities softmax(logits / temperature). At temperature 0 it returns the index of the
// largest logit, the first of several, and does not use random. It never returns the index of a NaN, unless all logits are NaN.
//
// It is an error if there is no logit, if the temperature is negative or not finite, or if random is nil where it is used. random is
// one that rand.New returned.
func Draw(logits []float64, temperature float64, random *rand.Rand) (int, error) {
	switch {
	case len(logits) == 0:
		return 0, fmt.Errorf("task: draw: there are no logits, want at least one")
	case !(temperature >= 0) || math.IsInf(temperature, 1):
		return 0, fmt.Errorf("task: draw: temperature is %v, want a finite number that is not negative", temperature)
	case temperature > 0 && random == nil:
		return 0, fmt.Errorf("task: draw: the source of random numbers is nil")
	}
	best := 0
	for i, v := range logits {
		if v > logits[best] || math.IsNaN(logits[best]) {
			best = i
		}
	}
	if temperature == 0 {
		return best, nil
	}
	weights := make([]float64, len(logits))
	sum := 0.0
	for i, v := range logits {
		// The largest logit is subtracted so that the exponential cannot overflow.
		if weight := math.Exp((v - logits[best]) / temperature); !math.IsNaN(weight) {
			weights[i] = weight
			sum += weight
		}
	}
	left := random.Float64() * sum
	for i, weight := range weights {
		if left -= weight; left < 0 {
			return i, nil
		}
	}
	// Rounding may leave a small rest of the sum.
	return best, nil
}

// Printable makes the bytes that a model generated safe for a terminal. Bytes that are not UTF-8, and control characters other than
// line ends and tabs, become U+FFFD.
func Printable(text []byte) string {
	lines := strings.ReplaceAll(string(text), "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, lines)
}
