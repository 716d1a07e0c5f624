package operator

import (
	"fmt"
	"slices"
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/work"
)

// host runs a function on the host.
type host[T Float] struct {
	f    Function[T]
	last G.Value // the result of the last run, or the gradients, if the operator reuses them
	grad []T     // the gradients that an Eager function computed in the last run, if the operator reuses them
	call call[T] // of the last run, whose slices the next one takes, if the operator reuses results
}

// call has the operands and results of a function.
type call[T Float] struct {
	in        []Operand[T]
	out, into [][]T // the results, or their gradients; the gradients of the operands
	parts     [][]T
}

// begin returns a call with the operands.
func (h *host[T]) begin(o *Operator, values []G.Value) (c *call[T], err error) {
	if c = &h.call; !o.reuses {
		c = new(call[T])
	}
	if c.in, err = operands(o, values, c.in); err != nil {
		c.end()
	}
	return c, err
}

// end lets go of what the call has, which is of the values of a graph.
func (c *call[T]) end() {
	clear(c.in)
	clear(c.out)
	clear(c.into)
	clear(c.parts)
}

// results sets out.
func (c *call[T]) results(o *Operator, flat []T) { c.out = unpack(c.out, flat, o.out) }

// gradients sets into to the part of packed gradients of each operand, nil for an operand without one.
func (c *call[T]) gradients(o *Operator, flat []T) {
	c.parts = unpack(c.parts, flat, o.gradientShapes())
	c.into = slices.Grow(c.into[:0], len(o.in))
	parts := c.parts
	for _, s := range o.in {
		if c.into = append(c.into, nil); o.computed(s) {
			c.into[len(c.into)-1], parts = parts[0], parts[1:]
		}
	}
}

func (h *host[T]) fresh() body        { return &host[T]{f: h.f} }
func (h *host[T]) needsResult() bool  { return h.keeps() > 0 || h.eager() != nil }
func (h *host[T]) preallocates() bool { return h.eager() == nil }

func (h *host[T]) eager() Eager[T] {
	f, _ := h.f.(Eager[T])
	return f
}

func (h *host[T]) keeps() int {
	if k, ok := h.f.(Keeper[T]); ok {
		return k.Keeps()
	}
	return 0
}

func (h *host[T]) forward(o *Operator, prealloc G.Value, values []G.Value) (G.Value, error) {
	c, err := h.begin(o, values)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if o.reuses {
		prealloc = h.last
	}
	result, flat := resultFor[T](prealloc, o.to)
	c.results(o, flat)
	var k *Keeping[T]
	read := o.readers.Load() > 0
	switch f := h.eager(); {
	case read && f != nil:
		if err := trained(o, c.in); err != nil {
			return nil, err
		}
		grad := h.grad
		if grad == nil || !o.reuses {
			grad = make([]T, totalSize(o.gradientShapes()))
		}
		if o.reuses {
			h.grad = grad
		}
		c.gradients(o, grad)
		f.ForwardGradients(c.in, c.out, c.into)
		k = &Keeping[T]{Dense: denseFrom(flat, o.to)}
		k.kept.Store(&work.Space[T]{Data: grad})
		return k, nil
	case read && h.keeps() > 0:
		kept := work.Borrow[T](h.keeps())
		h.f.(Keeper[T]).ForwardKeeping(c.in, c.out, kept.Data)
		k = new(Keeping[T])
		k.kept.Store(&kept)
	default:
		h.f.Forward(c.in, c.out)
	}
	v := result()
	if o.reuses {
		h.last = v
	}
	if k != nil {
		k.Dense = v.(*tensor.Dense)
		return k, nil
	}
	return v, nil
}

func (h *host[T]) backward(o *Operator, prealloc G.Value, values []G.Value) (G.Value, error) {
	if h.eager() != nil {
		if v, err := h.scaled(o, values); v != nil || err != nil {
			return v, err
		}
	}
	if o.reuses {
		prealloc = h.last
	}
	result, flat := resultFor[T](prealloc, resultShape(o.gradientShapes()))
	if err := h.gradients(o, values, flat); err != nil {
		return nil, err
	}
	v := result()
	if o.reuses {
		h.last = v
	}
	return v, nil
}

// scaled returns the gradients that an Eager function has computed in its forward pass, times the gradient of the result; nil if there are none. The only reader gets
// their memory.
func (h *host[T]) scaled(o *Operator, values []G.Value) (G.Value, error) {
	kept, own := taken[T](o, values)
	if kept.Data == nil {
		return nil, nil
	}
	by, err := numbers[T](values[o.Arity()], o.to)
	if err != nil {
		return nil, fmt.Errorf("result %w", err)
	}
	grad := kept.Data
	if !own {
		grad = slices.Clone(grad)
	}
	if by := by[0]; by != 1 {
		work.ParallelRange(len(grad), 1<<14, func(from, to int) {
			for i := from; i < to; i++ {
				grad[i] *= by
			}
		})
	}
	return denseFrom(grad, resultShape(o.gradientShapes())), nil
}

// taken returns what the result, the last of the values of a backward pass, carries, and whether the caller is its only reader, who must return it to the workspace.
func taken[T Float](o *Operator, values []G.Value) (kept work.Space[T], own bool) {
	if k, ok := values[len(values)-1].(*Keeping[T]); ok {
		if own = o.readers.Load() == 1; own {
			return k.take(), own
		}
		return k.shown(), own
	}
	return kept, false
}

// trained returns an error if an operand is narrow.
func trained[T Float](o *Operator, in []Operand[T]) error {
	for i, operand := range in {
		if operand.Narrow != nil {
			return o.notTrained(i, operand.Narrow)
		}
	}
	return nil
}

// gradients computes the gradients and packs them into flat. The values are those of backward; the result may be missing.
func (h *host[T]) gradients(o *Operator, values []G.Value, flat []T) error {
	n := o.Arity()
	c, err := h.begin(o, values[:n])
	if err != nil {
		return err
	}
	defer c.end()
	if err := trained(o, c.in); err != nil {
		return err
	}
	grad, err := numbers[T](values[n], o.to)
	if err != nil {
		return fmt.Errorf("result %w", err)
	}
	c.results(o, grad)
	c.gradients(o, flat)
	if f, ok := h.f.(Keeper[T]); ok {
		kept, own := taken[T](o, values)
		if own {
			defer kept.Return()
		}
		if kept.Data != nil {
			f.BackwardKept(c.in, c.out, c.into, kept.Data)
			return nil
		}
	}
	h.f.Backward(c.in, c.out, c.into)
	return nil
}

func (h *host[T]) accumulate(o *Operator, inputs G.Nodes, output *G.Node) error {
	var values []G.Value
	for _, n := range inputs {
		values = append(values, n.Value())
	}
	grad, err := output.Grad()
	if err != nil {
		return fmt.Errorf("result has no gradient: %w", err)
	}
	flat := work.Borrow[T](totalSize(o.gradientShapes()))
	defer flat.Return()
	if err := h.gradients(o, append(values, grad, output.Value()), flat.Data); err != nil {
		return err
	}
	each := unpack(nil, flat.Data, o.gradientShapes())
	for _, s := range o.in {
		if !s.present {
			continue
		}
		switch {
		case o.computed(s):
			err, each = addToGradient(inputs[0], each[0], s.shape), each[1:]
		case s.differentiable:
			passed, _ := numbers[T](grad, s.shape) // gradients has checked it
			err = addToGradient(inputs[0], passed, s.shape)
		}
		if err != nil {
			return fmt.Errorf("%s %w", s.name, err)
		}
		inputs = inputs[1:]
	}
	return nil
}

// Keeping is a result that carries kept values from an operator to the operator of its gradients. It travels like any value, so each run of
// each machine has its own. An operator that overwrites a result cannot reach the kept values: only views read a Keeping, and a view shows
// the tensor alone.
//
// A graph without gradients has no Keeping, and neither has one whose gradients only the lisp machine computes, since that machine does not call SymDiff. If a machine
// copies the value, the copy is a plain tensor, and the backward pass recomputes the kept values.
type Keeping[T Float] struct {
	*tensor.Dense
	kept atomic.Pointer[work.Space[T]]
}

// shown returns the kept values, without Data if there are none.
func (k *Keeping[T]) shown() (s work.Space[T]) {
	if l := k.kept.Load(); l != nil {
		s = *l
	}
	return s
}

// take is shown for the only reader. It removes the kept values, and the caller must return them to the workspace.
func (k *Keeping[T]) take() (s work.Space[T]) {
	if l := k.kept.Swap(nil); l != nil {
		s = *l
	}
	return s
}

// Kept returns the kept values, nil if there are none.
func (k *Keeping[T]) Kept() []T { return k.shown().Data }

func (k *Keeping[T]) dense() *tensor.Dense { return k.Dense }

// operands checks the values and returns them as operands, with zero operands for absent ones, in the memory of in if that is enough.
func operands[T Float](o *Operator, values []G.Value, in []Operand[T]) ([]Operand[T], error) {
	in = slices.Grow(in[:0], len(o.in))[:len(o.in)]
	var ints [][]int
	if _, ok := o.function.(Checker); ok {
		ints = make([][]int, len(o.in))
	}
	for i, s := range o.in {
		if !s.present {
			continue
		}
		v := values[0]
		values = values[1:]
		var err error
		in[i].Shape = s.shape
		switch s.kind {
		case Numbers:
			var n *Narrow
			if n, err = o.ofNarrow(i, v); n != nil {
				in[i].Narrow = n.weights
			} else if err == nil {
				in[i].Data, err = numbers[T](v, s.shape)
			}
		case Ints:
			in[i].Ints, err = numbers[int](v, s.shape)
			if ints != nil {
				ints[i] = in[i].Ints
			}
		case Marks:
			in[i].Marks, err = marksOf(v, s.shape)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %w", s.name, err)
		}
	}
	return in, o.check(ints)
}

// numbers returns the elements of a value on the host in row-major order. They share the value's memory if the value is row-major; otherwise
// they are a copy. The text of an error continues a sentence that begins with the value's name.
func numbers[T int | float32 | float64](v G.Value, shape tensor.Shape) ([]T, error) {
	var zero T
	dt := dtypeOf(zero)
	switch v := v.(type) {
	case nil:
		return nil, fmt.Errorf("has no value; it should be %v of shape %v", dt, shape)
	case placed:
		return nil, fmt.Errorf("has a value on %v; it should be %v of shape %v on the host", v.Place(), dt, shape)
	case *G.F32, *G.F64:
		if x, ok := v.Data().(T); ok && shape.TotalSize() == 1 {
			return []T{x}, nil
		}
	default:
		d, ok := v.(*tensor.Dense)
		if k, keeping := v.(interface{ dense() *tensor.Dense }); keeping {
			d, ok = k.dense(), true
		}
		if ok && d == nil {
			return numbers[T](nil, shape)
		}
		if ok && d.Dtype() == dt && (d.Shape().Eq(shape) || shape.TotalSize() == 1 && d.Shape().TotalSize() == 1) {
			return rowMajor[T](d), nil
		}
	}
	return nil, fmt.Errorf("has a value of %v and shape %v; it should be %v of shape %v", v.Dtype(), v.Shape(), dt, shape)
}

func dtypeOf(x any) tensor.Dtype {
	switch x.(type) {
	case float32:
		return tensor.Float32
	case float64:
		return tensor.Float64
	}
	return tensor.Int
}

// MarkBytes returns marks in the type that the kernels of a device take: 1 for each element of a value that is not zero, else 0.
func MarkBytes(v G.Value, shape tensor.Shape) ([]uint8, error) {
	marks, err := marksOf(v, shape)
	b := make([]uint8, len(marks))
	for i := range marks {
		if marks[i] {
			b[i] = 1
		}
	}
	return b, err
}

// marksOf reports for each element of a value whether it is not zero.
func marksOf(v G.Value, shape tensor.Shape) ([]bool, error) {
	if v != nil {
		switch v.Dtype() {
		case tensor.Float32:
			return nonZero[float32](v, shape)
		case tensor.Float64:
			return nonZero[float64](v, shape)
		}
	}
	return nonZero[int](v, shape)
}

func nonZero[T int | float32 | float64](v G.Value, shape tensor.Shape) ([]bool, error) {
	x, err := numbers[T](v, shape)
	b := make([]bool, len(x))
	for i, x := range x {
		b[i] = x != 0
	}
	return b, err
}

// rowMajor returns the elements of d in row-major order: d's own memory if that is its order, else a copy.
func rowMajor[T any](d *tensor.Dense) (s []T) {
	if isRowMajor(d) {
		if s, ok := Elements[T](d); ok {
			return s
		}
	}
	// A lazily transposed tensor, a strided slice, or one in column order. These are rare, so the copy reads one element at a time, which
	// is slow but right for all of them.
	EachIndex(d.Shape(), func(at []int) {
		v, err := d.At(at...)
		if err != nil {
			panic(err) // at is inside the shape
		}
		s = append(s, v.(T))
	})
	return s
}

// Elements returns the elements of a tensor of T in the order in which they lie in memory, and whether it is one. Unlike Dense.Data it allocates nothing.
func Elements[T any](d *tensor.Dense) (s []T, ok bool) {
	switch to := any(&s).(type) {
	case *[]float32:
		if ok = d.Dtype() == tensor.Float32; ok {
			*to = d.Float32s()
		}
	case *[]float64:
		if ok = d.Dtype() == tensor.Float64; ok {
			*to = d.Float64s()
		}
	case *[]int:
		if ok = d.Dtype() == tensor.Int; ok {
			*to = d.Ints()
		}
	}
	return s, ok
}

func isRowMajor(d *tensor.Dense) bool {
	return !d.RequiresIterator() && d.DataOrder().IsRowMajor() && !d.DataOrder().IsTransposed()
}

// EachIndex calls f with every index of a shape in row-major order.
func EachIndex(shape tensor.Shape, f func(at []int)) {
	at := make([]int, shape.Dims())
	for range shape.TotalSize() {
		f(at)
		for axis := len(at) - 1; axis >= 0; axis-- {
			if at[axis]++; at[axis] < shape[axis] {
				break
			}
			at[axis] = 0
		}
	}
}

// unpack divides packed elements into parts of the given shapes, and returns them in the memory of parts if that is enough. The capacity of a part is its length, so that
// append cannot overwrite the elements after it.
func unpack[T any](parts [][]T, v []T, shapes []tensor.Shape) [][]T {
	parts = slices.Grow(parts[:0], len(shapes))
	for _, s := range shapes {
		n := s.TotalSize()
		parts, v = append(parts, v[:n:n]), v[n:]
	}
	return parts
}

// denseFrom returns elements as a tensor that shares their memory.
func denseFrom[T any](v []T, shape tensor.Shape) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape.Clone()...), tensor.WithBacking(v))
}

// resultFor returns elements to write a result into, and a function that returns the written result as a value. The elements are prealloc's if
// prealloc has the given type and shape and is row-major, else new.
func resultFor[T Float](prealloc G.Value, shape tensor.Shape) (result func() G.Value, to []T) {
	if d, ok := prealloc.(*tensor.Dense); ok && !shape.IsScalar() && d.Shape().Eq(shape) && isRowMajor(d) {
		if to, ok = Elements[T](d); ok {
			return func() G.Value { return d }, to
		}
	}
	to = make([]T, shape.TotalSize())
	if !shape.IsScalar() {
		return func() G.Value { return denseFrom(to, shape) }, to
	}
	return func() G.Value {
		if x, ok := any(to[0]).(float32); ok {
			return G.NewF32(x)
		}
		return G.NewF64(float64(to[0]))
	}, to
}

// gradientOf returns the gradient that the lisp machine has stored in a node.
func gradientOf[T Float](n *G.Node, shape tensor.Shape) ([]T, error) {
	v, err := n.Grad()
	if err != nil {
		return nil, fmt.Errorf("has no gradient: %w", err)
	}
	return numbers[T](v, shape)
}

func add[T Float](to, v []T) {
	for i := range to {
		to[i] += v[i]
	}
}

// addToGradient adds grad to the gradient that the lisp machine has stored in a node. That gradient can have any memory layout: Gorgonia
// gives it the layout of the node's value.
func addToGradient[T Float](n *G.Node, grad []T, shape tensor.Shape) error {
	sum, err := gradientOf[T](n, shape)
	if err != nil {
		return err
	}
	add(sum, grad)
	v, err := n.Grad()
	if err != nil {
		return err
	}
	switch v := v.(type) {
	case *G.F32:
		*v = G.F32(sum[0])
	case *G.F64:
		*v = G.F64(sum[0])
	case *tensor.Dense:
		if isRowMajor(v) && !v.IsScalar() {
			return nil // sum shares v's memory
		}
		i := 0
		EachIndex(v.Shape(), func(at []int) {
			if err == nil {
				err = v.SetAt(sum[i], at...)
			}
			i++
		})
	}
	return err
}
