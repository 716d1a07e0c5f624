package nn

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
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
	scores []float64 // first the logits with their penalties, then the weights with which the tokens are drawn
	ranked []candidate
}

// candidate is a token that may be drawn.
type candidate struct {
	token int
	score float64 // first the logit, then the weight
}

func (s *Sampling) greedy() bool  { return s.Temperature == 0 || s.TopK == 1 }
func (s *Sampling) repeats() bool { return s.RepetitionPenalty != 0 && s.RepetitionPenalty != 1 }
func (s *Sampling) penalizes() bool {
	return s.repeats() || s.PresencePenalty != 0 || s.FrequencyPenalty != 0
}

// takesLargest reports whether the choice is always the token of the largest logit.
func (s *Sampling) takesLargest() bool { return s.greedy() && !s.penalizes() }

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
	s.scores = slices.Grow(s.scores[:0], len(logits))[:len(logits)]
	for i, v := range logits {
		s.scores[i] = float64(v)
	}
	if s.penalizes() {
		s.penalize(seen, chosen)
		best = slices.Index(s.scores, slices.Max(s.scores))
	}
	if s.greedy() {
		return best, nil
	}
	ranked, sum := s.weigh(s.scores[best])
	token := draw(s.scores, sum, rand.New(random).Float64())
	if ranked != nil {
		token = ranked[token].token
	}
	return token, nil
}

func (s *sampler) penalize(seen tokenSet, chosen map[int]int) {
	finite := func(v float64) float64 { return min(max(v, -math.MaxFloat64), math.MaxFloat64) } // an infinity would give NaN in differences
	if s.repeats() {
		seen.each(func(token int) {
			if token >= len(s.scores) {
				return
			}
			v := s.scores[token]
			if v > 0 {
				v /= s.RepetitionPenalty
			} else {
				v *= s.RepetitionPenalty
			}
			s.scores[token] = finite(v)
		})
	}
	for token, times := range chosen {
		s.scores[token] = finite(s.scores[token] - s.PresencePenalty - float64(times)*s.FrequencyPenalty)
	}
}

// weigh makes the scores weights proportional to the probabilities, with zeros for tokens that min-p drops, and returns their sum. best is the largest
// score. If top-k or top-p is set, the scores are then those of the tokens that it keeps, and weigh returns these tokens by rank. Otherwise ranked is
// nil. The sum adds the scores in their order.
func (s *sampler) weigh(best float64) (ranked []candidate, sum float64) {
	if s.TopK > 0 && s.TopK < len(s.scores) {
		ranked = s.mostProbable(s.TopK)
		s.scores = s.scores[:len(ranked)]
		for i, x := range ranked {
			s.scores[i] = x.score
		}
	}
	for i, v := range s.scores {
		w := math.Exp((v - best) / s.Temperature) // the most probable token has weight 1, so no exponential overflows
		s.scores[i] = w
		sum += w
	}
	if s.TopP > 0 && s.TopP < 1 {
		ranked = s.nucleus(ranked, s.TopP*sum)
		s.scores, sum = s.scores[:len(ranked)], 0
		for i, x := range ranked {
			s.scores[i] = x.score
			sum += x.score
		}
	}
	if s.MinP > 0 {
		sum = 0
		for i, w := range s.scores {
			if w < s.MinP {
				s.scores[i] = 0
			}
			sum += s.scores[i]
		}
	}
	return ranked, sum
}

// mostProbable returns the n tokens of the highest ranks.
func (s *sampler) mostProbable(n int) []candidate {
	c, least := s.ranked[:0], math.Inf(-1) // least is the score of the last token that was kept when n tokens were
	for token, v := range s.scores {
		if len(c) >= n && v <= least { // a token of the same score and a higher number ranks behind
			continue
		}
		if c = append(c, candidate{token, v}); len(c) == 2*n {
			rank(c)
			c, least = c[:n], c[n-1].score
		}
	}
	s.ranked = c
	rank(c)
	return c[:min(n, len(c))]
}

// nucleus returns the tokens of the highest ranks, as few as have a sum of weights of mass or more. of are the tokens of the weights, nil for all.
func (s *sampler) nucleus(of []candidate, mass float64) []candidate {
	if of == nil {
		// Only tokens whose weights are not much smaller than the last one's are ranked: a histogram says how small.
		const perOctave, octaves = 8, 64
		var bins [perOctave*octaves + 1]float64
		bin := func(w float64) int {
			return int(min((math.Float64bits(1)-math.Float64bits(w))/(1<<52/perOctave), perOctave*octaves))
		}
		for _, w := range s.scores {
			bins[bin(w)] += w
		}
		last, enough := 0, mass*(1+float64(len(s.scores))*0x1p-50) // whatever the order of the sums
		for sum := bins[0]; sum < enough && last < len(bins)-1; sum += bins[last] {
			last++
		}
		of = s.ranked[:0]
		for token, w := range s.scores {
			if bin(w) <= last {
				of = append(of, candidate{token, w})
			}
		}
		s.ranked = of
	} else {
		for i := range of {
			of[i].score = s.scores[i]
		}
	}
	rank(of)
	n, sum := 0, 0.0
	for ; n < len(of) && sum < mass; n++ {
		sum += of[n].score
	}
	return of[:n]
}

// rank sorts candidates by rank.
func rank(c []candidate) {
	slices.SortFunc(c, func(a, b candidate) int {
		if a.score == b.score {
			return a.token - b.token
		}
		return cmp.Compare(b.score, a.score)
	})
}

// draw returns the index of the weight at the fraction u of their sum, 0 ≤ u < 1.
func draw(weights []float64, sum, u float64) int {
	u *= sum
	last := 0
	for i, w := range weights {
		if w > 0 {
			last = i // also the result if rounding leaves u at 0 or above after the loop
		}
		if u -= w; u < 0 {
			break
		}
	}
	return last
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

// each calls f with the tokens of the set in ascending order.
func (s tokenSet) each(f func(token int)) {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			f(64*i + bits.TrailingZeros64(word))
		}
	}
}

// tokens returns the tokens of the set in ascending order.
func (s tokenSet) tokens() (tokens []int) {
	s.each(func(token int) { tokens = append(tokens, token) })
	return tokens
}
