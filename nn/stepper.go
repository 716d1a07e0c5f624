package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// Stepper runs a language model one token at a time, in constant time and memory per token: it holds a graph of one step
// and the state between steps. It uses the model's weights, and so sees every change to them.
type Stepper struct {
	lm      *LM
	machine G.VM
	ids     *tensor.Dense
	logits  G.Value
	state   []*tensor.Dense // the values of the graph's input nodes
	next    []G.Value       // the state after the last step
}

// NewStepper returns a Stepper for a batch of sequences, at their beginning.
func NewStepper(lm *LM, batch int, opts ...CallOption) (*Stepper, error) {
	if batch < 1 {
		return nil, fmt.Errorf("nn: stepper: batch is %d, want at least 1", batch)
	}
	if err := lm.Err(); err != nil {
		return nil, err
	}
	s := &Stepper{lm: lm, ids: tensor.New(tensor.WithShape(batch, 1), tensor.Of(tensor.Int))}
	g := G.NewGraph()
	state := lm.stack.ZeroState(g, batch)
	logits, next, err := lm.ApplyWithState(G.NodeFromAny(g, s.ids, G.WithName("ids")), state, opts...)
	if err != nil {
		return nil, err
	}
	G.Read(logits, &s.logits)
	after := next.Nodes()
	s.next = make([]G.Value, len(after))
	for i, n := range state.Nodes() {
		s.state = append(s.state, n.Value().(*tensor.Dense))
		G.Read(after[i], &s.next[i])
	}
	op.ReuseResults(g) // they are copied, or handed out as a copy, before the next step
	s.machine = G.NewTapeMachine(g)
	return s, nil
}

// Step takes one token for each sequence and returns the logits of what follows, a row for each sequence. A token outside
// the vocabulary is an error, and the state stays as it was.
func (s *Stepper) Step(tokens []int) ([][]float64, error) {
	batch, vocab := s.ids.Shape()[0], s.lm.cfg.Vocab
	if len(tokens) != batch {
		return nil, fmt.Errorf("nn: step: %d tokens, want %d, one for each sequence", len(tokens), batch)
	}
	for i, id := range tokens {
		if id < 0 || id >= vocab {
			return nil, fmt.Errorf("nn: step: token %d is %d, want 0 to %d", i, id, vocab-1)
		}
	}
	copy(s.ids.Data().([]int), tokens)
	s.machine.Reset()
	if err := s.machine.RunAll(); err != nil {
		return nil, fmt.Errorf("nn: step: %w", err)
	}
	for i, v := range s.next {
		if err := tensor.Copy(s.state[i], v.(tensor.Tensor)); err != nil {
			return nil, fmt.Errorf("nn: step: %w", err)
		}
	}
	rows := make([][]float64, batch)
	for i := range rows {
		rows[i] = make([]float64, vocab)
		switch d := s.logits.Data().(type) {
		case []float32:
			for j, v := range d[i*vocab : (i+1)*vocab] {
				rows[i][j] = float64(v)
			}
		case []float64:
			copy(rows[i], d[i*vocab:])
		}
	}
	return rows, nil
}

// Reset goes back to the beginning of the sequences.
func (s *Stepper) Reset() {
	for _, v := range s.state {
		v.Zero()
	}
}

// Close frees what the Stepper holds.
func (s *Stepper) Close() error { return s.machine.Close() }
