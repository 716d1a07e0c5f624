package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// operand is a value in the form that the kernels take: a shape and a row-major slice of float32, float64 or int. The zero operand is an
// absent optional operand.
type operand struct {
	shape tensor.Shape
	data  any
}

// is32 reports whether the operand is of float32.
func (o operand) is32() bool { _, ok := o.data.([]float32); return ok }

// floats returns the operand's elements, nil for an absent operand.
func floats[T kernel.Float](o operand) []T {
	if o.data == nil {
		return nil
	}
	return o.data.([]T)
}

func newOperand(dt tensor.Dtype, shape tensor.Shape) operand {
	if dt == tensor.Float32 {
		return operand{shape, make([]float32, shape.TotalSize())}
	}
	return operand{shape, make([]float64, shape.TotalSize())}
}

// slice returns the elements from offset on as an operand of the given shape. It shares memory with o. Its capacity is its length, so
// that append cannot overwrite the elements after it.
func (o operand) slice(offset int, shape tensor.Shape) operand {
	end := offset + shape.TotalSize()
	if d, ok := o.data.([]float32); ok {
		return operand{shape, d[offset:end:end]}
	}
	return operand{shape, o.data.([]float64)[offset:end:end]}
}

// unpack divides a packed operand into parts of the given shapes. The parts share its memory.
func unpack(o operand, shapes []tensor.Shape) []operand {
	if len(shapes) == 1 {
		return []operand{{shapes[0], o.data}}
	}
	parts, offset := make([]operand, len(shapes)), 0
	for i, s := range shapes {
		parts[i] = o.slice(offset, s)
		offset += s.TotalSize()
	}
	return parts
}

func (o operand) at(i int) any {
	if d, ok := o.data.([]float32); ok {
		return d[i]
	}
	return o.data.([]float64)[i]
}

func (o operand) clear() {
	switch d := o.data.(type) {
	case []float32:
		clear(d)
	case []float64:
		clear(d)
	}
}

func (o operand) copy(from operand) {
	switch d := o.data.(type) {
	case []float32:
		copy(d, from.data.([]float32))
	case []float64:
		copy(d, from.data.([]float64))
	}
}

func (o operand) add(v operand) {
	switch d := o.data.(type) {
	case []float32:
		kernel.Add(d, v.data.([]float32))
	case []float64:
		kernel.Add(d, v.data.([]float64))
	}
}

// dense returns the operand as a tensor that shares its memory.
func (o operand) dense() *tensor.Dense {
	return tensor.New(tensor.WithShape(o.shape.Clone()...), tensor.WithBacking(o.data))
}

// operandOf returns a value as an operand of the given type and shape. The operand shares the value's memory if the value is row-major;
// otherwise it is a copy. The text of an error continues a sentence that begins with the operand's name.
func operandOf(v G.Value, dt tensor.Dtype, shape tensor.Shape) (operand, error) {
	switch v := v.(type) {
	case nil:
		return operand{}, fmt.Errorf("has no value; it should be %v of shape %v", dt, shape)
	case *G.F32:
		if dt == tensor.Float32 && shape.TotalSize() == 1 {
			return operand{shape, []float32{float32(*v)}}, nil
		}
	case *G.F64:
		if dt == tensor.Float64 && shape.TotalSize() == 1 {
			return operand{shape, []float64{float64(*v)}}, nil
		}
	case *keeping:
		return operandOf(v.Dense, dt, shape)
	case *tensor.Dense:
		if v.Dtype() == dt && (v.Shape().Eq(shape) || shape.TotalSize() == 1 && v.Shape().TotalSize() == 1) {
			return operand{shape, rowMajor(v)}, nil
		}
	}
	return operand{}, fmt.Errorf("has a value of %v and shape %v; it should be %v of shape %v", v.Dtype(), v.Shape(), dt, shape)
}

// rowMajor returns the elements of d in row-major order: d's own memory if that is its order, else a copy.
func rowMajor(d *tensor.Dense) any {
	if isRowMajor(d) {
		switch data := d.Data().(type) {
		case []float32, []float64, []int:
			return data
		case float32:
			return []float32{data}
		case float64:
			return []float64{data}
		case int:
			return []int{data}
		}
	}
	// A lazily transposed tensor, a strided slice, or one in column order. These are rare, so the copy reads one element at a time, which
	// is slow but right for all of them.
	switch d.Dtype() {
	case tensor.Float32:
		return gather[float32](d)
	case tensor.Float64:
		return gather[float64](d)
	default:
		return gather[int](d)
	}
}

func isRowMajor(d *tensor.Dense) bool {
	return !d.RequiresIterator() && d.DataOrder().IsRowMajor() && !d.DataOrder().IsTransposed()
}

func gather[T any](d *tensor.Dense) []T {
	var s []T
	eachIndex(d.Shape(), func(at []int) {
		v, err := d.At(at...)
		if err != nil {
			panic(err) // at is inside the shape
		}
		s = append(s, v.(T))
	})
	return s
}

// eachIndex calls f with every index of a shape in row-major order.
func eachIndex(shape tensor.Shape, f func(at []int)) {
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

// resultFor returns an operand to write a result into, and a function that returns the written result as a value. The operand is in
// prealloc's memory if prealloc has the given type and shape and is row-major, else in new memory.
func resultFor(prealloc G.Value, dt tensor.Dtype, shape tensor.Shape) (result func() G.Value, to operand) {
	if shape.IsScalar() {
		to = newOperand(dt, shape)
		return func() G.Value {
			if to.is32() {
				return G.NewF32(to.data.([]float32)[0])
			}
			return G.NewF64(to.data.([]float64)[0])
		}, to
	}
	if d, ok := prealloc.(*tensor.Dense); ok && d.Dtype() == dt && d.Shape().Eq(shape) &&
		!d.RequiresIterator() && d.DataOrder().IsRowMajor() {
		return func() G.Value { return d }, operand{shape, rowMajor(d)}
	}
	to = newOperand(dt, shape)
	return func() G.Value { return to.dense() }, to
}

// gradientOf returns the gradient that the lisp machine has stored in a node.
func gradientOf(n *G.Node, dt tensor.Dtype, shape tensor.Shape) (operand, error) {
	v, err := n.Grad()
	if err != nil {
		return operand{}, fmt.Errorf("has no gradient: %w", err)
	}
	return operandOf(v, dt, shape)
}

// addToGradient adds grad to the gradient that the lisp machine has stored in a node. That gradient can have any memory layout: Gorgonia
// gives it the layout of the node's value.
func addToGradient(n *G.Node, grad operand) error {
	sum, err := gradientOf(n, dtypeOf(grad), grad.shape)
	if err != nil {
		return err
	}
	sum.add(grad)
	v, err := n.Grad()
	if err != nil {
		return err
	}
	switch v := v.(type) {
	case *G.F32:
		*v = G.F32(sum.data.([]float32)[0])
	case *G.F64:
		*v = G.F64(sum.data.([]float64)[0])
	case *tensor.Dense:
		if isRowMajor(v) && !v.IsScalar() {
			return nil // sum shares v's memory
		}
		i := 0
		eachIndex(v.Shape(), func(at []int) {
			if err == nil {
				err = v.SetAt(sum.at(i), at...)
			}
			i++
		})
	}
	return err
}

func dtypeOf(o operand) tensor.Dtype {
	if o.is32() {
		return tensor.Float32
	}
	return tensor.Float64
}
