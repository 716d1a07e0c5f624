package task

import (
	"fmt"
	"math/rand/v2"
)

// Task draws sequences that ask for one ability. Fill writes one of Length tokens and its targets: at each place the token to
// predict there, or Ignore.
type Task interface {
	Name() string
	Vocab() int // tokens are 0 to Vocab-1
	Length() int
	Fill(r *rand.Rand, ids, targets []int)
}

// Stream draws batches of a task without end. The sequence with a given number is always the same for a seed, whatever the
// batches.
type Stream struct {
	task Task
	seed uint64
	next uint64
}

// NewStream returns a stream at its first sequence. Different seeds give sequences that have nothing to do with one another:
// train with one, evaluate with another.
func NewStream(t Task, seed uint64) *Stream { return &Stream{task: t, seed: seed} }

// Next returns the next sequences, (batch, length).
func (s *Stream) Next(batch int) Batch {
	length := s.task.Length()
	b := Batch{IDs: make([]int, batch*length), Targets: make([]int, batch*length)}
	for i := range batch {
		row := func(of []int) []int { return of[i*length : (i+1)*length] }
		s.task.Fill(rand.New(rand.NewPCG(s.seed, s.next)), row(b.IDs), row(b.Targets))
		s.next++
	}
	return b
}

// copying is both kinds of copying: Memory tokens among noise, and then as many marks; at each mark a token is to be said, in
// order. Noise is token 0, the mark is the last token, those between carry data.
type copying struct {
	name                  string
	length, memory, vocab int
	places                func(r *rand.Rand, i, left int) bool // whether place i is that of a token, left of which have none
}

// NewSelectiveCopying is the selective copying of the Mamba paper (section 4.1.1): memory tokens at random places among
// length - memory places of noise, followed by memory marks; so length counts the part that is to be remembered, and a
// sequence has Length() = length + memory tokens. The paper has length 4096, memory 16, vocab 16.
//
// It is an error if a token would have no place, or if there are fewer than two tokens that carry data.
func NewSelectiveCopying(length, memory, vocab int) (Task, error) {
	// Each place is taken with the probability that makes all choices of places equally likely.
	return newCopying("selective copying", length, memory, vocab, func(r *rand.Rand, i, left int) bool { return r.IntN(length-i) < left })
}

// NewCopying is the same with the tokens at fixed places, as far apart from one another as they can be: one every
// length/memory places. What is where is known beforehand, so a time-invariant model can do it.
func NewCopying(length, memory, vocab int) (Task, error) {
	return newCopying("copying", length, memory, vocab, func(_ *rand.Rand, i, left int) bool {
		return left > 0 && i%(length/memory) == 0
	})
}

func newCopying(name string, length, memory, vocab int, places func(r *rand.Rand, i, left int) bool) (Task, error) {
	switch {
	case memory < 1:
		return nil, fmt.Errorf("task: %s: memory is %d, want at least 1 token", name, memory)
	case length < memory:
		return nil, fmt.Errorf("task: %s: length is %d, want at least %d, a place for each token", name, length, memory)
	case vocab < 4:
		return nil, fmt.Errorf("task: %s: vocab is %d, want at least 4: noise, the mark, and two tokens", name, vocab)
	}
	return &copying{name, length, memory, vocab, places}, nil
}

func (c *copying) Name() string { return c.name }
func (c *copying) Vocab() int   { return c.vocab }
func (c *copying) Length() int  { return c.length + c.memory }

func (c *copying) Fill(r *rand.Rand, ids, targets []int) {
	said := c.length // where the next token is to be said
	for i := range c.length {
		ids[i], targets[i] = 0, Ignore
		if c.places(r, i, c.Length()-said) {
			ids[i] = 1 + r.IntN(c.vocab-2)
			ids[said], targets[said] = c.vocab-1, ids[i]
			said++
		}
	}
}

// inductionHeads is the task of NewInductionHeads.
type inductionHeads struct{ length, vocab int }

// NewInductionHeads is the induction heads of the Mamba paper (section 4.1.2): random tokens, among which a special one, the
// last of the vocabulary, comes once. It comes again as the last token of the sequence, and what followed it the first time is
// to be predicted, there alone. The paper trains at length 256 with vocab 16.
//
// It is an error if the special token has no place and no follower before the end, or if there is nothing to choose from.
func NewInductionHeads(length, vocab int) (Task, error) {
	switch {
	case length < 3:
		return nil, fmt.Errorf("task: induction heads: length is %d, want at least 3: the special token, what follows, and the special token", length)
	case vocab < 3:
		return nil, fmt.Errorf("task: induction heads: vocab is %d, want at least 3: the special token and two others", vocab)
	}
	return &inductionHeads{length, vocab}, nil
}

func (*inductionHeads) Name() string  { return "induction heads" }
func (h *inductionHeads) Vocab() int  { return h.vocab }
func (h *inductionHeads) Length() int { return h.length }

func (h *inductionHeads) Fill(r *rand.Rand, ids, targets []int) {
	special, last := h.vocab-1, h.length-1
	for i := range h.length {
		ids[i], targets[i] = r.IntN(special), Ignore
	}
	at := r.IntN(last - 1)
	ids[at], ids[last] = special, special
	targets[last] = ids[at+1]
}

// recall is the task of NewAssociativeRecall.
type recall struct{ pairs, vocab int }

// NewAssociativeRecall is pairs of a key and its value, and then one of the keys, whose value is to be predicted; no key comes
// twice. Keys are the lower half of the vocabulary, values the upper one. A sequence has 2·pairs + 1 tokens. (Ba et al., "Using
// Fast Weights to Attend to the Recent Past", section 4.1; Fu et al., H3, section 3.1.)
//
// It is an error if there are fewer keys than pairs.
func NewAssociativeRecall(pairs, vocab int) (Task, error) {
	switch {
	case pairs < 1:
		return nil, fmt.Errorf("task: associative recall: pairs is %d, want at least 1", pairs)
	case vocab < max(2*pairs, 4):
		return nil, fmt.Errorf("task: associative recall: vocab is %d, want at least %d: a key for each pair in its lower half", vocab, max(2*pairs, 4))
	}
	return &recall{pairs, vocab}, nil
}

func (*recall) Name() string  { return "associative recall" }
func (a *recall) Vocab() int  { return a.vocab }
func (a *recall) Length() int { return 2*a.pairs + 1 }

func (a *recall) Fill(r *rand.Rand, ids, targets []int) {
	keys := a.vocab / 2
	for i, key := range r.Perm(keys)[:a.pairs] {
		ids[2*i], ids[2*i+1] = key, keys+r.IntN(a.vocab-keys)
	}
	for i := range targets {
		targets[i] = Ignore
	}
	asked, last := r.IntN(a.pairs), 2*a.pairs
	ids[last], targets[last] = ids[2*asked], ids[2*asked+1]
}
