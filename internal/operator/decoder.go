package operator

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
)

// Decoder runs a graph that reads tokens, from states to states, again and again without a machine. All operators of the graph are on one device,
// and the states stay there between the runs. A decoder of one token per sequence runs the graph twice and captures the work, then launches it.
//
// There are two sets of states, before and after a run, so that a failed run changes nothing. The operators that compute the new states write
// them into the other set. A decoder with logits has a third set, for a run that is queued ahead (Best).
type Decoder struct {
	place   Place
	steps   []*G.Node       // the nodes in an order in which each follows its operands
	last    map[*G.Node]int // the last step that reads a node
	reads   map[target]int  // how many operators read a result
	before  G.Nodes
	results []target // the states after a run
	ids     *raised
	starts  *raised // nil if no sequence begins
	there   []int   // the tokens in ids, nil if unknown; after a run that computes logits, ids are the tokens of the largest
	logits  *G.Node
	chosen  []*cuda.Outbox[int32] // the tokens on their way to the host, for each set of states before a run; none without logits

	states   [][]*Tensor
	whole    []*buffer // the memory of the states
	layout   *cuda.StateSizes
	captured []captured // runs from the states with the same index
	at       int        // index of the states before the next run
	result   *Tensor    // the logits of the last run
	first    *Tensor    // the logits of the first run, which has loaded the kernels and was not captured
	began    bool       // the first run was queued
	ahead    *ahead     // the run that is queued ahead, or nil
	closed   bool
	weights  []*Weight
}

// target is a result of an operator: a part of the packed value of a node.
type target struct {
	node *G.Node
	part int
}

// ahead is a run that reads the tokens that the last run has chosen.
type ahead struct {
	result  *Tensor
	changes uint64 // the context's, when it was queued
}

// captured is a captured run, the logits that it computes, and where the weights were on the device at that time.
type captured struct {
	step   *cuda.Capture
	result *Tensor
	whole  []cuda.Array[float32]
	half   []cuda.Array[cuda.BFloat16]
}

// NewDecoder returns a decoder of a graph on a place's device. ids (batch, length) of int are an input of the graph; before are inputs on the device, and after are the
// nodes of the states after the run, in the same order. starts is nil, or an input of marks (batch, length) where sequences begin. logits is nil, or a node of shape (batch, 1, vocabulary) on the device.
//
// Errors: a node that an operator on the host computes; an after that is no result of its own of an operator.
func NewDecoder(p Place, ids, starts, logits *G.Node, before, after G.Nodes) (*Decoder, error) {
	d := &Decoder{place: p, before: before, logits: logits}
	for _, n := range after {
		t := targetOf(n)
		if Of(t.node.Op()) == nil || slices.Contains(d.results, t) {
			return nil, fmt.Errorf("op: decoder: the state %v is computed by %v, want an operator with a result of its own", n, n.Op())
		}
		d.results = append(d.results, t)
	}
	if err := d.order(ids, starts, append(slices.Clone(after), logits)); err != nil {
		return nil, fmt.Errorf("op: decoder: %w", err)
	}
	sets := 2
	if logits != nil {
		sets = 3
	}
	d.states, d.whole, d.captured = make([][]*Tensor, sets), make([]*buffer, sets), make([]captured, sets)
	err := d.place.context.Do(func(s *cuda.Stream) (err error) {
		sizes := make([]int, len(before))
		for i, n := range before {
			sizes[i] = n.Shape().TotalSize() / ids.Shape()[0]
		}
		if d.layout, err = cuda.NewStateSizes(s, sizes); err != nil {
			return err
		}
		if d.ids, err = d.place.newRaised(s, Ints, ids.Shape()); err != nil {
			return err
		}
		if starts != nil {
			if d.starts, err = d.place.newRaised(s, Marks, starts.Shape()); err != nil {
				return err
			}
		}
		for i := range d.states {
			if err := d.newStates(s, i); err != nil {
				return err
			}
		}
		for len(d.chosen) < sets && logits != nil {
			o, err := cuda.NewOutbox[int32](s, ids.Shape().TotalSize())
			if err != nil {
				return err
			}
			d.chosen = append(d.chosen, o)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// newStates makes a set of states of zeros. They lie in one array, as d.layout says.
func (d *Decoder) newStates(s *cuda.Stream, i int) (err error) {
	if d.whole[i], err = d.place.context.newBuffer(d.layout.Len(d.batch())); err != nil {
		return err
	}
	for j, n := range d.before {
		t := d.place.Zeros(n.Shape())
		t.buffer = &buffer{array: d.layout.State(d.whole[i].array, d.batch(), j)}
		t.buffer.refs.Store(2) // so that it is never freed by itself
		d.states[i] = append(d.states[i], t)
	}
	return d.whole[i].array.Fill(s, 0)
}

func (d *Decoder) batch() int { return d.ids.shape[0] }

// order collects the nodes that the roots need, each after its operands.
func (d *Decoder) order(ids, starts *G.Node, roots G.Nodes) error {
	seen := map[*G.Node]bool{}
	var visit func(n *G.Node) error
	visit = func(n *G.Node) error {
		if n == nil || seen[n] {
			return nil
		}
		seen[n] = true
		if r, ok := n.Op().(*raise); ok && (node.Operands(n)[0] == ids && r.kind == Ints || node.Operands(n)[0] == starts && r.kind == Marks) {
			d.steps = append(d.steps, n)
			return nil
		}
		for _, operand := range node.Operands(n) {
			if err := visit(operand); err != nil {
				return err
			}
		}
		switch o := n.Op().(type) {
		case nil:
			if w, ok := n.Value().(*Weight); ok {
				d.weights = append(d.weights, w)
			} else if !slices.Contains(d.before, n) && (!IsNarrow(n) || PlaceOf(n).OnHost()) {
				return fmt.Errorf("the input %v is on the host, want the tokens, a weight or a state", n)
			}
		case *view:
		default:
			if f := Of(o); f == nil || f.place.OnHost() {
				return fmt.Errorf("%v runs on the host, want all operators on %v", o, d.place)
			}
		}
		d.steps = append(d.steps, n)
		return nil
	}
	for _, n := range roots {
		if err := visit(n); err != nil {
			return err
		}
	}
	d.last, d.reads = map[*G.Node]int{}, map[target]int{}
	for i, n := range d.steps {
		for _, operand := range node.Operands(n) {
			d.last[memoryOf(operand)] = i
			if _, ok := n.Op().(*view); !ok {
				d.reads[targetOf(operand)]++
			}
		}
	}
	return nil
}

// targetOf returns the result that a node stands for.
func targetOf(n *G.Node) target {
	if v, ok := n.Op().(*view); ok {
		return target{node.Operands(n)[0], v.index}
	}
	return target{node: n}
}

// memoryOf returns the node whose value has the memory of n's value.
func memoryOf(n *G.Node) *G.Node {
	for {
		if _, ok := n.Op().(*view); !ok {
			return n
		}
		n = node.Operands(n)[0]
	}
}

// after returns the index of the states after a run from those with index at.
func (d *Decoder) after(at int) int { return (at + 1) % len(d.states) }

// run queues the graph's work from the states with index at, and returns the logits. The context must be locked.
func (d *Decoder) run(s *cuda.Stream, at int) (logits *Tensor, err error) {
	values, owned := map[*G.Node]G.Value{}, map[*G.Node]*Tensor{}
	var chain []Link   // that are not queued yet
	var tail *G.Node   // the node of the last of them
	var held []*Tensor // what the chain's links read, and nothing after them
	queue := func() error {
		links := chain
		if chain = nil; len(links) == 0 {
			return nil
		}
		defer func() {
			for _, t := range held {
				t.drop()
			}
			held = nil
		}()
		return links[0].F.(Chained).ForwardChain(s, d.place.precision, links)
	}
	defer func() {
		for _, t := range held {
			t.drop()
		}
		for _, t := range owned {
			t.drop()
		}
	}()
	for i, n := range d.before {
		values[n] = d.states[at][i]
	}
	for i, n := range d.steps {
		var in []G.Value
		operands := node.Operands(n)
		for _, operand := range operands {
			in = append(in, values[operand])
		}
		switch o := n.Op().(type) {
		case nil:
			if values[n] == nil {
				values[n] = n.Value()
			}
		case *raise:
			if values[n] = d.ids; o.kind == Marks {
				values[n] = d.starts
			}
		case *view:
			values[n] = in[0].(*Tensor).parts[o.index]
		default:
			f := Of(o)
			ready := make([]*Tensor, len(f.out))
			for j, t := range d.results {
				if t.node == n {
					ready[t.part] = d.states[d.after(at)][j].share()
				}
			}
			body := f.body.(*device)
			_, chains := body.f.(Chained)
			joins := chains && len(chain) > 0 && targetOf(operands[0]) == target{node: tail} && d.reads[target{node: tail}] == 1 && reflect.TypeOf(chain[0].F) == reflect.TypeOf(body.f)
			for _, operand := range operands[1:] {
				joins = joins && owned[memoryOf(operand)] == nil // an operator may compute a weight, from LoRA
			}
			if !joins {
				if err := queue(); err != nil {
					return nil, fmt.Errorf("op: %s: %w", Of(tail.Op()).name, err)
				}
			}
			var t *Tensor
			if !chains {
				t, err = body.run(f, s, in, ready)
			} else {
				var l Link
				if l, t, err = body.link(f, in, ready); err == nil {
					chain, tail = append(chain, l), n
				}
			}
			values[n], owned[n] = t, t // also after an error, so that its memory is freed
			if err != nil {
				return nil, fmt.Errorf("op: %s: %w", f.op, err)
			}
		}
		for _, operand := range operands {
			operand = memoryOf(operand)
			t := owned[operand]
			if d.last[operand] != i || t == nil {
				continue
			}
			if delete(owned, operand); len(chain) > 0 {
				held = append(held, t)
			} else {
				t.drop()
			}
		}
	}
	if err := queue(); err != nil {
		return nil, fmt.Errorf("op: %s: %w", Of(tail.Op()).name, err)
	}
	if d.logits == nil {
		return nil, nil
	}
	logits = values[d.logits].(*Tensor).share()
	a, err := logits.array()
	if err != nil {
		return nil, err
	}
	rows := d.ids.shape[0]
	return logits, errors.Join(cuda.Largest(s, rows, a.Len()/rows, a, d.ids.ids), d.chosen[at].Send(d.ids.ids))
}

var errDecoder = errors.New("op: the decoder is missing, want one that NewDecoder returned")

// do calls f with the context locked. It returns an error if the decoder is closed.
func (d *Decoder) do(f func(*cuda.Stream) error) error {
	if d == nil {
		return errDecoder
	}
	return d.place.context.Do(func(s *cuda.Stream) error {
		if d.closed {
			return errors.New("op: the decoder is closed")
		}
		return f(s)
	})
}

// Read reads tokens (batch, length), which are in the vocabulary. It computes the states after them and the logits. The current states do not change
// until Commit, also after an error.
func (d *Decoder) Read(tokens []int) error {
	return d.do(func(s *cuda.Stream) (err error) {
		there, next := slices.Equal(tokens, d.there), d.ahead
		d.there, d.ahead = nil, nil
		switch {
		case next != nil && there && next.changes == d.place.context.changes:
			d.result = next.result
			return nil
		case next != nil || !there: // a run that was queued ahead has overwritten the tokens
			ids := make([]int32, len(tokens))
			for i, token := range tokens {
				ids[i] = int32(token)
			}
			if err := d.ids.ids.CopyFrom(s, ids); err != nil {
				return err
			}
		}
		if d.result, err = d.launch(s, d.at); d.first != nil && d.result != d.first {
			d.first.drop()
			d.first = nil
		}
		return err
	})
}

// Begin sets where sequences begin in the next runs, marks (batch, length), and the states of all sequences to zeros.
func (d *Decoder) Begin(starts []uint8) error {
	return d.set(func(s *cuda.Stream) error {
		if d.starts == nil {
			return errors.New("op: the decoder has no marks where sequences begin")
		}
		if err := d.starts.marks.CopyFrom(s, starts); err != nil {
			return err
		}
		return d.whole[d.at].array.Fill(s, 0)
	})
}

// launch runs the graph from the states with index at and returns the logits. It launches the captured run if the weights are where they were at
// its capture.
func (d *Decoder) launch(s *cuda.Stream, at int) (logits *Tensor, err error) {
	var now captured
	for _, w := range d.weights { // also brings the device's copies up to date
		a, err := w.Array()
		if err != nil {
			return nil, err
		}
		now.whole = append(now.whole, a)
		if h := w.HalfIfAny(); !h.Absent() {
			if h, err = w.Half(); err != nil {
				return nil, err
			}
			now.half = append(now.half, h)
		}
	}
	c := &d.captured[at]
	if c.step != nil && slices.Equal(now.whole, c.whole) && slices.Equal(now.half, c.half) {
		return c.result, c.step.Launch(s)
	}
	if err := c.forget(); err != nil {
		return nil, err
	}
	if !d.began { // the first run loads the kernels, so it cannot be captured
		d.first.drop()
		d.first, err = d.run(s, at)
		d.began = err == nil
		return d.first, err
	}
	if now.step, err = s.Capture(func() (err error) { now.result, err = d.run(s, at); return err }); err != nil {
		return nil, err
	}
	*c = now
	return c.result, c.step.Launch(s)
}

// forget frees the captured run.
func (c *captured) forget() (err error) {
	if c.step != nil {
		err = c.step.Close()
		c.result.drop()
	}
	*c = captured{}
	return err
}

// Commit makes the states after the last Read the current ones. It does nothing on the device and cannot fail.
func (d *Decoder) Commit() {
	d.place.context.mu.Lock()
	defer d.place.context.mu.Unlock()
	d.at = d.after(d.at)
}

// Logits waits for the logits (batch, vocabulary) of the last Read, and copies them to the host.
func (d *Decoder) Logits(logits []float32) error {
	return d.do(func(s *cuda.Stream) error {
		a, err := d.result.array()
		if err != nil {
			return err
		}
		return a.CopyTo(s, logits)
	})
}

// Best waits for the tokens (batch) of the largest logits after the last Read, and copies them to the host. Of several largest it takes the lowest
// token. A token is -1 if the largest logit is infinite or a logit is NaN.
//
// With goOn, Best first queues the run that reads these tokens, so that the device does not wait for the host. The next Read takes its result if
// it reads the same tokens, and if neither a state nor a weight has changed. If that run cannot be queued, the next Read tries it again.
func (d *Decoder) Best(tokens []int, goOn bool) error {
	return d.do(func(s *cuda.Stream) error {
		chosen := d.chosen[d.at]
		if err := chosen.Seal(); err != nil {
			return err
		}
		if goOn {
			next := &ahead{changes: d.place.context.changes}
			var err error
			if next.result, err = d.launch(s, d.after(d.at)); err != nil {
				next.changes-- // never taken
			}
			d.ahead = next
		}
		ids, err := chosen.Wait()
		if err != nil {
			return err
		}
		for i, id := range ids {
			tokens[i] = int(id)
		}
		d.there = slices.Clone(tokens)
		return nil
	})
}

// Close frees the decoder's memory and captured runs.
func (d *Decoder) Close() error {
	if d == nil {
		return errDecoder
	}
	return d.place.context.Do(func(*cuda.Stream) (err error) {
		for i := range d.captured {
			err = errors.Join(err, d.captured[i].forget())
			for _, t := range d.states[i] {
				t.drop()
			}
			d.whole[i].release()
			d.whole[i] = nil
		}
		if !d.closed {
			d.layout.Free()
		}
		d.first.drop()
		if d.ids != nil && !d.closed {
			d.ids.ids.Free()
		}
		if d.starts != nil && !d.closed {
			d.starts.marks.Free()
		}
		for _, o := range d.chosen {
			err = errors.Join(err, o.Close())
		}
		d.closed, d.result, d.first, d.chosen = true, nil, nil, nil
		return err
	})
}
