package task

import (
	"fmt"
	"math/rand/v2"
)

// Task draws random sequences that test one ability of a model.
type Task interface {
	Name() string
	Vocab() int // tokens are 0 to Vocab-1
	Length() int
	// Fill writes a sequence of Length tokens into ids. It writes the token to predict at each position into targets, or Ignore.
	Fill(r *rand.Rand, ids, targets []int)
}

// Stream draws batches of a task without end. A seed and the number of a sequence determine the sequence, whatever the size of the batches.
type Stream struct {
	task Task
	seed uint64
	next uint64
}

// NewStream returns a stream at its first sequence. The sequences of different seeds are independent: train with one seed, and evaluate with
// another.
func NewStream(t Task, seed uint64) *Stream { return &Stream{task: t, seed: seed} }

// Next returns the next batch sequences.
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

// copying is the task of NewSelectiveCopying and of NewCopying. Noise is token 0, the mark is the last token of the vocabulary, and the tokens
// between are data.
type copying struct {
	name                  string
	length, memory, vocab int
	places                func(r *rand.Rand, i, left int) bool // reports whether position i gets one of the left tokens that have none
}

// NewSelectiveCopying returns the selective copying task of the Mamba paper (section 4.1.1). A sequence has memory data tokens at random
// positions among noise, length tokens in all, and then memory marks. At the marks, the data tokens are to be predicted in their order. So
// Length() is length + memory. The paper has length 4096, memory 16 and vocab 16.
//
// It is an error if length is less than memory, memory less than 1, or vocab less than 4: noise, the mark and two data tokens.
func NewSelectiveCopying(length, memory, vocab int) (Task, error) {
	// With these probabilities, all choices of positions are equally likely.
	return newCopying("selective copying", length, memory, vocab, func(r *rand.Rand, i, left int) bool { return r.IntN(length-i) < left })
}

// NewCopying returns the same task with the data tokens at fixed positions, one every length/memory positions. A time-invariant model can
// learn it, since the positions are known.
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
	said := c.length // position of the next target
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

// NewInductionHeads returns the induction heads task of the Mamba paper (section 4.1.2). A sequence has random tokens. The special token, the
// last of the vocabulary, occurs once among them, and again at the end of the sequence. There, and only there, the token that followed it
// the first time is to be predicted. The paper trains at length 256 with vocab 16.
//
// It is an error if length is less than 3, or vocab less than 3.
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

// NewAssociativeRecall returns a task of pairs of a key and a value. After the pairs comes one of the keys, and its value is to be predicted.
// No key has two pairs. Keys are the lower half of the vocabulary, values the upper half. A sequence has 2·pairs + 1 tokens. (Ba et al.,
// "Using Fast Weights to Attend to the Recent Past", section 4.1; Fu et al., H3, section 3.1.)
//
// It is an error if pairs is less than 1, or if there are fewer keys than pairs.
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
