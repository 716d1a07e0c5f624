package task

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomamba/mamba/internal/size"
)

// ignore is the target of a position at which nothing is to be predicted, for example after the end of the text. It is the value
// of nn.Ignore.
const ignore = -100

// Batch holds windows of text for a language model. Both slices have the order (batch, length). Each target is the byte that follows
// its id in the text.
type Batch struct {
	IDs     []int
	Targets []int
}

// Count returns the number of targets that are to be predicted.
func (b Batch) Count() int {
	n := 0
	for _, target := range b.Targets {
		if target != ignore {
			n++
		}
	}
	return n
}

// fill copies text[at:] and its targets into one row, as far as they reach.
func (b Batch) fill(row, length int, text []byte, at int) {
	for k := 0; k < length && at+k+1 < len(text); k++ {
		b.IDs[row*length+k] = int(text[at+k])
		b.Targets[row*length+k] = int(text[at+k+1])
	}
}

// Sampler draws random windows of a text, for training. The same text, sizes and seed give the same windows. NewSampler makes one.
type Sampler struct {
	text          []byte
	batch, length int
	random        *rand.Rand
}

// NewSampler returns a sampler of batches with batch windows of length bytes. It is an error if the text does not have a window and the
// byte after it, or if the machine's memory does not hold a batch.
func NewSampler(text []byte, batch, length int, seed int64) (*Sampler, error) {
	if err := checkBatch("sampler", batch, length); err != nil {
		return nil, err
	}
	if len(text) <= length {
		return nil, fmt.Errorf("task: sampler: text has %d bytes, should have at least %d for windows of length %d",
			len(text), length+1, length)
	}
	return &Sampler{text: text, batch: batch, length: length, random: rand.New(rand.NewPCG(uint64(seed), 0))}, nil
}

// Next returns the next batch. Each window of the text is equally likely, in each row. It is an error if NewSampler did not make the
// sampler.
func (s *Sampler) Next() (Batch, error) {
	if s == nil || s.random == nil {
		return Batch{}, fmt.Errorf("task: sampler: the sampler is missing, want one that NewSampler returned")
	}
	b := newBatch(s.batch, s.length)
	for row := range s.batch {
		b.fill(row, s.length, s.text, s.random.IntN(len(s.text)-s.length))
	}
	return b, nil
}

// Windows cuts a text into consecutive windows of length bytes, in batches of batch windows, for evaluation. Every byte but the first
// is a target exactly once. Where the last window or the last batch is not full, targets are nn.Ignore and ids are zero.
//
// If limit is above zero, Windows returns at most that many windows, spread evenly over the text. It is an error if the text has fewer
// than two bytes, or if the machine's memory does not hold a batch.
func Windows(text []byte, batch, length, limit int) ([]Batch, error) {
	if err := checkBatch("windows", batch, length); err != nil {
		return nil, err
	}
	if len(text) < 2 {
		return nil, fmt.Errorf("task: windows: text has %d bytes, should have at least 2", len(text))
	}
	all := (len(text)-1-1)/length + 1
	windows := all
	if limit > 0 {
		windows = min(all, limit)
	}
	batches := make([]Batch, (windows-1)/batch+1)
	for i := range batches {
		batches[i] = newBatch(batch, length)
	}
	for w := range windows {
		start := int(int64(w) * int64(all) / int64(windows))
		batches[w/batch].fill(w%batch, length, text, start*length)
	}
	return batches, nil
}

func newBatch(batch, length int) Batch {
	b := Batch{IDs: make([]int, batch*length), Targets: make([]int, batch*length)}
	for i := range b.Targets {
		b.Targets[i] = ignore
	}
	return b
}

func checkBatch(thing string, batch, length int) error {
	if batch < 1 {
		return fmt.Errorf("task: %s: batch is %d, should be at least 1", thing, batch)
	}
	if length < 1 {
		return fmt.Errorf("task: %s: length is %d, should be at least 1", thing, length)
	}
	if err := size.Of(16, batch, length).Fits("a batch"); err != nil {
		return fmt.Errorf("task: %s: batch is %d, length is %d: %w", thing, batch, length, err)
	}
	return nil
}
