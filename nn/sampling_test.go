package nn

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// probabilities is the definition of Sampling, written like Hugging Face's processors: each sets the scores of the tokens that it drops to
// minus infinity.
func probabilities(logits []float64, s Sampling, seen map[int]bool, chosen map[int]int) []float64 {
	scores := slices.Clone(logits)
	if p := s.RepetitionPenalty; p != 0 {
		for token := range seen {
			if scores[token] < 0 {
				scores[token] *= p
			} else {
				scores[token] /= p
			}
		}
	}
	for token, n := range chosen {
		scores[token] = scores[token] - s.PresencePenalty - float64(n)*s.FrequencyPenalty
	}
	for i := range scores {
		scores[i] /= s.Temperature
	}
	drop := math.Inf(-1)
	if s.TopK > 0 {
		sorted := slices.Sorted(slices.Values(scores))
		kth := sorted[max(len(sorted)-s.TopK, 0)]
		for i, v := range scores {
			if v < kth {
				scores[i] = drop
			}
		}
	}
	if s.TopP > 0 && s.TopP < 1 {
		order := make([]int, len(scores))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(a, b int) int { // ascending, as in Hugging Face's code
			if scores[a] < scores[b] {
				return -1
			}
			return 1
		})
		p, cumulative := softmax(scores), 0.0
		for _, i := range order[:len(order)-1] { // the most probable token is always kept
			if cumulative += p[i]; cumulative <= 1-s.TopP {
				scores[i] = drop
			}
		}
	}
	if s.MinP > 0 {
		p := softmax(scores)
		top := slices.Max(p)
		for i := range p {
			if p[i] < s.MinP*top {
				scores[i] = drop
			}
		}
	}
	return softmax(scores)
}

func softmax(scores []float64) []float64 {
	top, sum := slices.Max(scores), 0.0
	p := make([]float64, len(scores))
	for i, v := range scores {
		p[i] = math.Exp(v - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// times returns how often each token occurs.
func times(tokens []int) map[int]int {
	n := map[int]int{}
	for _, token := range tokens {
		n[token]++
	}
	return n
}

func setOf(tokens ...int) (s tokenSet) {
	for _, token := range tokens {
		s.add(token)
	}
	return s
}

// The probabilities with which tokens are drawn are those of the definition, for any options.
func TestSamplingProbabilities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 70).Draw(t, "vocabulary")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		logits := normal(r, n)
		for i := range logits {
			logits[i] *= 4
		}
		s := &sampler{Sampling: Sampling{
			Temperature:       rapid.Float64Range(0.05, 5).Draw(t, "temperature"),
			TopK:              rapid.SampledFrom([]int{0, 0, 2, 3, 7, n, n + 5}).Draw(t, "top-k"),
			TopP:              rapid.SampledFrom([]float64{0, 1e-9, 0.3, 0.77, 0.95, 1}).Draw(t, "top-p"),
			MinP:              rapid.SampledFrom([]float64{0, 0.01, 0.2, 1}).Draw(t, "min-p"),
			RepetitionPenalty: rapid.SampledFrom([]float64{0, 1, 1.3, 0.7}).Draw(t, "penalty"),
			PresencePenalty:   rapid.SampledFrom([]float64{0, 1.1, -2}).Draw(t, "presence"),
			FrequencyPenalty:  rapid.SampledFrom([]float64{0, 0.3, -0.5}).Draw(t, "frequency"),
		}}
		seen, chosen := map[int]bool{}, map[int]int{}
		var set tokenSet
		for range r.IntN(n) {
			token := r.IntN(n)
			seen[token] = true
			set.add(token)
			if r.IntN(2) == 0 {
				chosen[token]++
			}
		}
		want := probabilities(logits, s.Sampling, seen, chosen)

		s.scores = slices.Clone(logits)
		if s.penalizes() {
			s.penalize(set, chosen)
		}
		got := make([]float64, n)
		tokens, sum := s.left()
		for i, token := range tokens {
			got[token] += s.scores[i] / sum
		}
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-12 {
				t.Fatalf("token %d has probability %v, want %v", i, got[i], want[i])
			}
		}
	})
}

// Tokens are drawn with their probabilities: Pearson's statistic is within six standard deviations of its mean. The draws are those of one
// sequence, and the first draws of many sequences with successive seeds, as in a batch.
func TestSamplingDraws(t *testing.T) {
	const draws = 40000
	logits := []float32{1.5, -0.5, 2, 0, 1.9, -3, 0.3, 1}
	wide := make([]float64, len(logits))
	for i, v := range logits {
		wide[i] = float64(v)
	}
	for _, options := range []Sampling{
		{Temperature: 1}, {Temperature: 0.6}, {Temperature: 2.5}, {Temperature: 1, TopK: 3}, {Temperature: 1, TopP: 0.8},
		{Temperature: 1, MinP: 0.2}, {Temperature: 1, RepetitionPenalty: 2},
		{Temperature: 0.9, TopK: 6, TopP: 0.95, MinP: 0.05, RepetitionPenalty: 1.4},
	} {
		want := probabilities(wide, options, map[int]bool{2: true, 5: true}, nil)
		for _, manySeeds := range []bool{false, true} {
			s, counts, random := &sampler{Sampling: options}, make([]int, len(logits)), rand.NewPCG(1, 0)
			for i := range draws {
				if manySeeds {
					random.Seed(uint64(i), 0)
				}
				token, err := choose(s, logits, setOf(2, 5), nil, random)
				if err != nil {
					t.Fatal(err)
				}
				counts[token]++
			}
			statistic, freedom := 0.0, -1.0
			for i, p := range want {
				if p == 0 {
					if counts[i] > 0 {
						t.Errorf("%+v: token %d was drawn %d times, want never", options, i, counts[i])
					}
					continue
				}
				d := float64(counts[i]) - draws*p
				statistic += d * d / (draws * p)
				freedom++
			}
			if limit := freedom + 6*math.Sqrt(2*freedom); !(statistic < limit) {
				t.Errorf("%+v, many seeds %t: chi-square is %.1f, want less than %.1f; %v for %v", options, manySeeds, statistic, limit, counts, want)
			}
		}
	}
}

// If the probabilities of the first tokens add up to exactly TopP, no further token is kept. Equally probable tokens are ranked by number.
func TestSamplingTopPTies(t *testing.T) {
	equal := func(n int) []float64 { return make([]float64, n) }
	for _, test := range []struct {
		logits []float64
		Sampling
		want []int
	}{
		{equal(4), Sampling{TopP: 0.5}, []int{0, 1}},
		{equal(4), Sampling{TopP: 0.51}, []int{0, 1, 2}},
		{equal(4), Sampling{TopP: 1e-9}, []int{0}},
		{equal(64), Sampling{TopP: 0.125}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{equal(8), Sampling{TopK: 4, TopP: 0.5}, []int{0, 1}},
		{equal(4), Sampling{TopP: 0.5, MinP: 1}, []int{0, 1}},
		{[]float64{1, 2, 1, 2, 1, 1}, Sampling{TopP: 0.65}, []int{0, 1, 3}},
		{[]float64{1, 2, 1, 2}, Sampling{MinP: 1}, []int{1, 3}},
	} {
		test.Temperature = 1
		s := &sampler{Sampling: test.Sampling, scores: slices.Clone(test.logits)}
		tokens, _ := s.left()
		var got []int
		for i, token := range tokens {
			if s.scores[i] > 0 {
				got = append(got, token)
			}
		}
		if slices.Sort(got); !slices.Equal(got, test.want) {
			t.Errorf("%+v of logits %v keeps tokens %v, want %v", test.Sampling, test.logits, got, test.want)
		}
	}
}

// Equally probable tokens are ranked by number: greedy choice takes the first; top-k and top-p keep the first, and no more than they should.
func TestSamplingTies(t *testing.T) {
	logits := []float64{0, 3, 1, 3, 3, 1}
	chosen := func(s Sampling, seen ...int) (tokens []int) {
		random := rand.NewPCG(1, 2)
		for range 300 {
			token, err := choose(&sampler{Sampling: s}, logits, setOf(seen...), nil, random)
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, token)
		}
		slices.Sort(tokens)
		return slices.Compact(tokens)
	}
	for _, c := range []struct {
		s    Sampling
		seen []int
		want []int
	}{
		{Sampling{}, nil, []int{1}},
		{Sampling{RepetitionPenalty: 1.5}, []int{1, 5}, []int{3}},
		{Sampling{RepetitionPenalty: 1.5}, []int{3}, []int{1}},
		{Sampling{RepetitionPenalty: 9}, []int{1, 3, 4}, []int{2}},
		{Sampling{Temperature: 2, TopK: 1}, nil, []int{1}},
		{Sampling{Temperature: 2, TopK: 2}, nil, []int{1, 3}},
		{Sampling{Temperature: 2, TopK: 4}, nil, []int{1, 2, 3, 4}},
		{Sampling{Temperature: 0.1, TopP: 0.5}, nil, []int{1, 3}},
		{Sampling{Temperature: 0.1, TopP: 0.1}, nil, []int{1}},
		{Sampling{Temperature: 2, MinP: 1}, nil, []int{1, 3, 4}},
	} {
		if got := chosen(c.s, c.seen...); !slices.Equal(got, c.want) {
			t.Errorf("%+v chooses among %v, want %v", c.s, got, c.want)
		}
	}
}

// Options at the ends of their ranges choose a token that the definition allows.
func TestSamplingExtremes(t *testing.T) {
	logits := []float64{-1e300, 5, math.Inf(-1), 4, -2}
	for _, temperature := range []float64{math.SmallestNonzeroFloat64, 1e-300, 1, 1e300, math.MaxFloat64} {
		for _, penalty := range []float64{math.SmallestNonzeroFloat64, 1, math.MaxFloat64} {
			for _, p := range []float64{math.SmallestNonzeroFloat64, 0.5, 1 - 1e-16} {
				for _, k := range []int{0, 2, math.MaxInt} {
					s := &sampler{Sampling: Sampling{Temperature: temperature, TopK: k, TopP: p, MinP: p / 2, RepetitionPenalty: penalty}}
					for seed := range uint64(20) {
						token, err := choose(s, logits, setOf(1), nil, rand.NewPCG(seed, 0))
						if err != nil || token < 0 || token >= len(logits) || math.IsInf(logits[token], -1) {
							t.Fatalf("%+v chooses %d, %v", s.Sampling, token, err)
						}
					}
				}
			}
		}
	}
}

// A NaN logit is an error that names the token.
func TestSamplingOfNoNumbers(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		logits []float64
		want   string
	}{
		{[]float64{nan, 1}, "the logit of token 0 is not a number"},
		{[]float64{1, 2, nan}, "the logit of token 2 is not a number"},
		{[]float64{1, inf, 0}, "the logit of token 1, the largest, is +Inf"},
		{[]float64{-inf, -inf}, "the logit of token 0, the largest, is -Inf"},
	} {
		if _, err := choose(new(sampler), c.logits, nil, nil, new(rand.PCG)); err == nil || err.Error() != c.want {
			t.Errorf("%v returns %v, want %s", c.logits, err, c.want)
		}
	}
}

// left returns the tokens of the weights, and the weights' sum.
func (s *sampler) left() (tokens []int, sum float64) {
	ranked, sum := s.weigh(slices.Max(s.scores))
	for i := range s.scores {
		if ranked != nil {
			i = ranked[i].token
		}
		tokens = append(tokens, i)
	}
	return tokens, sum
}

// chooseSlowly is choose without penalties, by the definition of the ranks and of the order of all sums: it sorts all tokens.
func chooseSlowly(logits []float64, s Sampling, u float64) int {
	c, best := make([]candidate, len(logits)), slices.Max(logits)
	for i, v := range logits {
		c[i] = candidate{i, v}
	}
	sum := func() (sum float64) {
		for _, x := range c {
			sum += x.score
		}
		return sum
	}
	sort := func() {
		slices.SortStableFunc(c, func(a, b candidate) int { return cmp.Compare(b.score, a.score) })
	}
	if s.TopK > 0 && s.TopK < len(c) {
		sort()
		c = c[:s.TopK]
	}
	for i := range c {
		c[i].score = math.Exp((c[i].score - best) / s.Temperature)
	}
	if s.TopP > 0 && s.TopP < 1 {
		most, mass, n := s.TopP*sum(), 0.0, 0
		slices.SortFunc(c, func(a, b candidate) int { return a.token - b.token })
		for sort(); n < len(c) && mass < most; n++ {
			mass += c[n].score
		}
		c = c[:n]
	}
	c = slices.DeleteFunc(c, func(x candidate) bool { return x.score < s.MinP || x.score == 0 })
	u *= sum()
	for _, x := range c {
		if u -= x.score; u < 0 {
			return x.token
		}
	}
	return c[len(c)-1].token
}

// The tokens are those of the slow choice, whatever the shape of the distribution, and no choice allocates.
func TestSamplingAsSlowly(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	for round := range 400 {
		n, spread := 1+r.IntN(2000), math.Exp(r.NormFloat64()*2)
		logits := make([]float64, n)
		for i := range logits {
			switch logits[i] = r.NormFloat64() * spread; round % 4 {
			case 1:
				logits[i] = math.Round(logits[i]) // many ties
			case 2:
				logits[i] = spread * float64(i) / float64(n)
			case 3:
				if r.IntN(3) == 0 {
					logits[i] = math.Inf(-1)
				}
			}
		}
		logits[r.IntN(n)] += 0.5
		if round%4 == 3 {
			logits[r.IntN(n)] = 1
		}
		s := &sampler{Sampling: Sampling{
			Temperature: math.Exp(r.NormFloat64()),
			TopK:        []int{0, 0, 2 + r.IntN(9), 2 + r.IntN(n)}[r.IntN(4)],
			TopP:        []float64{0, 0.999, 1e-9, r.Float64(), 1 - 1e-15}[r.IntN(5)],
			MinP:        []float64{0, 0, r.Float64()}[r.IntN(3)],
		}}
		for range 5 {
			random := rand.NewPCG(r.Uint64(), 0)
			same := *random
			got, err := choose(s, logits, nil, nil, random)
			if want := chooseSlowly(logits, s.Sampling, rand.New(&same).Float64()); err != nil || got != want {
				t.Fatalf("round %d, %+v of %d tokens chooses %d, want %d (%v)", round, s.Sampling, n, got, want, err)
			}
		}
		s.RepetitionPenalty, s.FrequencyPenalty = 1.1, 0.1
		seen, chosen, random := setOf(0, n-1), map[int]int{0: 2}, rand.NewPCG(1, 1)
		again := func() {
			*random = *rand.NewPCG(1, 1)
			if _, err := choose(s, logits, seen, chosen, random); err != nil {
				t.Fatal(err)
			}
		}
		if round < 40 {
			if again(); testing.AllocsPerRun(3, again) > 0 {
				t.Fatalf("round %d: %+v of %d tokens allocates", round, s.Sampling, n)
			}
		}
	}
}

func TestTokenSet(t *testing.T) {
	s := setOf(0, 63, 64, 200, 64)
	if got, want := s.tokens(), []int{0, 63, 64, 200}; !slices.Equal(got, want) {
		t.Errorf("the set is %v, want %v", got, want)
	}
	if s.has(1) || s.has(199) || s.has(5000) || !s.has(200) {
		t.Error("the set has tokens that were not added, or lacks tokens that were")
	}
}
