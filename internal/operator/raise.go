package operator

import (
	"fmt"
	"math"
	"slices"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/work"
)

// raise returns a node with Ints or Marks on the device. It has no derivative.
func (c *Context) raise(x *G.Node, kind Kind) (*G.Node, error) {
	name := []string{"", "integers to a device", "marks to a device"}[kind]
	u := newUnary(name, Place{context: c}, x.Dtype(), x.Shape(), tensor.Int, x.Shape())
	o := &raise{constant: constant{u}, kind: kind}
	o.join(new(inputs))
	return node.Apply(o, x)
}

// raise copies integers or marks to a device.
type raise struct {
	constant
	kind Kind
	of   *G.Node // the operand, if it is an input of the graph
	last *raised

	inputs *inputs
	at     int   // where its numbers are among those of the inputs
	copy   []int // the numbers that are on the device
	early  bool  // they were copied before the operator ran
	ran    bool  // it has run since a run of a machine began
}

// inputs are integers and marks of a graph that are copied to the device together, when the first of their operators runs: so a training step has one upload.
type inputs struct {
	all    []*raise // first the integers
	on     *raisedMemory
	memory cuda.Allocations
}

// raisedMemory is the memory of inputs on the device.
type raisedMemory struct {
	from  cuda.Array[int] // the numbers as they are on the host
	ids   cuda.Array[int32]
	marks cuda.Array[uint8]
	there bool // ids and marks are there
}

func (m *raisedMemory) free() {
	m.ids.Free()
	m.marks.Free()
	m.ids, m.marks, m.there = cuda.Array[int32]{}, cuda.Array[uint8]{}, false
}

// join makes the operator one of inputs.
func (o *raise) join(in *inputs) {
	at := 0
	for _, other := range in.all {
		at += other.to.TotalSize()
	}
	in.all = append(in.all, o)
	o.inputs, o.at, o.early, o.ran = in, at, false, false
	o.last = &raised{onPlace: onPlace{o.place, o.to.Clone()}, kind: o.kind}
}

func (o *raise) Do(values ...G.Value) (v G.Value, err error) {
	ints, err := o.numbers(values[0])
	if err != nil {
		return nil, fmt.Errorf("op: %v: the value %w", o, err)
	}
	err = o.place.context.Do(func(s *cuda.Stream) (err error) {
		switch {
		case o.ran || o.inputs.on == nil || !o.inputs.on.there: // a run begins
			err = o.inputs.upload(s, o, ints)
		case o.early && slices.Equal(o.copy, ints):
			o.last.ints = ints
		default:
			err = o.set(s, ints)
		}
		o.ran, o.early = err == nil, false
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", o, err)
	}
	return o.last, nil
}

// numbers returns the integers of a value, or numbers that are not 0 where the value has a mark.
func (o *raise) numbers(v G.Value) (ints []int, err error) {
	if o.kind == Ints || v != nil && v.Dtype() == tensor.Int {
		return numbers[int](v, o.to)
	}
	marks, err := marksOf(v, o.to)
	ints = make([]int, len(marks))
	for i, m := range marks {
		if m {
			ints[i] = 1
		}
	}
	return ints, err
}

// upload copies the values of all inputs at the beginning of a run: ints for the operator that runs, and for the others what their nodes have, which they
// compare with their operands when they run. So a value that is not as it should be is an error then. runs is nil if the run begins later. The context must be locked.
func (in *inputs) upload(s *cuda.Stream, runs *raise, ints []int) error {
	values := make([][]int, len(in.all))
	n, whole := 0, true
	for i, o := range in.all {
		if values[i] = ints; o != runs {
			var err error
			if values[i], err = o.numbers(o.of.Value()); err != nil {
				values[i], whole = nil, false
			}
		}
		o.early, o.ran, n = false, false, n+o.to.TotalSize()
	}
	if in.on == nil {
		end := s.Lasting()
		from, err := cuda.NewArray[int](s, n)
		if end(); err != nil {
			return err
		}
		in.on = &raisedMemory{from: from}
		on := in.on
		own(in.all[0].place.context, in, func() { on.from.Free(); on.free() })
	}
	in.on.free() // the work that is queued with the upload may have this memory (cuda/ahead.go)
	if whole {
		if err := in.on.from.CopyPartsFrom(s, values...); err != nil {
			return err
		}
	}
	if err := in.arrays(s); err != nil {
		return err
	}
	for i, o := range in.all {
		switch {
		case whole:
			o.has(values[i])
		case values[i] != nil:
			if err := o.set(s, values[i]); err != nil {
				return err
			}
		}
		o.early = values[i] != nil
	}
	in.on.there = true
	return nil
}

// arrays allocates the arrays of the operators, and queues the conversion of the numbers.
func (in *inputs) arrays(s *cuda.Stream) (err error) {
	s.Repeat(&in.memory)
	defer s.Repeat(nil)
	ids := in.on.from.Len()
	if i := slices.IndexFunc(in.all, func(o *raise) bool { return o.kind == Marks }); i >= 0 {
		ids = in.all[i].at
	}
	if marks := in.on.from.Len() - ids; marks > 0 {
		if in.on.marks, err = cuda.NewArray[uint8](s, marks); err == nil {
			err = cuda.MarksOf(s, in.on.from.Slice(ids, marks), in.on.marks)
		}
	}
	if ids > 0 && err == nil {
		if in.on.ids, err = cuda.NewArray[int32](s, ids); err == nil {
			err = cuda.IntegersOf(s, in.on.from.Slice(0, ids), in.on.ids)
		}
	}
	if err != nil {
		return err
	}
	for _, o := range in.all {
		if n := o.to.TotalSize(); o.kind == Ints {
			o.last.ids = in.on.ids.Slice(o.at, n)
		} else {
			o.last.marks = in.on.marks.Slice(o.at-ids, n)
		}
	}
	return nil
}

// has notes the numbers that the device has.
func (o *raise) has(ints []int) {
	o.last.ints, o.last.checked, o.last.ranged = ints, o.last.checked[:0], false
	o.copy = append(o.copy[:0], ints...)
}

// set copies the value of one operator.
func (o *raise) set(s *cuda.Stream, ints []int) error {
	from := o.inputs.on.from.Slice(o.at, len(ints))
	o.copy = o.copy[:0] // until it is there
	if err := from.CopyFrom(s, ints); err != nil {
		return err
	}
	o.has(ints)
	if o.kind == Marks {
		return cuda.MarksOf(s, from, o.last.marks)
	}
	return cuda.IntegersOf(s, from, o.last.ids)
}

// Inputs are the inputs of a graph that are copied to a device: integers and marks.
type Inputs struct{ inputs *inputs }

// InputsOf returns the inputs of a graph for which FreeAfterUse was called.
func InputsOf(g *G.ExprGraph) Inputs {
	for _, n := range g.AllNodes() {
		if o, ok := n.Op().(*raise); ok && o.of != nil {
			return Inputs{o.inputs}
		}
	}
	return Inputs{}
}

// None reports whether there are no such inputs.
func (in Inputs) None() bool { return in.inputs == nil }

// Upload copies the values that the inputs have, before a machine runs. A value that is another one when it runs is copied again. The context must be locked.
func (in Inputs) Upload(s *cuda.Stream) error {
	if in.None() {
		return nil
	}
	return in.inputs.upload(s, nil, nil)
}

// joinInputs makes the operators whose operands are inputs of a graph copy them together.
func joinInputs(nodes G.Nodes) {
	groups := map[*Context]*inputs{}
	for _, kind := range []Kind{Ints, Marks} {
		for _, n := range nodes {
			o, ok := n.Op().(*raise)
			if !ok || o.kind != kind || node.Operands(n)[0].Op() != nil {
				continue
			}
			if groups[o.place.context] == nil {
				groups[o.place.context] = new(inputs)
			}
			o.of = node.Operands(n)[0]
			o.join(groups[o.place.context])
		}
	}
}

// rangeOf returns the least and the most of integers.
func rangeOf(ints []int) (least, most int) {
	least, most = math.MaxInt, math.MinInt
	var mu sync.Mutex
	work.ParallelRange(len(ints), 1<<14, func(from, to int) {
		low, high := math.MaxInt, math.MinInt
		for _, x := range ints[from:to] {
			low, high = min(low, x), max(high, x)
		}
		mu.Lock()
		least, most = min(least, low), max(most, high)
		mu.Unlock()
	})
	return least, most
}

// newRaised returns Ints or Marks with memory on the device. The context must be locked.
func (p Place) newRaised(s *cuda.Stream, kind Kind, shape tensor.Shape) (r *raised, err error) {
	r = &raised{onPlace: onPlace{p, shape.Clone()}, kind: kind}
	if kind == Ints {
		r.ids, err = cuda.NewArray[int32](s, shape.TotalSize())
	} else {
		r.marks, err = cuda.NewArray[uint8](s, shape.TotalSize())
	}
	return r, err
}
