package nn

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Sampling says how the next token is chosen from the logits. The zero value is greedy: the token of the largest logit, the
// lowest of several.
//
// The steps are those of Hugging Face's generate, in its order: repetition penalty, temperature, top-k, top-p, min-p, each
// on what the one before has left; then a token is drawn with the probabilities of those that are left, which add up to one
// again. Tokens are ranked by their logits, the likeliest first, equal ones by number.
type Sampling struct {
	// Temperature divides the logits. Below 1 likely tokens become likelier; 0 is greedy.
	Temperature float64
	// TopK leaves the K likeliest tokens; 0 leaves all. (Hugging Face also leaves those that equal the K-th.)
	TopK int
	// TopP leaves the fewest tokens, the likeliest first, whose probabilities add up to TopP or more; 0 and 1 leave all.
	TopP float64
	// MinP leaves the tokens that are at least MinP times as probable as the likeliest; 0 leaves all.
	MinP float64
	// RepetitionPenalty makes tokens that the sequence already has, those of the prompt included, less likely: it divides
	// their logits where they are positive, and multiplies them where they are not. 0 and 1 change nothing; less than 1
	// makes them likelier. It applies to greedy choice, too.
	RepetitionPenalty float64
}

// check returns what is wrong with the options.
func (s Sampling) check() error {
	finite := func(name string, v float64) error {
		if !(v >= 0) || math.IsInf(v, 1) {
			return fmt.Errorf("nn: %s is %v, want a finite number that is not negative", name, v)
		}
		return nil
	}
	fraction := func(name string, v float64) error {
		if !(v >= 0 && v <= 1) {
			return fmt.Errorf("nn: %s is %v, want 0 to 1", name, v)
		}
		return nil
	}
	if s.TopK < 0 {
		return fmt.Errorf("nn: TopK is %d, want at least 0", s.TopK)
	}
	for _, err := range []error{
		finite("Temperature", s.Temperature), fraction("TopP", s.TopP), fraction("MinP", s.MinP),
		finite("RepetitionPenalty", s.RepetitionPenalty),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// sampler chooses tokens. It keeps its memory from one choice to the next.
type sampler struct {
	Sampling
	scores     []float64
	candidates []candidate
}

// candidate is a token that may be drawn.
type candidate struct {
	token int
	score float64 // the logit; then the weight that it is drawn with
}

func (s *sampler) greedy() bool    { return s.Temperature == 0 || s.TopK == 1 }
func (s *sampler) penalizes() bool { return s.RepetitionPenalty != 0 && s.RepetitionPenalty != 1 }

// takesLargest reports whether the choice is the largest logit as it is.
func (s *sampler) takesLargest() bool { return s.greedy() && !s.penalizes() }

// choose returns the next token by a row of logits. seen are the tokens of the sequence so far.
func choose[T float32 | float64](s *sampler, logits []T, seen tokenSet, random *rand.PCG) (int, error) {
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
		s.penalize(seen)
	}
	if s.greedy() {
		best = 0
		for i, v := range s.scores {
			if v > s.scores[best] {
				best = i
			}
		}
		return best, nil
	}
	return draw(s.left(), rand.New(random).Float64()), nil
}

func (s *sampler) penalize(seen tokenSet) {
	for token, v := range s.scores {
		if !seen.has(token) {
			continue
		}
		if v > 0 {
			v /= s.RepetitionPenalty
		} else {
			v *= s.RepetitionPenalty
		}
		s.scores[token] = min(max(v, -math.MaxFloat64), math.MaxFloat64) // the difference of two infinities would be none
	}
}

// left returns the tokens that top-k, top-p and min-p leave, with weights in proportion to their probabilities.
func (s *sampler) left() []candidate {
	c := s.candidates[:0]
	best := math.Inf(-1)
	for token, v := range s.scores {
		c = append(c, candidate{token, v})
		best = max(best, v)
	}
	s.candidates = c

	n := len(c) // the tokens that are left are the first n
	if s.TopK > 0 && s.TopK < n {
		n = s.TopK
		c = rank(c, func(ranked []candidate) bool { return len(ranked) < n })
	}
	sum := 0.0
	for i, x := range c {
		// The likeliest has weight 1, so that no exponential overflows.
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
		left := c[:0]
		for _, x := range c {
			if x.score >= s.MinP {
				left = append(left, x)
			}
		}
		c = left
	}
	return c
}

// draw returns the token at u, 0 ≤ u < 1, of the weights' sum.
func draw(c []candidate, u float64) int {
	sum := 0.0
	for _, x := range c {
		sum += x.score
	}
	u *= sum
	last := 0
	for _, x := range c {
		if x.score > 0 {
			last = x.token // also where rounding leaves a little of the sum over
		}
		if u -= x.score; u < 0 {
			break
		}
	}
	return last
}

// rank returns the first of c in order of rank, for as long as more says so, in the same memory. It does not sort the rest:
// of a large vocabulary only few tokens are wanted.
func rank(c []candidate, more func(ranked []candidate) bool) []candidate {
	// A heap that grows from the end of c to the front: its root is the last element, and what it gives up goes to the front.
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
		// The root changes places with the heap's last element, which is the first that is not ranked.
		*at(0), c[ranked] = c[ranked], *at(0)
		ranked++
		sift(0, size-1)
	}
	return c[:ranked]
}

func before(a, b candidate) bool {
	return a.score > b.score || a.score == b.score && a.token < b.token
}

// tokenSet is a set of tokens, a bit for each.
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

// tokens returns the tokens of the set in order.
func (s tokenSet) tokens() (tokens []int) {
	for token := range 64 * len(s) {
		if s.has(token) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}
