package nn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sampling says how the next token is chosen from the logits. The zero value chooses greedily: it takes the token of the largest logit, and
// of several such tokens the one with the lowest number.
//
// The steps and their order are those of Hugging Face's generate: repetition penalty, temperature, top-k, top-p, min-p. The presence and
// frequency penalties, OpenAI's, follow the repetition penalty. Each step works on the tokens that the step before has kept. Then a token is drawn with the probabilities of the kept tokens, scaled to add up to one.
// Tokens are ranked by probability, the most probable first, and equally probable tokens by number, the lowest first.
type Sampling struct {
	// Temperature divides the logits. A temperature below 1 makes probable tokens more probable; 0 chooses greedily.
	Temperature float64
	// TopK keeps the K most probable tokens; 0 keeps all. (Hugging Face also keeps tokens that are as probable as the K-th.)
	TopK int
	// TopP keeps the most probable tokens, as few as add up to a probability of TopP or more; 0 and 1 keep all.
	TopP float64
	// MinP keeps the tokens that are at least MinP times as probable as the most probable token; 0 keeps all.
	MinP float64
	// RepetitionPenalty makes tokens that the sequence already contains, the prompt included, less probable. It divides their positive
	// logits and multiplies their other logits. 0 and 1 change nothing; a penalty between 0 and 1 makes the tokens more probable. The
	// penalty also applies to greedy choice.
	RepetitionPenalty float64
	// PresencePenalty is subtracted from the logits of the tokens that were chosen before. FrequencyPenalty is subtracted once for each time.
	// Tokens of the prompt do not count. 0 changes nothing, and a negative penalty makes the tokens more probable. The penalties also apply to
	// greedy choice.
	PresencePenalty, FrequencyPenalty float64
}

// check returns an error if an option is out of its range.
func (s Sampling) check() error {
	if s.TopK < 0 {
		return fmt.Errorf("nn: TopK is %d, want at least 0", s.TopK)
	}
	for _, f := range []field[float64]{{"Temperature", s.Temperature}, {"RepetitionPenalty", s.RepetitionPenalty}} {
		if !(f.value >= 0) || math.IsInf(f.value, 1) {
			return fmt.Errorf("nn: %s is %v, want a finite number that is not negative", f.name, f.value)
		}
	}
	for _, f := range []field[float64]{{"PresencePenalty", s.PresencePenalty}, {"FrequencyPenalty", s.FrequencyPenalty}} {
		if math.IsNaN(f.value) || math.IsInf(f.value, 0) {
			return fmt.Errorf("nn: %s is %v, want a finite number", f.name, f.value)
		}
	}
	for _, f := range []field[float64]{{"TopP", s.TopP}, {"MinP", s.MinP}} {
		if !(f.value >= 0 && f.value <= 1) {
			return fmt.Errorf("nn: %s is %v, want 0 to 1", f.name, f.value)
		}
	}
	return nil
}

// sampler chooses tokens. It reuses its memory for each choice.
type sampler struct {
	Sampling
	scores     []float64
	candidates []candidate
}

// candidate is a token that may be drawn.
type candidate struct {
	token int
	score float64 // first the logit, then the weight with which the token is drawn
}

func (s *sampler) greedy() bool  { return s.Temperature == 0 || s.TopK == 1 }
func (s *sampler) repeats() bool { return s.RepetitionPenalty != 0 && s.RepetitionPenalty != 1 }
func (s *sampler) penalizes() bool {
	return s.repeats() || s.PresencePenalty != 0 || s.FrequencyPenalty != 0
}

// takesLargest reports whether the choice is always the token of the largest logit.
func (s *sampler) takesLargest() bool { return s.greedy() && !s.penalizes() }

// choose returns the next token for a row of logits. seen holds the tokens of the sequence so far, and chosen how often each token was chosen. A
// NaN, or an infinite largest logit, is an error.
func choose[T float32 | float64](s *sampler, logits []T, seen tokenSet, chosen map[int]int, random *rand.PCG) (int, error) {
	best := 0
	for i, v := range logits {
		if v > logits[best] {
			best = i
		} else if v != v {
			return 0, fmt.Errorf("the logit of token %d is not a number", i)
		}
	}
	if v := float64(logits[best]); math.IsInf(v, 0) {
		return 0, fmt.Errorf("the logit of token %d, the largest, is %v", best, v)
	}
	if s.takesLargest() {
		return best, nil
	}
	s.scores = s.scores[:0]
	for _, v := range logits {
		s.scores = append(s.scores, float64(v))
	}
	if s.penalizes() {
		s.penalize(seen, chosen)
	}
	if s.greedy() {
		return slices.Index(s.scores, slices.Max(s.scores)), nil
	}
	return draw(s.left(), rand.New(random).Float64()), nil
}

func (s *sampler) penalize(seen tokenSet, chosen map[int]int) {
	finite := func(v float64) float64 { return min(max(v, -math.MaxFloat64), math.MaxFloat64) } // an infinity would give NaN in differences
	for token, v := range s.scores {
		if !s.repeats() || !seen.has(token) {
			continue
		}
		if v > 0 {
			v /= s.RepetitionPenalty
		} else {
			v *= s.RepetitionPenalty
		}
		s.scores[token] = finite(v)
	}
	for token, times := range chosen {
		s.scores[token] = finite(s.scores[token] - s.PresencePenalty - float64(times)*s.FrequencyPenalty)
	}
}

// left returns the tokens that top-k, top-p and min-p keep, with weights proportional to their probabilities.
func (s *sampler) left() []candidate {
	c := s.candidates[:0]
	best := math.Inf(-1)
	for token, v := range s.scores {
		c = append(c, candidate{token, v})
		best = max(best, v)
	}
	s.candidates = c

	n := len(c) // top-k keeps n tokens
	if s.TopK > 0 && s.TopK < n {
		n = s.TopK
		c = rank(c, func(ranked []candidate) bool { return len(ranked) < n })
	}
	sum := 0.0
	for i, x := range c {
		// The most probable token has weight 1, so no exponential overflows.
		c[i].score = math.Exp((x.score - best) / s.Temperature)
		sum += c[i].score
	}
	if s.TopP > 0 && s.TopP < 1 {
		mass := 0.0
		c = rank(c, func(ranked []candidate) bool {
			if k := len(ranked); k > 0 {
				mass += ranked[k-1].score
			}
			return mass < s.TopP*sum
		})
	}
	if s.MinP > 0 {
		c = slices.DeleteFunc(c, func(x candidate) bool { return x.score < s.MinP })
	}
	return c
}

// draw returns the token at the fraction u of the sum of all weights, 0 ≤ u < 1.
func draw(c []candidate, u float64) int {
	sum := 0.0
	for _, x := range c {
		sum += x.score
	}
	u *= sum
	last := 0
	for _, x := range c {
		if x.score > 0 {
			last = x.token // also the result if rounding leaves u at 0 or above after the loop
		}
		if u -= x.score; u < 0 {
			break
		}
	}
	return last
}

// rank returns the first candidates of c by rank, in c's memory. It calls more with the candidates ranked so far, and stops when more returns
// false. It does not sort the others, since few tokens of a large vocabulary are wanted.
func rank(c []candidate, more func(ranked []candidate) bool) []candidate {
	// The unranked candidates are a heap that is stored backwards: its root is the last element of c. Ranked candidates move to the front.
	n := len(c)
	at := func(i int) *candidate { return &c[n-1-i] }
	sift := func(i, size int) {
		for {
			child := 2*i + 1
			if child >= size {
				return
			}
			if child+1 < size && before(*at(child + 1), *at(child)) {
				child++
			}
			if !before(*at(child), *at(i)) {
				return
			}
			*at(i), *at(child) = *at(child), *at(i)
			i = child
		}
	}
	for i := n/2 - 1; i >= 0; i-- {
		sift(i, n)
	}
	ranked := 0
	for ranked < n && more(c[:ranked]) {
		size := n - ranked
		// Swap the root with the last element of the heap, which is the first unranked element of c.
		*at(0), c[ranked] = c[ranked], *at(0)
		ranked++
		sift(0, size-1)
	}
	return c[:ranked]
}

func before(a, b candidate) bool {
	return a.score > b.score || a.score == b.score && a.token < b.token
}

// tokenSet is a set of tokens, stored as one bit per token.
type tokenSet []uint64

func (s *tokenSet) add(token int) {
	for len(*s) <= token/64 {
		*s = append(*s, 0)
	}
	(*s)[token/64] |= 1 << (token % 64)
}

func (s tokenSet) has(token int) bool {
	return token/64 < len(s) && s[token/64]>>(token%64)&1 == 1
}

// tokens returns the tokens of the set in ascending order.
func (s tokenSet) tokens() (tokens []int) {
	for token := range 64 * len(s) {
		if s.has(token) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}
