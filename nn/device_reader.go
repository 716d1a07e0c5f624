package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/op"
)

// onDevice makes the reader run a graph on a device. logits is nil if the reader computes none.
func (r *reader) onDevice(at op.Place, ids, logits *G.Node, state, next State) error {
	d, err := operator.NewDecoder(at, ids, logits, state.Nodes(), next.Nodes())
	if err != nil {
		return fmt.Errorf("nn: %w", err)
	}
	r.decoding = &decoding{decoder: d}
	if logits != nil {
		v := tensor.New(tensor.WithShape(logits.Shape().Clone()...), tensor.Of(tensor.Float32))
		r.out.logits, r.decoding.logits = v, v.Data().([]float32)
	}
	return nil
}

// decoder reads tokens from states to states, which it holds. operator.Decoder does so on a device, hostDecoder on the host.
type decoder interface {
	Read(tokens []int) error
	Commit()
	Zero() error // of the states of all sequences
	SetRow(row int, host []*tensor.Dense) error
	States(host []*tensor.Dense) error
	RowStates(row int, host []*tensor.Dense) error // of one sequence, to its part of host
	Logits(logits []float32) error
	Best(tokens []int, goOn bool) error
	Close() error
}

// decoding is the part of a reader that a decoder does.
type decoding struct {
	decoder
	logits  []float32
	greedy  bool  // read only the tokens of the largest logits, not the logits
	goesOn  bool  // the next read, if it chooses greedily too, reads these tokens unless the caller stops
	best    []int // these tokens; -1 if the logits are wrong
	hostOld bool  // the decoder's states were written, and those of the reader are out of date
}

func (d *decoding) read(tokens []int) error {
	if err := d.Read(tokens); err != nil || d.logits == nil {
		return err
	}
	if d.greedy {
		return d.Best(d.best, d.goesOn)
	}
	return d.Logits(d.logits)
}

func (d *decoding) commit() {
	d.Commit()
	d.hostOld = true
}

// chooseGreedily sets what later reads of a decoder return: only the tokens of the largest logits, or all logits.
func (r *reader) chooseGreedily(greedy bool) {
	if d := r.decoding; d != nil {
		d.greedy, d.best = greedy, make([]int, r.batch())
	}
}

// expectMore sets whether the caller is going to read the tokens that the next read chooses greedily. A device then goes on while the host looks at
// them.
func (r *reader) expectMore(more bool) {
	if d := r.decoding; d != nil {
		d.goesOn = more
	}
}

// chosen reports whether the last read of a decoder has chosen the tokens.
func (r *reader) chosen() bool { return r.decoding != nil && r.decoding.greedy }

// best returns the token of a row's largest logit if reads of a decoder choose greedily. If the row's logits are wrong, best copies them to the
// host, so that the caller's check of them gives the error.
func (r *reader) best(row int) (token int, ok bool, err error) {
	if !r.chosen() {
		return 0, false, nil
	}
	d := r.decoding
	if d.best[row] >= 0 {
		return d.best[row], true, nil
	}
	return 0, false, d.Logits(d.logits)
}

// zero sets the states of all sequences of the batch to zeros.
func (r *reader) zero() error {
	if r.decoding != nil {
		r.decoding.hostOld = true
		return r.decoding.Zero()
	}
	for _, v := range r.state {
		v.Zero()
	}
	return nil
}

// load sets the state of one sequence of the batch, whose tensors are in the order of r.state. nil stands for zeros.
func (r *reader) load(row int, state []*tensor.Dense) error {
	if r.decoding != nil {
		r.decoding.hostOld = true
		return r.decoding.SetRow(row, state)
	}
	for i, to := range r.state {
		n := to.Shape().TotalSize() / r.batch()
		from := tensor.New(tensor.WithShape(n), tensor.Of(to.Dtype()))
		if state != nil {
			from = state[i]
		}
		copyPart(to, row*n, from, 0, n)
	}
	return nil
}

// take sets the state of one sequence of the batch to that of a sequence of another reader of the model.
func (r *reader) take(row int, from *reader, fromRow int) error {
	if r.decoding != nil && from.decoding != nil {
		to, here := r.decoding.decoder.(*operator.Decoder)
		at, there := from.decoding.decoder.(*operator.Decoder)
		if here && there {
			r.decoding.hostOld = true
			return to.CopyRow(row, at, fromRow)
		}
	}
	if err := from.bringRow(fromRow); err != nil {
		return err
	}
	return r.load(row, from.rowState(fromRow))
}

// rowState returns the state of one sequence of the batch, in r.state's memory.
func (r *reader) rowState(row int) (state []*tensor.Dense) {
	for _, v := range r.state {
		n := v.Shape().TotalSize() / r.batch()
		var part any
		switch d := v.Data().(type) {
		case []float32:
			part = d[row*n : (row+1)*n]
		case []float64:
			part = d[row*n : (row+1)*n]
		}
		state = append(state, tensor.New(tensor.WithShape(n), tensor.WithBacking(part)))
	}
	return state
}

// bringRow brings the state of one sequence of the batch in r.state up to date.
func (r *reader) bringRow(row int) error {
	if r.decoding == nil || !r.decoding.hostOld {
		return nil
	}
	return r.decoding.RowStates(row, r.state)
}

// bringState brings r.state up to date.
func (r *reader) bringState() error {
	if r.decoding == nil || !r.decoding.hostOld {
		return nil
	}
	if err := r.decoding.States(r.state); err != nil {
		return err
	}
	r.decoding.hostOld = false
	return nil
}
