package nn

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// Sequence is a sequence of tokens as a Generator sees it: the model's state after the tokens that it has read, and the tokens that
// it has yet to read. Its size depends on the model, not on the number of tokens.
//
// A sequence continues where the last call of Generator.Continue left it: in the same process or, with Save and LoadSequence, in
// another one, and with any Generator of the same model. A Sequence is not safe for concurrent use; two Generators that continue it
// at the same time get an error.
type Sequence struct {
	pending []int                    // tokens that state has not read; a step reads the last one and gives the next token
	state   map[string]*tensor.Dense // by the names of slots; nil at the beginning, and while kept has the state
	kept    *keptState               // the state, on the device where a Batch has read it; nil if it is on the host
	seen    tokenSet                 // read or pending, for the repetition penalty
	chosen  map[int]int              // how often each token was chosen, for the presence and frequency penalties; nil for none
	random  rand.PCG
	using   sync.Mutex // held by the Generator that continues the sequence
	once    bool       // the call that made the sequence is the only one that reads it
}

// NewSequence returns a sequence that begins with a prompt. The seed is for the random choices of its tokens. Sequences with
// equal prompts and seeds get equal tokens, alone or in a batch. On a GPU the last bits of the logits depend on the number of sequences in the
// batch and on the prompts that are read together, so a choice between two tokens of almost the same probability can differ.
func NewSequence(seed uint64, prompt ...int) *Sequence {
	s := new(Sequence)
	s.Reseed(seed)
	s.Append(prompt...)
	return s
}

// Append adds tokens that the model did not choose, such as what a user says next. Each, the function that Generator.Continue calls,
// may append too. Tokens outside the vocabulary are an error when a Generator reads them.
func (s *Sequence) Append(tokens ...int) {
	s.pending = append(s.pending, tokens...)
	for _, token := range tokens {
		if token >= 0 && token < maxVocab {
			s.seen.add(token)
		}
	}
}

// Pending returns the tokens that the state has not read. After Generator.Continue it is the last token that was chosen. After an
// error it may be more: what is left of a prompt, or the tokens since the last state that could be copied from a device.
func (s *Sequence) Pending() []int { return slices.Clone(s.pending) }

// Clone returns a copy, to continue in more than one way. The copy would get the same tokens; Reseed changes that.
func (s *Sequence) Clone() *Sequence {
	return &Sequence{pending: slices.Clone(s.pending), state: s.cloneState(), kept: s.kept.share(), seen: slices.Clone(s.seen), chosen: maps.Clone(s.chosen), random: s.random}
}

// Skip takes the first n pending tokens as read: the state becomes a copy of that of another sequence, which has read the same tokens before. So a
// beginning that many prompts share is read once. It is an error if n is not 0 to the number of pending tokens, or if from is missing or in use.
func (s *Sequence) Skip(n int, from *Sequence) error {
	switch {
	case s == nil:
		return fmt.Errorf("nn: skip: the sequence is missing, want one that NewSequence returned")
	case n < 0 || n > len(s.pending):
		return fmt.Errorf("nn: skip: n is %d, want 0 to %d, the number of pending tokens", n, len(s.pending))
	case from == nil || from == s:
		return fmt.Errorf("nn: skip: from is missing, want another sequence")
	case !s.using.TryLock():
		return fmt.Errorf("nn: skip: the sequence is %w", errInUse)
	}
	defer s.using.Unlock()
	if !from.using.TryLock() {
		return fmt.Errorf("nn: skip: from is %w", errInUse)
	}
	defer from.using.Unlock()
	s.forget()
	s.pending, s.state, s.kept = slices.Clone(s.pending[n:]), from.cloneState(), from.kept.share()
	return nil
}

// forget goes back to a state of zeros.
func (s *Sequence) forget() {
	s.kept.release()
	s.state, s.kept = nil, nil
}

// bring brings a state on a device to the host.
func (s *Sequence) bring() error {
	if s.kept == nil {
		return nil
	}
	state, err := s.kept.toHost()
	if err == nil {
		s.forget()
		s.state = state
	}
	return err
}

func (s *Sequence) cloneState() map[string]*tensor.Dense {
	state := maps.Clone(s.state)
	for name, v := range state {
		state[name] = v.Clone().(*tensor.Dense)
	}
	return state
}

// StateBytes returns the memory of the model's state in the sequence, in bytes. It is 0 at the beginning, and later the same for every sequence
// of a model that is in the same place.
func (s *Sequence) StateBytes() (bytes int) {
	if s.kept != nil {
		return s.kept.states.Bytes()
	}
	for _, v := range s.state {
		bytes += int(v.MemSize())
	}
	return bytes
}

// Reseed sets the seed of all later random choices.
func (s *Sequence) Reseed(seed uint64) { s.random.Seed(seed, 0) }

// fits returns an error if a model cannot continue the sequence.
func (s *Sequence) fits(lm *LM) error {
	if len(s.pending) == 0 {
		return fmt.Errorf("has no token to read, want at least one")
	}
	if i := outside(s.pending, lm.cfg.Vocab); i >= 0 {
		return fmt.Errorf("has token %d at %d, want 0 to %d", s.pending[i], i, lm.cfg.Vocab-1)
	}
	if s.kept != nil && s.kept.lm == lm {
		return nil
	}
	if err := s.bring(); err != nil {
		return fmt.Errorf("has a state on another device: %w", err)
	}
	if s.state == nil {
		return nil
	}
	want, dt := lm.stack.slots(), lm.stack.opts.Dtype
	for _, w := range want {
		v := s.state[w.Name]
		if v == nil {
			return fmt.Errorf("has no state %s, which the model has", w.Name)
		}
		if !v.Shape().Eq(w.Shape) || v.Dtype() != dt {
			return fmt.Errorf("has state %s of %v %v, want %v %v as the model", w.Name, v.Dtype(), v.Shape(), dt, w.Shape)
		}
	}
	if len(s.state) > len(want) {
		return fmt.Errorf("has a state of %d tensors, want %d as the model", len(s.state), len(want))
	}
	return nil
}

// slots returns the slots of the states of all layers, in the order of State.Nodes.
func (s *MambaStack) slots() (slots []layer.Slot) {
	for i, l := range s.layers {
		for _, slot := range l.Slots() {
			slots = append(slots, layer.Slot{Name: fmt.Sprintf("layers.%d.%s", i, slot.Name), Shape: slot.Shape})
		}
	}
	return slots
}

// load copies the sequence's state into a row of a reader.
func (s *Sequence) load(r *reader, row int) error {
	if s.kept != nil {
		return r.loadKept(row, s.kept)
	}
	return r.load(row, s.tensors(r.lm))
}

// tensors returns the sequence's state in the order of the model's slots, or nil at the beginning.
func (s *Sequence) tensors(lm *LM) (state []*tensor.Dense) {
	if s.state == nil {
		return nil
	}
	for _, w := range lm.stack.slots() {
		state = append(state, s.state[w.Name])
	}
	return state
}

// take appends a token that the model chose.
func (s *Sequence) take(c choice) {
	s.random = c.random
	s.Append(c.token)
	if s.chosen == nil {
		s.chosen = map[int]int{}
	}
	s.chosen[c.token]++
}

// store copies the state of a reader's row, which has read the first pending tokens, into the sequence. The row's state in r.state
// is up to date.
func (s *Sequence) store(r *reader, row, read int) {
	if s.kept != nil || s.state == nil {
		s.forget()
		s.state = map[string]*tensor.Dense{}
	}
	for i, w := range r.lm.stack.slots() {
		if s.state[w.Name] == nil {
			s.state[w.Name] = tensor.New(tensor.WithShape(w.Shape...), tensor.Of(r.state[i].Dtype()))
		}
		n := w.Shape.TotalSize()
		copyPart(s.state[w.Name], 0, r.state[i], row*n, n)
	}
	s.read(read)
}

// read takes the first n pending tokens as read.
func (s *Sequence) read(n int) {
	if s.pending = s.pending[n:]; len(s.pending) <= n {
		s.pending = slices.Clip(slices.Clone(s.pending)) // lets go of a long prompt
	}
}

func copyPart(to *tensor.Dense, i int, from *tensor.Dense, j, n int) {
	switch d := to.Data().(type) {
	case []float32:
		copy(d[i:i+n], from.Data().([]float32)[j:j+n])
	case []float64:
		copy(d[i:i+n], from.Data().([]float64)[j:j+n])
	}
}
