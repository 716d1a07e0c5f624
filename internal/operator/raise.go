package operator

import (
	"fmt"
	"math"
	"sync"
	"unsafe"

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
	at     int  // where its numbers begin among those of its kind of the inputs
	early  bool // they were copied before the operator ran
	same   bool // and their memory on the host has not changed since
	ran    bool // it has run since a run of a machine began
}

// inputs are integers and marks of a graph that are copied to the device together, when the first of their operators runs: so a training step has one upload.
type inputs struct {
	all         []*raise // first the integers
	ints, marks int      // of all of them
	on          *raisedMemory
}

// raisedMemory is the memory of inputs: the integers as int32, and from an index of a multiple of 16 on the marks, four in an int32.
type raisedMemory struct {
	host  []int32 // what the device has
	on    cuda.Array[int32]
	there bool // all of it was copied at least once
}

// marksAt returns the index of the marks.
func (in *inputs) marksAt() int { return (in.ints + 15) / 16 * 16 }

// join makes the operator one of inputs.
func (o *raise) join(in *inputs) {
	o.inputs, o.early, o.ran = in, false, false
	n := &in.ints
	if o.kind == Marks {
		n = &in.marks
	}
	o.at, *n = *n, *n+o.to.TotalSize()
	in.all = append(in.all, o)
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
		case o.early && (o.same && unsafe.SliceData(ints) == unsafe.SliceData(o.last.ints) && len(ints) == len(o.last.ints) || o.equal(ints)):
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
	if in.on == nil {
		n := in.marksAt() + (in.marks+3)/4
		end := s.Lasting()
		on, err := cuda.NewArray[int32](s, n)
		if end(); err != nil {
			return err
		}
		in.on = &raisedMemory{host: make([]int32, n), on: on}
		own(in.all[0].place.context, in, on.Free)
		for _, o := range in.all {
			if o.kind == Ints {
				o.last.ids = on.Slice(o.at, o.to.TotalSize())
			} else {
				o.last.marks = cuda.ArrayAt[uint8](s, on.Address()+uintptr(4*in.marksAt()+o.at), o.to.TotalSize())
			}
		}
	}
	for _, o := range in.all {
		o.ran, o.early, o.same = false, true, runs == nil
		if o != runs {
			var err error
			if ints, err = o.numbers(o.of.Value()); err != nil {
				o.early = false // it copies its value when it runs
				continue
			}
		}
		o.has(ints)
	}
	in.on.there = false
	if err := in.on.on.CopyFrom(s, in.on.host); err != nil {
		return err
	}
	in.on.there = true
	return nil
}

// has writes numbers to the memory of the host that is copied to the device.
func (o *raise) has(ints []int) {
	host, last := o.inputs.on.host, o.last
	last.ints, last.checked = ints, last.checked[:0]
	if o.kind == Ints {
		last.least, last.most = narrow(host[o.at:], ints)
		return
	}
	at := 4*o.inputs.marksAt() + o.at
	for i, x := range ints {
		bit := int32(1) << (8 * ((at + i) % 4))
		if word := &host[(at+i)/4]; x != 0 {
			*word |= bit
		} else {
			*word &^= bit
		}
	}
}

// equal reports whether the memory of the host has the numbers.
func (o *raise) equal(ints []int) bool {
	host := o.inputs.on.host
	if o.kind == Ints {
		return math.MinInt32 <= o.last.least && o.last.most <= math.MaxInt32 && equalNarrow(host[o.at:], ints)
	}
	at := 4*o.inputs.marksAt() + o.at
	for i, x := range ints {
		if (x != 0) != (host[(at+i)/4]>>(8*((at+i)%4))&1 != 0) {
			return false
		}
	}
	return true
}

// narrow writes the numbers that 32 bits hold and that are nearest to ints, and returns the least and the most of ints.
func narrow(to []int32, ints []int) (least, most int) {
	least, most = math.MaxInt, math.MinInt
	to = to[:len(ints)]
	var mu sync.Mutex
	work.ParallelRange(len(ints), 1<<15, func(i, j int) {
		low, high, to := math.MaxInt, math.MinInt, to[i:j]
		for k, x := range ints[i:j] {
			to[k] = int32(x)
			low, high = min(low, x), max(high, x)
		}
		mu.Lock()
		least, most = min(least, low), max(most, high)
		mu.Unlock()
	})
	if len(ints) > 0 && (least < math.MinInt32 || most > math.MaxInt32) {
		for i, x := range ints {
			to[i] = Int32(x)
		}
	}
	return least, most
}

// equalNarrow reports whether of begins with ints.
func equalNarrow(of []int32, ints []int) bool {
	of = of[:len(ints)]
	for i, x := range ints {
		if int(of[i]) != x {
			return false
		}
	}
	return true
}

// set copies the value of one operator.
func (o *raise) set(s *cuda.Stream, ints []int) error {
	on, from, to := o.inputs.on, o.at, o.at+len(ints)
	if o.kind == Marks {
		from, to = o.inputs.marksAt(), len(on.host)
	}
	o.has(ints)
	err := on.on.Slice(from, to-from).CopyFrom(s, on.host[from:to])
	if err != nil {
		on.there = false
	}
	return err
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

// Upload copies the values that the inputs have, before a machine runs. A value that is another one when it runs is copied again; the numbers of the same one must not change until then. The
// context must be locked.
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
