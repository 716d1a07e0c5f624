package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// newBeginningReader returns a reader on a device for sequences at their beginning, of at most length tokens each. It computes no logits.
func newBeginningReader(lm *LM, batch, length int) (*reader, error) {
	if err := lm.holds(batch, length, false); err != nil {
		return nil, err
	}
	r := &reader{lm: lm, ids: tensor.New(tensor.WithShape(batch, length), tensor.Of(tensor.Int)), out: new(outputs), starts: make([]uint8, batch*length)}
	g, at := G.NewGraph(), lm.Params().Place()
	ids, start := G.NodeFromAny(g, r.ids, G.WithName("ids")), G.NewTensor(g, tensor.Int, 2, G.WithShape(batch, length), G.WithName("start"))
	state := lm.stack.zerosOn(at, g, batch)
	_, next, err := lm.read(ids, state, false, []CallOption{WithStart(start)})
	if err == nil {
		err = r.onDevice(at, ids, start, nil, state, next)
	}
	return r, err
}

// zerosOn returns a state of zeros on a device, nodes that are inputs of a graph.
func (s *MambaStack) zerosOn(at op.Place, g *G.ExprGraph, batch int) (state State) {
	for i, l := range s.layers {
		var nodes layer.State
		for _, slot := range l.Slots() {
			shape := append(tensor.Shape{batch}, slot.Shape...)
			nodes = append(nodes, G.NodeFromAny(g, at.Zeros(shape), G.WithName(fmt.Sprintf("layers.%d.%s on a device", i, slot.Name))))
		}
		state = append(state, nodes)
	}
	return state
}

// onDevice makes the reader run a graph on a device. logits is nil if the reader computes none, and start if all of its sequences go on from the state.
func (r *reader) onDevice(at op.Place, ids, start, logits *G.Node, state, next State) error {
	d, err := operator.NewDecoder(at, ids, start, logits, state.Nodes(), next.Nodes())
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

// take sets the states of rows sequences of the batch, from row on, to those of sequences of another reader of the model.
func (r *reader) take(row int, from *reader, fromRow, rows int) error {
	if to, at := r.onPlace(), from.onPlace(); to != nil && at != nil {
		r.decoding.hostOld = true
		return to.CopyRows(row, at, fromRow, rows)
	}
	for i := range rows {
		if err := from.bringRow(fromRow + i); err != nil {
			return err
		}
		if err := r.load(row+i, from.rowState(fromRow+i)); err != nil {
			return err
		}
	}
	return nil
}

// onPlace returns the reader's decoder on a device, or nil.
func (r *reader) onPlace() *operator.Decoder {
	if r.decoding == nil {
		return nil
	}
	d, _ := r.decoding.decoder.(*operator.Decoder)
	return d
}

// begin makes the next run begin with sequences where the reader's starts say.
func (r *reader) begin() error {
	r.decoding.hostOld = true
	return r.onPlace().Begin(r.starts)
}

// keptState is the state of a sequence in the memory of a model's device.
type keptState struct {
	lm     *LM
	states *operator.KeptStates
}

// keep returns a copy of a sequence's state.
func (r *reader) keep(row int) (*keptState, error) {
	states, err := r.onPlace().KeepRow(row)
	return &keptState{r.lm, states}, err
}

// loadKept sets the state of one sequence of the batch. The model is that of the reader.
func (r *reader) loadKept(row int, k *keptState) error {
	r.decoding.hostOld = true
	return r.onPlace().SetKept(row, k.states)
}

func (k *keptState) share() *keptState {
	if k == nil {
		return nil
	}
	return &keptState{k.lm, k.states.Share()}
}

func (k *keptState) release() {
	if k != nil {
		k.states.Release()
	}
}

// toHost returns the state by the names of slots.
func (k *keptState) toHost() (map[string]*tensor.Dense, error) {
	state, inOrder := map[string]*tensor.Dense{}, []*tensor.Dense{}
	for _, w := range k.lm.stack.slots() {
		v := tensor.New(tensor.WithShape(w.Shape...), tensor.Of(tensor.Float32))
		state[w.Name], inOrder = v, append(inOrder, v)
	}
	return state, k.states.CopyTo(inOrder)
}

// hostState returns the states of the batch on the host.
func (r *reader) hostState() []*tensor.Dense {
	if r.state == nil {
		for _, w := range r.lm.stack.slots() {
			r.state = append(r.state, tensor.New(tensor.WithShape(append(tensor.Shape{r.batch()}, w.Shape...)...), tensor.Of(tensor.Float32)))
		}
	}
	return r.state
}

// rowState returns the state of one sequence of the batch, in r.state's memory.
func (r *reader) rowState(row int) (state []*tensor.Dense) {
	for _, v := range r.hostState() {
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
	return r.decoding.RowStates(row, r.hostState())
}

// bringState brings r.state up to date.
func (r *reader) bringState() error {
	if r.decoding == nil || !r.decoding.hostOld {
		return nil
	}
	if err := r.decoding.States(r.hostState()); err != nil {
		return err
	}
	r.decoding.hostOld = false
	return nil
}
