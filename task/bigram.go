package task

import (
	"fmt"
	"math"
)

// Bigram predicts a byte from the byte before it, by counting pairs in a training text. It is a baseline: a model that remembers
// more than one byte has to be better.
//
//	p(b|a) = (max(c(ab) - discount, 0) + (discount·k(a) + prior)·p(b)) / (c(a) + prior)
//
// c(ab) is the number of pairs ab in the text, c(a) the number of pairs that begin with a, and k(a) the number of different bytes
// that follow a. This is absolute discounting (Ney, Essen and Kneser, 1994) together with a Dirichlet prior (MacKay and Peto,
// 1995). Both fall back on the frequencies of single bytes, p(b) = (c(b) + 1) / (n + 256), in a text of n bytes.
//
// NewBigram tries several values of discount and prior. It takes those with which the first nine tenths of the training text
// predict the last tenth best, and then counts the whole text.
type Bigram struct {
	Discount, Prior float64

	pairs  [256][256]float64 // c(ab)
	firsts [256]float64      // c(a)
	kinds  [256]float64      // k(a)
	single [256]float64      // p(b)
}

// NewBigram counts the pairs of a training text. It is an error if the text has fewer than two bytes.
func NewBigram(text []byte) (*Bigram, error) {
	if len(text) < 2 {
		return nil, fmt.Errorf("task: bigram: text has %d bytes, should have at least 2", len(text))
	}
	cut := len(text) - len(text)/10
	trial, unseen := count(text[:cut]), count(text[cut-1:])
	full := count(text)
	best := math.Inf(1)
	for _, discount := range []float64{0, 0.25, 0.5, 0.75, 0.9} {
		for _, prior := range []float64{0.1, 1, 4, 16, 64, 256} {
			trial.Discount, trial.Prior = discount, prior
			if bits := trial.bits(&unseen.pairs); bits < best {
				best, full.Discount, full.Prior = bits, discount, prior
			}
		}
	}
	return full, nil
}

func count(text []byte) *Bigram {
	b := new(Bigram)
	for i := range b.single {
		b.single[i] = 1 / float64(len(text)+256)
	}
	for i, next := range text {
		b.single[next] += 1 / float64(len(text)+256)
		if i == 0 {
			continue
		}
		previous := text[i-1]
		if b.pairs[previous][next] == 0 {
			b.kinds[previous]++
		}
		b.pairs[previous][next]++
		b.firsts[previous]++
	}
	return b
}

// Probability returns p(next|previous). Over all next bytes it sums to 1, and it is never 0.
func (b *Bigram) Probability(previous, next byte) float64 {
	seen := max(b.pairs[previous][next]-b.Discount, 0)
	rest := b.Discount*b.kinds[previous] + b.Prior
	return (seen + rest*b.single[next]) / (b.firsts[previous] + b.Prior)
}

// bits returns the sum of the bits of all pairs.
func (b *Bigram) bits(pairs *[256][256]float64) float64 {
	sum := 0.0
	for previous := range pairs {
		for next, n := range pairs[previous] {
			if n > 0 {
				sum -= n * math.Log2(b.Probability(byte(previous), byte(next)))
			}
		}
	}
	return sum
}

// BitsPerByte returns the mean of -log2 p(target|id) over all targets that are not nn.Ignore. It is an error if there are no
// targets, or if an id or target is not a byte.
func (b *Bigram) BitsPerByte(batches []Batch) (float64, error) {
	if b == nil || b.single == ([256]float64{}) {
		return 0, fmt.Errorf("task: bigram: the bigram is missing, want one that NewBigram returned")
	}
	if !(b.Discount >= 0 && b.Discount <= 1) {
		return 0, fmt.Errorf("task: bigram: Discount is %v, want 0 to 1", b.Discount)
	}
	if !(b.Prior > 0) || math.IsInf(b.Prior, 1) {
		return 0, fmt.Errorf("task: bigram: Prior is %v, want a finite number above 0", b.Prior)
	}
	var pairs [256][256]float64
	targets := 0
	for i, batch := range batches {
		if len(batch.IDs) != len(batch.Targets) {
			return 0, fmt.Errorf("task: bigram: batch %d has %d ids and %d targets, should have as many of both",
				i, len(batch.IDs), len(batch.Targets))
		}
		for k, target := range batch.Targets {
			if target == ignore {
				continue
			}
			id := batch.IDs[k]
			if id < 0 || id > 255 || target < 0 || target > 255 {
				return 0, fmt.Errorf("task: bigram: batch %d has id %d and target %d at %d, should be from 0 to 255",
					i, id, target, k)
			}
			pairs[id][target]++
			targets++
		}
	}
	if targets == 0 {
		return 0, fmt.Errorf("task: bigram: no targets in %d batches", len(batches))
	}
	return b.bits(&pairs) / float64(targets), nil
}
