package task

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomamba/mamba/internal/size"
)

// Task draws sequences that test one ability of a model.
type Task interface {
	Name() string
	Vocab() int  // tokens are 0 to Vocab-1
	Length() int // tokens of a sequence

	// Fill writes one sequence and its targets, into slices of Length numbers. A target is the token to predict at its position, or
	// nn.Ignore. It panics if a slice is shorter.
	Fill(r *rand.Rand, ids, targets []int)
}

// Stream draws batches of a task without end. A sequence depends only on the seed and on its number in the stream, not on the sizes of
// the batches.
type Stream struct {
	task Task
	seed uint64
	next uint64
}

// NewStream returns a stream at its first sequence. Different seeds give independent sequences: train with one seed, and evaluate with
// another.
func NewStream(t Task, seed uint64) *Stream { return &Stream{task: t, seed: seed} }

// Next returns the next batch sequences, (batch, length). It is an error if NewStream did not make the stream, if its task is nil, if
// batch is below 1, or if the machine's memory does not hold the batch.
func (s *Stream) Next(batch int) (Batch, error) {
	if s == nil || s.task == nil {
		return Batch{}, fmt.Errorf("task: stream: the stream or its task is missing, want NewStream with a task")
	}
	length := s.task.Length()
	if err := checkBatch("stream", batch, length); err != nil {
		return Batch{}, err
	}
	b := Batch{IDs: make([]int, batch*length), Targets: make([]int, batch*length)}
	for i := range batch {
		row := func(of []int) []int { return of[i*length : (i+1)*length] }
		s.task.Fill(rand.New(rand.NewPCG(s.seed, s.next)), row(b.IDs), row(b.Targets))
		s.next++
	}
	return b, nil
}

// copying is the task of NewSelectiveCopying and NewCopying: memory tokens among noise, then as many marks. At each mark one of the
// tokens is to be predicted, in order. Noise is token 0, the mark is the last token of the vocabulary, and the tokens between carry data.
type copying struct {
	name                  string
	length, memory, vocab int
	places                func(r *rand.Rand, i, left int) bool // whether place i gets a token, if left tokens have no place yet
}

// NewSelectiveCopying returns the selective copying task of the Mamba paper (section 4.1.1). A sequence begins with length
// places: memory of them, chosen at random, have tokens to remember, and the others have noise. Then come memory marks, at which
// the tokens are to be repeated in order. So a sequence has length + memory tokens. The paper has length 4096, memory 16 and
// vocab 16.
//
// It is an error if length has no place for each token, if fewer than two tokens carry data, or if a sequence does not fit into
// memory.
func NewSelectiveCopying(length, memory, vocab int) (Task, error) {
	// Each place is taken with the probability that makes all choices of places equally likely.
	return newCopying("selective copying", length, memory, vocab, func(r *rand.Rand, i, left int) bool { return r.IntN(length-i) < left })
}

// NewCopying returns the task of NewSelectiveCopying with the tokens at fixed places: one every length/memory places. The places
// are known in advance, so a time-invariant model can learn it.
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
	if err := size.Of(16, length).Plus(size.Of(16, memory)).Fits("a sequence"); err != nil {
		return nil, fmt.Errorf("task: %s: length is %d, memory is %d: %w", name, length, memory, err)
	}
	if err := size.Axis(vocab); err != nil {
		return nil, fmt.Errorf("task: %s: vocab %w", name, err)
	}
	return &copying{name, length, memory, vocab, places}, nil
}

func (c *copying) Name() string { return c.name }
func (c *copying) Vocab() int   { return c.vocab }
func (c *copying) Length() int  { return c.length + c.memory }

func (c *copying) Fill(r *rand.Rand, ids, targets []int) {
	said := c.length // the position of the next mark
	for i := range c.length {
		ids[i], targets[i] = 0, ignore
		if c.places(r, i, c.Length()-said) {
			ids[i] = 1 + r.IntN(c.vocab-2)
			ids[said], targets[said] = c.vocab-1, ids[i]
			said++
		}
	}
}

// inductionHeads is the task of NewInductionHeads.
type inductionHeads struct{ length, vocab int }

// NewInductionHeads returns the induction heads task of the Mamba paper (section 4.1.2). A sequence has random tokens. The last
// token of the vocabulary is special: it stands once at a random place, and again at the end of the sequence. Only at the end is
// there a target: the token that followed the special token the first time. The paper trains at length 256 with vocab 16.
//
// It is an error if length is below 3, if vocab is below 3, or if a sequence does not fit into memory.
func NewInductionHeads(length, vocab int) (Task, error) {
	switch {
	case length < 3:
		return nil, fmt.Errorf("task: induction heads: length is %d, want at least 3: the special token, what follows, and the special token", length)
	case vocab < 3:
		return nil, fmt.Errorf("task: induction heads: vocab is %d, want at least 3: the special token and two others", vocab)
	}
	if err := size.Of(16, length).Fits("a sequence"); err != nil {
		return nil, fmt.Errorf("task: induction heads: length is %d: %w", length, err)
	}
	if err := size.Axis(vocab); err != nil {
		return nil, fmt.Errorf("task: induction heads: vocab %w", err)
	}
	return &inductionHeads{length, vocab}, nil
}

func (*inductionHeads) Name() string  { return "induction heads" }
func (h *inductionHeads) Vocab() int  { return h.vocab }
func (h *inductionHeads) Length() int { return h.length }

func (h *inductionHeads) Fill(r *rand.Rand, ids, targets []int) {
	special, last := h.vocab-1, h.length-1
	for i := range h.length {
		ids[i], targets[i] = r.IntN(special), ignore
	}
	at := r.IntN(last - 1)
	ids[at], ids[last] = special, special
	targets[last] = ids[at+1]
}

// recall is the task of NewAssociativeRecall.
type recall struct{ pairs, vocab int }

// NewAssociativeRecall returns the task of Ba et al., "Using Fast Weights to Attend to the Recent Past", section 4.1 (also Fu et
// al., H3, section 3.1). A sequence has pairs of a key and its value. The last token repeats one of the keys, and its value is
// the target. No key is in two pairs. Keys are the lower half of the vocabulary, values the upper half. A sequence has 2·pairs +
// 1 tokens.
//
// It is an error if there are fewer keys than pairs, or if a sequence or the list of keys does not fit into memory.
func NewAssociativeRecall(pairs, vocab int) (Task, error) {
	if err := size.Axis(pairs); err != nil {
		return nil, fmt.Errorf("task: associative recall: pairs %w", err)
	}
	if vocab > 0 {
		if err := size.Of(8, vocab).Fits("its keys and values"); err != nil {
			return nil, fmt.Errorf("task: associative recall: vocab is %d: %w", vocab, err)
		}
	}
	switch {
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
		targets[i] = ignore
	}
	asked, last := r.IntN(a.pairs), 2*a.pairs
	ids[last], targets[last] = ids[2*asked], ids[2*asked+1]
}
