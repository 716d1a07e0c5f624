package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// Stepper runs a language model one token at a time, in constant time and memory per token: it holds a graph of one step
// and the state between steps. It uses the model's weights, and so sees every change to them. It is what to build one's
// own generation on; Generator is one, with prompts read in parallel.
type Stepper struct{ *reader }

// NewStepper returns a Stepper for a batch of sequences, at their beginning.
func NewStepper(lm *LM, batch int, opts ...CallOption) (*Stepper, error) {
	if batch < 1 {
		return nil, fmt.Errorf("nn: stepper: batch is %d, want at least 1", batch)
	}
	r, err := newReader(lm, batch, 1, true, opts...)
	if err != nil {
		return nil, err
	}
	return &Stepper{r}, nil
}

// Step takes one token for each sequence and returns the logits of what follows, a row for each sequence. A token outside
// the vocabulary is an error, and the state stays as it was.
func (s *Stepper) Step(tokens []int) ([][]float64, error) {
	batch, vocab := s.batch(), s.lm.cfg.Vocab
	if len(tokens) != batch {
		return nil, fmt.Errorf("nn: step: %d tokens, want %d, one for each sequence", len(tokens), batch)
	}
	if i := outside(tokens, vocab); i >= 0 {
		return nil, fmt.Errorf("nn: step: token %d is %d, want 0 to %d", i, tokens[i], vocab-1)
	}
	if err := s.read(tokens); err != nil {
		return nil, fmt.Errorf("nn: step: %w", err)
	}
	rows := make([][]float64, batch)
	for i := range rows {
		rows[i] = make([]float64, vocab)
		switch d := s.logits.Data().(type) {
		case []float32:
			widen(rows[i], d[i*vocab:(i+1)*vocab])
		case []float64:
			copy(rows[i], d[i*vocab:])
		}
	}
	return rows, nil
}

// Reset goes back to the beginning of the sequences.
func (s *Stepper) Reset() { s.reset() }

// Close frees what the Stepper holds.
func (s *Stepper) Close() error { return s.close() }

// outside returns the index of the first token that is not in the vocabulary, or -1.
func outside(tokens []int, vocab int) int {
	for i, id := range tokens {
		if id < 0 || id >= vocab {
			return i
		}
	}
	return -1
}

func widen(to []float64, from []float32) {
	for i, v := range from {
		to[i] = float64(v)
	}
}

// reader is a graph that reads a fixed number of tokens of each sequence of a batch, and carries the state from one run to
// the next.
type reader struct {
	lm      *LM
	machine G.VM
	ids     *tensor.Dense   // (batch, length)
	logits  G.Value         // (batch, length, vocabulary), where they are asked for
	state   []*tensor.Dense // the values of the graph's input nodes, (batch, …) each
	next    []G.Value       // the state after the last run
	device  *deviceReader   // of a model on a device, which has no machine
}

// newReader returns a reader at the beginning of its sequences. Without logits, which take a product with the largest
// matrix of the model, only the state moves on.
func newReader(lm *LM, batch, length int, logits bool, opts ...CallOption) (*reader, error) {
	if err := lm.Err(); err != nil {
		return nil, err
	}
	if lm.opts.Device != nil {
		return newDeviceReader(lm, batch, length, opts)
	}
	r := &reader{lm: lm, ids: tensor.New(tensor.WithShape(batch, length), tensor.Of(tensor.Int))}
	g := G.NewGraph()
	ids, state := G.NodeFromAny(g, r.ids, G.WithName("ids")), lm.stack.ZeroState(g, batch)
	var next State
	if logits {
		out, after, err := lm.ApplyWithState(ids, state, opts...)
		if err != nil {
			return nil, err
		}
		G.Read(out, &r.logits)
		next = after
	} else {
		x, err := lm.embed.Apply(ids)
		if err != nil {
			return nil, err
		}
		if _, next, err = lm.stack.ApplyWithState(x, state, opts...); err != nil {
			return nil, err
		}
	}
	after := next.Nodes()
	r.next = make([]G.Value, len(after))
	for i, n := range state.Nodes() {
		r.state = append(r.state, n.Value().(*tensor.Dense))
		G.Read(after[i], &r.next[i])
	}
	op.ReuseResults(g) // they are copied before the next run
	r.machine = G.NewTapeMachine(g)
	return r, nil
}

func (r *reader) batch() int  { return r.ids.Shape()[0] }
func (r *reader) length() int { return r.ids.Shape()[1] }

// read reads tokens (batch, length), all of the vocabulary. After an error the state is as it was.
func (r *reader) read(tokens []int) error {
	if r.device != nil {
		return r.device.read(r, tokens)
	}
	copy(r.ids.Data().([]int), tokens)
	r.machine.Reset()
	if err := r.machine.RunAll(); err != nil {
		return err
	}
	for i, v := range r.next {
		if err := tensor.Copy(r.state[i], v.(tensor.Tensor)); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) reset() {
	for _, v := range r.state {
		v.Zero()
	}
	r.stateWritten()
}

func (r *reader) close() error {
	if r.device != nil {
		return r.device.decoder.Close()
	}
	return r.machine.Close()
}
