package operator

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
)

// device runs a function on a device. It owns its last result and frees it when it runs again.
type device struct {
	f      OnDevice
	last   *Tensor
	call   steady                                                          // the last one
	memory *cuda.Allocations                                               // of the last run; not a part of device, since the stream refers to it
	reads  [][]int                                                         // see FreeAfterUse: for each result the reads of its tensor; nil if all stay
	into   []func() cuda.Array[float32]                                    // see Into: for each gradient the function that returns its memory, if there is one
	apart  func(s *cuda.Stream, ids []int, dout cuda.Array[float32]) error // see Rows.Apart
	again  int                                                             // the number of gradients that read the result after it was freed and computed again; 0 if it is not freed before; see Repeatable
}

func (d *device) fresh() body        { return &device{f: d.f, memory: new(cuda.Allocations)} }
func (d *device) needsResult() bool  { return true }
func (d *device) preallocates() bool { return false }

var errLisp = fmt.Errorf("op: the lisp machine does not run on a device: use gorgonia.Grad and a tape machine")

// accumulate returns an error. Without it the lisp machine would give zero gradients without an error.
func (d *device) accumulate(*Operator, G.Nodes, *G.Node) error { return errLisp }

func (d *device) forward(o *Operator, _ G.Value, values []G.Value) (G.Value, error) {
	return d.replace(o, !o.shared, func(s *cuda.Stream) (*Tensor, error) {
		t, err := d.run(o, s, values, nil)
		if err == nil {
			read(values)
			t.expect(d.reads)
			d.repeat(o, slices.Clone(values), t)
		}
		return t, err
	})
}

// repeat makes t compute its numbers again if it is read after it was freed.
func (d *device) repeat(o *Operator, values []G.Value, t *Tensor) {
	if d.again == 0 {
		return
	}
	t.repeat = func() error {
		in, err := d.operands(o, values, true)
		if err != nil {
			return err
		}
		if t.buffer, err = o.place.context.newBuffer(t.Size()); err != nil {
			return err
		}
		t.gone, t.reads = false, []int{d.again}
		_, err = d.f.ForwardOn(o.place.context.stream, o.place.precision, in, []cuda.Array[float32]{t.buffer.array}, false)
		return err
	}
}

// expect sets the reads of each part of a value.
func (t *Tensor) expect(reads [][]int) {
	parts := t.parts
	if parts == nil {
		parts = []*Tensor{t}
	}
	for i, n := range reads {
		parts[i].reads = n
	}
}

// read notes that an operator has read its operands.
func read(values []G.Value) {
	for _, v := range values {
		if t, ok := v.(*Tensor); ok {
			t.read()
		}
	}
}

// backward runs the function backward. The values that the forward pass kept come with the result.
func (d *device) backward(o *Operator, _ G.Value, values []G.Value) (G.Value, error) {
	return d.replace(o, true, func(s *cuda.Stream) (*Tensor, error) {
		t, err := d.gradients(o, s, values)
		if err == nil {
			t.expect(d.reads)
		}
		return t, err
	})
}

// replace frees the result of the last run, and calls f for the next one. A result that is not owned may still be read when the operator runs again.
func (d *device) replace(o *Operator, owned bool, f func(*cuda.Stream) (*Tensor, error)) (t *Tensor, err error) {
	err = o.place.context.Do(func(s *cuda.Stream) (err error) {
		d.last.drop()
		d.last = nil
		s.Repeat(d.memory)
		defer s.Repeat(nil)
		if t, err = f(s); owned {
			d.last = t
		}
		return err
	})
	return t, err
}

// run queues the function. The context must be locked.
func (d *device) run(o *Operator, s *cuda.Stream, values []G.Value, ready []*Tensor) (*Tensor, error) {
	l, t, err := d.link(o, values, ready)
	if err != nil {
		return nil, err
	}
	keep := o.readers.Load() > 0
	k, err := d.forwardOn(o, s, l, keep)
	if err == nil {
		if err = o.checkInts(values); err != nil && k != nil { // while the device works
			k.Free()
		}
	}
	if keep && err == nil {
		kept := &keptOnDevice{Kept: k}
		if k != nil {
			kept.undo = own(o.place.context, kept, k.Free)
		}
		t.kept.Store(kept)
	}
	return t, err
}

// link returns the function with its operands and its results, which are the parts of t. Results that are in ready are written there. The
// context must be locked.
func (d *device) link(o *Operator, values []G.Value, ready []*Tensor) (l Link, t *Tensor, err error) {
	l.F = d.f
	if l.In, err = d.operands(o, values, true); err != nil {
		return l, nil, err
	}
	if ready == nil {
		ready = make([]*Tensor, len(o.out))
	}
	if p, ok := d.f.(Passer); ok {
		if result, operand := p.Passes(); result < len(ready) {
			x := l.In[operand]
			if ready[result] = x.tensor.share(); x.Weight != nil {
				ready[result] = x.Weight.shown()
			}
		}
	}
	t, l.Out, err = o.place.results(o.out, ready)
	return l, t, err
}

// results returns a tensor for results of the given shapes, and their arrays. A result that is in ready gets no new memory. The context must be
// locked.
func (p Place) results(shapes []tensor.Shape, ready []*Tensor) (*Tensor, []cuda.Array[float32], error) {
	var parts []*Tensor
	arrays := make([]cuda.Array[float32], len(shapes))
	for i, s := range shapes {
		var t *Tensor
		var err error
		if t = ready[i]; t == nil {
			t, err = p.allocate(s)
		}
		if err == nil {
			arrays[i], err = t.array()
		}
		if err != nil {
			for _, p := range parts {
				p.drop()
			}
			return nil, nil, err
		}
		parts = append(parts, t)
	}
	if len(parts) == 1 {
		return parts[0], arrays, nil
	}
	t := p.Zeros(resultShape(shapes))
	t.parts = parts
	return t, arrays, nil
}

// operands returns the values as the function's operands, with zero operands for absent ones. Without numbers, those of Numbers have only a shape. The
// context must be locked.
func (d *device) operands(o *Operator, values []G.Value, numbers bool) ([]DeviceOperand, error) {
	in := make([]DeviceOperand, len(o.in))
	for i, s := range o.in {
		if !s.present {
			continue
		}
		n, err := o.ofNarrow(i, values[0])
		if n != nil && n.place.context != o.place.context {
			err = fmt.Errorf("is on %v, want %v", n.place, o.place)
		}
		if in[i].Narrow = n; err != nil || n != nil || s.kind == Numbers && !numbers {
			in[i].Shape = s.shape
		} else {
			in[i], err = deviceOperandOf(values[0], s, o.place)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %w", s.name, err)
		}
		values = values[1:]
	}
	return in, nil
}

// within reports whether the function needs no check of operand i.
func (o *Operator) within(r *raised, i int) bool {
	b, ok := o.function.(Bounded)
	if !ok || r.ints == nil {
		return false
	}
	least, most := b.Bounds(i)
	return least <= r.least && r.most <= most
}

// checkInts checks the function's operands that are Ints, once for each time that they were copied to the device.
func (o *Operator) checkInts(values []G.Value) error {
	ints := make([][]int, len(o.in))
	var unchecked []*raised
	for i, s := range o.in {
		if !s.present {
			continue
		}
		if r, ok := values[0].(*raised); ok && r.kind == Ints {
			if ints[i] = r.ints; !o.within(r, i) && !slices.Contains(r.checked, o) {
				unchecked = append(unchecked, r)
			}
		}
		values = values[1:]
	}
	if len(unchecked) == 0 {
		return nil
	}
	if err := o.check(ints); err != nil {
		return err
	}
	for _, r := range unchecked {
		r.checked = append(r.checked, o)
	}
	return nil
}

// deviceOperandOf returns a value as an operand. The text of an error continues a sentence that begins with the operand's name.
func deviceOperandOf(v G.Value, want slot, p Place) (o DeviceOperand, err error) {
	o.Shape = want.shape
	switch v := v.(type) {
	case *Tensor:
		if want.kind == Numbers && v.place.context == p.context && v.shape.Eq(want.shape) {
			o.tensor, o.Weight = v, v.weight
			if v.gone && v.repeat != nil {
				if err := v.repeat(); err != nil {
					return o, err
				}
			}
			o.Array, err = v.array()
			return o, err
		}
	case *Weight:
		if want.kind == Numbers && v.place.context == p.context && v.Shape().Eq(want.shape) {
			o.Weight = v
			o.Array, err = v.Array()
			return o, err
		}
	case *raised:
		if want.kind == v.kind && v.place.context == p.context && v.shape.Eq(want.shape) {
			o.Ids, o.Ints, o.Marks = v.ids, v.ints, v.marks
			return o, nil
		}
	case nil:
		return o, fmt.Errorf("has no value")
	}
	return o, fmt.Errorf("has a value %T of %v %v, want a value of shape %v on %v", v, v.Dtype(), v.Shape(), want.shape, p)
}

// passed returns the gradient of operand i, which is that of a result.
func (d *device) passed(o *Operator, i int, dout []*Tensor) *Tensor {
	result := 0
	if p, ok := d.f.(Passer); ok {
		if r, operand := p.Passes(); operand == i {
			result = r
		}
	}
	if t := dout[result]; t != nil {
		return t.share()
	}
	return o.place.Zeros(o.in[i].shape)
}

// Into makes the operator of a gradient on a device write it to the array that f returns each time, if that is not absent, instead of memory of its own. The array stays
// the caller's. Into does nothing if the gradient is not that of one operator alone, such as a sum, or is the gradient of the operator's result, or if an operator reads it.
func Into(gradient *G.Node, f func() cuda.Array[float32]) {
	if d, i := maker(gradient); d != nil && gradient.Graph().To(gradient.ID()).Len() == 0 {
		d.into[i] = f
	}
}

// maker returns the device function that computes a gradient, and the gradient's number; nil if it is not that of one function on a device, or is passed on.
func maker(gradient *G.Node) (d *device, i int) {
	of := gradient
	if v, ok := gradient.Op().(*view); ok {
		i, of = v.index, node.Operands(gradient)[0]
	}
	g, ok := of.Op().(*Gradients)
	if !ok {
		return nil, i
	}
	slots := slices.DeleteFunc(slices.Clone(g.of.in), func(s slot) bool { return !g.of.computed(s) })
	if d, ok = g.body.(*device); !ok || slots[i].passed {
		return nil, i
	}
	if d.into == nil {
		d.into = make([]func() cuda.Array[float32], len(slots))
	}
	return d, i
}

// Rows is a gradient that is the sum of another one, the base, which is there earlier, and of rows, which are few.
type Rows struct {
	Base                 *G.Node
	Number, Width, Table int // of the rows, of the numbers in each, and of the rows of the weight
	rows, base           *device
	at                   int
}

// Split returns the parts of a gradient of a RowSummer, nil if it is none, or if something else than the RowSummer reads the base.
func Split(gradient *G.Node) *Rows {
	g, ok := gradient.Op().(*Gradients)
	if !ok {
		return nil
	}
	f, ok := g.of.function.(RowSummer)
	d, _ := maker(gradient)
	if !ok || d == nil || gradient.Graph().To(gradient.ID()).Len() > 0 {
		return nil
	}
	r := &Rows{rows: d}
	r.Number, r.Width, r.Table = f.RowSum()
	for _, n := range node.Operands(node.Operands(gradient)[g.of.Arity()]) { // of the sum of the gradients of the results
		if s, ok := n.Op().(*scatter); ok && s.index == 1 {
			r.Base = node.Operands(n)[0]
		}
	}
	if r.Base == nil || r.Base.Graph().To(r.Base.ID()).Len() != 1 {
		return nil
	}
	if r.base, r.at = maker(r.Base); r.base == nil {
		return nil
	}
	return r
}

// Apart makes the operator of the base write it to the array that into returns, and calls rows instead of adding the rows to it.
func (r *Rows) Apart(into func() cuda.Array[float32], rows func(s *cuda.Stream, ids []int, dout cuda.Array[float32]) error) {
	r.base.into[r.at], r.rows.into[0], r.rows.apart = into, into, rows
}

// given returns a tensor with the memory that Into has for gradient i, nil if there is none.
func (d *device) given(p Place, i int, shape tensor.Shape) *Tensor {
	if d.into == nil || d.into[i] == nil {
		return nil
	}
	a := d.into[i]()
	if a.Absent() {
		return nil
	}
	t := p.Zeros(shape)
	t.buffer = &buffer{array: a}
	t.buffer.refs.Store(2) // one stays, so that the array is never freed
	return t
}

func (d *device) gradients(o *Operator, s *cuda.Stream, values []G.Value) (t *Tensor, err error) {
	n := o.Arity()
	var in []DeviceOperand
	computes := o.computes()
	if computes {
		if in, err = d.operands(o, values[:n], o.reads()); err != nil {
			return nil, err
		}
		for i, operand := range in {
			if operand.Narrow != nil {
				return nil, o.notTrained(i, operand.Narrow.weights)
			}
		}
	}
	grad, ok := values[n].(*Tensor)
	output, ok2 := values[n+1].(*Tensor)
	if !ok || !ok2 {
		return nil, fmt.Errorf("the gradient of the result is %T and the result %T, want tensors on a device", values[n], values[n+1])
	}
	each := []*Tensor{grad}
	if len(o.out) > 1 {
		if each = grad.parts; each == nil {
			each = make([]*Tensor, len(o.out)) // nil stands for zero
		}
	}
	dout := make([]cuda.Array[float32], len(each))
	for i, g := range each {
		if g.zero() && len(each) > 1 {
			continue
		}
		if dout[i], err = g.array(); err != nil {
			return nil, fmt.Errorf("the gradient of the result %w", err)
		}
	}
	once := o.readers.Load() == 1
	k := output.kept.Load()
	if once {
		k = output.kept.Swap(nil)
	}
	if k == nil {
		return nil, fmt.Errorf("the values that the forward pass kept are gone, want one backward pass for each forward pass")
	}
	if once {
		defer k.release()
	}
	var ready []*Tensor
	for i, s := range o.in {
		switch {
		case s.differentiable && s.passed:
			ready = append(ready, d.passed(o, i, each))
		case s.differentiable:
			ready = append(ready, d.given(o.place, len(ready), s.shape))
		}
	}
	t, arrays, err := o.place.results(o.gradientShapes(), ready)
	if err != nil {
		return nil, err
	}
	into := make([]cuda.Array[float32], len(o.in))
	for i, s := range o.in {
		if !s.differentiable {
			continue
		}
		if !s.passed {
			into[i] = arrays[0]
		}
		arrays = arrays[1:]
	}
	if computes {
		if d.apart != nil {
			err = d.apart(s, in[1].Ints, dout[0])
		} else {
			err = d.backwardOn(o, s, in, dout, into, k.Kept)
		}
		if o.reads() {
			read(values[:n])
		}
	}
	grad.drop() // no other operator reads it: every gradient on the device has one reader
	return t, err
}
