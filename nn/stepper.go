package nn

import (
	"errors"
	"fmt"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

var (
	errInUse  = errors.New("in use by another goroutine, or by the call that this call was made from")
	errClosed = errors.New("closed, or not made by its constructor")
)

// Stepper runs a language model one token at a time, in constant time and memory per token. It holds the state between steps, and a graph of
// one step where the model needs one. It uses the model's weights without copying them, so it sees every change to them.
//
// Use a Stepper to build your own generation. Generator is one that reads prompts in parallel.
//
// One goroutine may use a Stepper at a time; a second one gets an error. Several Steppers may use one model at the same time.
type Stepper struct {
	mu sync.Mutex
	r  *reader // nil once closed
}

// NewStepper returns a Stepper for a batch of sequences, at their beginning. It returns an error if a layer of the model has no
// state of fixed size.
func NewStepper(lm *LM, batch int, opts ...CallOption) (*Stepper, error) {
	if err := lm.steps(); err != nil {
		return nil, err
	}
	if batch < 1 {
		return nil, fmt.Errorf("nn: stepper: batch is %d, want at least 1", batch)
	}
	r, err := newReader(lm, batch, 1, true, opts...)
	if err != nil {
		return nil, err
	}
	return &Stepper{r: r}, nil
}

// enter locks the Stepper for a call. If it returns nil, the caller must call s.mu.Unlock.
func (s *Stepper) enter() error {
	switch {
	case s == nil:
		return errClosed
	case !s.mu.TryLock():
		return errInUse
	case s.r == nil:
		s.mu.Unlock()
		return errClosed
	}
	return nil
}

// Step reads one token for each sequence. It returns the logits of the token that follows, a row for each sequence. The rows
// belong to the caller. A token outside the vocabulary is an error. After any error the state is as it was before the call.
func (s *Stepper) Step(tokens []int) ([][]float64, error) {
	if err := s.enter(); err != nil {
		return nil, fmt.Errorf("nn: step: the stepper is %w", err)
	}
	defer s.mu.Unlock()
	batch, vocab := s.r.batch(), s.r.lm.cfg.Vocab
	if len(tokens) != batch {
		return nil, fmt.Errorf("nn: step: %d tokens, want %d, one for each sequence", len(tokens), batch)
	}
	if i := outside(tokens, vocab); i >= 0 {
		return nil, fmt.Errorf("nn: step: token %d is %d, want 0 to %d", i, tokens[i], vocab-1)
	}
	s.r.refresh()
	if err := s.r.read(tokens); err != nil {
		return nil, fmt.Errorf("nn: step: %w", err)
	}
	s.r.commit()
	rows := make([][]float64, batch)
	for i := range rows {
		rows[i] = s.r.logits(i)
	}
	return rows, nil
}

// Reset goes back to the beginning of the sequences. It waits for a call in another goroutine. It does nothing after Close.
func (s *Stepper) Reset() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r != nil {
		s.r.reset()
	}
}

// Close frees the graph, the state and the memory on a device. Calls after Close return an error, a second Close too.
func (s *Stepper) Close() error {
	if err := s.enter(); err != nil {
		return fmt.Errorf("nn: close: the stepper is %w", err)
	}
	defer s.mu.Unlock()
	r := s.r
	s.r = nil
	return r.close()
}

// outside returns the index of the first token that is not in the vocabulary, or -1.
func outside(tokens []int, vocab int) int {
	for i, id := range tokens {
		if id < 0 || id >= vocab {
			return i
		}
	}
	return -1
}

// steps returns an error if the model cannot run step by step.
func (m *LM) steps() error {
	if m == nil {
		return fmt.Errorf("nn: the model is missing, want one that NewLM returned")
	}
	if err := m.Err(); err != nil {
		return err
	}
	// A layer whose state would grow, such as attention without a window, refuses to be applied with a state.
	ids := G.NewTensor(G.NewGraph(), tensor.Int, 2, G.WithShape(1, 1), G.WithName("ids"))
	_, _, err := m.ApplyWithState(ids, nil)
	return err
}

// reader reads a fixed number of tokens of each sequence of a batch. It holds the state between one run and the next.
type reader struct {
	lm       *LM
	ids      *tensor.Dense   // (batch, length)
	state    []*tensor.Dense // before the next run: the values of the graph's input nodes, (batch, …) each. On a device made when a caller wants them there
	starts   []uint8         // (batch, length) of a reader of sequences at their beginning: where each begins; nil for others
	machine  G.VM            // nil if a decoder reads
	out      *outputs
	decoding *decoding // nil if the machine runs the graph
	wrong    error     // of the last reset
}

// outputs holds the results of a run. It is separate from the reader, since the machine references it: a reader that held both would be in a
// cycle with the machine's finalizer, which Go never collects.
type outputs struct {
	logits G.Value   // (batch, length, vocabulary), or nil if the reader computes no logits
	next   []G.Value // the state after the run, in the order of reader.state
}

// newReader returns a reader at the beginning of its sequences. Without logits, whose product is the largest of the model, a run computes only
// the state.
func newReader(lm *LM, batch, length int, logits bool, opts ...CallOption) (*reader, error) {
	if err := lm.holds(batch, length, logits); err != nil {
		return nil, err
	}
	r := &reader{lm: lm, ids: tensor.New(tensor.WithShape(batch, length), tensor.Of(tensor.Int)), out: new(outputs)}
	g := G.NewGraph()
	ids, at := G.NodeFromAny(g, r.ids, G.WithName("ids")), lm.Params().Place()
	var state State
	if at.OnHost() {
		var err error
		if state, err = lm.stack.ZeroState(g, batch); err != nil {
			return nil, err
		}
		for _, n := range state.Nodes() {
			r.state = append(r.state, n.Value().(*tensor.Dense))
		}
	} else {
		state = lm.stack.zerosOn(at, g, batch)
	}
	if length == 1 && logits && len(opts) == 0 && r.onHost() {
		return r, nil
	}
	out, next, err := lm.read(ids, state, logits, opts)
	if err != nil {
		return nil, err
	}
	if !at.OnHost() {
		if err := r.onDevice(at, ids, nil, out, state, next); err != nil {
			return nil, err
		}
		return r, nil
	}
	if logits {
		G.Read(out, &r.out.logits)
	}
	after := next.Nodes()
	r.out.next = make([]G.Value, len(after))
	for i, n := range after {
		G.Read(n, &r.out.next[i])
	}
	if err := op.CheckGraph(g); err != nil {
		return nil, err
	}
	op.ReuseResults(g) // gorgonia.Read copies results before the next run
	r.machine = G.NewTapeMachine(g)
	return r, nil
}

func (r *reader) batch() int  { return r.ids.Shape()[0] }
func (r *reader) length() int { return r.ids.Shape()[1] }

// read reads tokens (batch, length), all of them in the vocabulary, and computes the logits and the next state. The reader's state does not
// change until commit.
func (r *reader) read(tokens []int) error {
	if r.wrong != nil {
		if r.reset(); r.wrong != nil {
			return r.wrong
		}
	}
	if r.decoding != nil {
		return r.decoding.read(tokens)
	}
	copy(r.ids.Data().([]int), tokens)
	r.machine.Reset()
	return r.machine.RunAll()
}

// commit makes the state that the last read computed the reader's state. Call it once after a read that returned nil.
func (r *reader) commit() {
	if r.decoding != nil {
		r.decoding.commit()
		return
	}
	for i, v := range r.out.next {
		copyPart(r.state[i], 0, v.(*tensor.Dense), 0, r.state[i].Shape().TotalSize())
	}
}

// logits returns a copy of a row of the logits of the last read.
func (r *reader) logits(row int) []float64 {
	vocab := r.lm.cfg.Vocab
	logits := make([]float64, vocab)
	switch d := r.out.logits.Data().(type) {
	case []float32:
		for i := range logits {
			logits[i] = float64(d[row*vocab+i])
		}
	case []float64:
		copy(logits, d[row*vocab:])
	}
	return logits
}

// reset sets the state to zeros. If that fails, the next read tries again, and returns the error.
func (r *reader) reset() { r.wrong = r.zero() }

// close frees the graph, the state and the memory on a device. The reader cannot be used afterwards.
func (r *reader) close() error {
	machine, decoding := r.machine, r.decoding
	*r = reader{}
	if decoding != nil {
		return decoding.Close()
	}
	return machine.Close()
}
