package task

import (
	"math"
	"math/rand/v2"
	"strings"
	"unicode"
)

// Draw returns a random index, with probability softmax(logits / temperature). At temperature 0 it returns the index of the largest logit,
// the first if there are several. It returns the index of a NaN only if all logits are NaN.
func Draw(logits []float64, temperature float64, random *rand.Rand) int {
	best := 0
	for i, v := range logits {
		if v > logits[best] || math.IsNaN(logits[best]) {
			best = i
		}
	}
	if temperature == 0 {
		return best
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
			return i
		}
	}
	// Because of rounding, left can still be above zero.
	return best
}

// Printable returns the text of a model in a form that is safe for a terminal. Bytes that are not UTF-8, and control characters other than
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
