package grad

import (
	"fmt"
	"math"
	"reflect"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// offsets returns the offsets in memory of the elements of d, in the order of its axes. d can be a view, transposed, or in column order.
func offsets(d *tensor.Dense) []int {
	shape, strides := d.Shape(), d.Strides()
	if len(strides) != len(shape) {
		strides = shape.CalcStrides()
	}
	result := []int{0}
	for axis, size := range shape {
		next := make([]int, 0, len(result)*size)
		for _, o := range result {
			for i := range size {
				next = append(next, o+i*strides[axis])
			}
		}
		result = next
	}
	return result
}

// denseElements returns a copy of the elements of a tensor of float64, in the order of its axes.
func denseElements(d *tensor.Dense) []float64 {
	at := offsets(d)
	elements := make([]float64, len(at))
	for i, o := range at {
		elements[i] = d.GetF64(o)
	}
	return elements
}

// elements returns a copy of the elements of a value, which must be of float64 and of the given shape.
func elements(v G.Value, shape tensor.Shape) ([]float64, error) {
	switch v := v.(type) {
	case nil:
		return nil, fmt.Errorf("has no value")
	case *G.F64:
		if shape.TotalSize() == 1 {
			return []float64{float64(*v)}, nil
		}
	case *tensor.Dense:
		// In Gorgonia, a value with one element can have one of several shapes.
		if v.Dtype() == tensor.Float64 && (v.Shape().Eq(shape) || v.Shape().TotalSize() == 1 && shape.TotalSize() == 1) {
			return denseElements(v), nil
		}
	}
	return nil, fmt.Errorf("is of %v and shape %v, want float64 and shape %v", v.Dtype(), v.Shape(), shape)
}

// addTo adds numbers to a value of float64 in place.
func addTo(v G.Value, add []float64) error {
	switch v := v.(type) {
	case *G.F64:
		if len(add) == 1 {
			*v += G.F64(add[0])
			return nil
		}
	case *tensor.Dense:
		if at := offsets(v); v.Dtype() == tensor.Float64 && len(at) == len(add) {
			for i, o := range at {
				v.SetF64(o, v.GetF64(o)+add[i])
			}
			return nil
		}
	}
	return fmt.Errorf("cannot add %d numbers of float64 to a %T", len(add), v)
}

// copyOf returns a copy of an input's value. For a tensor without axes it is a scalar of Gorgonia's, which Gorgonia's operators expect.
func copyOf(d *tensor.Dense) G.Value {
	if d.Shape().IsScalar() {
		return G.NewConstant(d.ScalarValue()).Value()
	}
	c := tensor.New(tensor.Of(d.Dtype()), tensor.WithShape(d.Shape().Clone()...))
	for i, o := range offsets(d) {
		c.Set(i, d.Get(o))
	}
	return c
}

// firstNotEqual returns the index of the first element in which two values of the same type and shape differ in any bit, or -1.
func firstNotEqual(a, b G.Value) int {
	x, y := reflect.ValueOf(a.Data()), reflect.ValueOf(b.Data())
	if x.Kind() != reflect.Slice {
		if sameBits(x, y) {
			return -1
		}
		return 0
	}
	for i := range x.Len() {
		if !sameBits(x.Index(i), y.Index(i)) {
			return i
		}
	}
	return -1
}

func sameBits(x, y reflect.Value) bool {
	if x.CanFloat() {
		return math.Float64bits(x.Float()) == math.Float64bits(y.Float())
	}
	return reflect.DeepEqual(x.Interface(), y.Interface())
}

// elementOf returns element i of a value that is contiguous in memory.
func elementOf(v G.Value, i int) any {
	if x := reflect.ValueOf(v.Data()); x.Kind() == reflect.Slice {
		return x.Index(i).Interface()
	}
	return v.Data()
}

func firstNotFinite(v []float64) int {
	for i, x := range v {
		if !finite(x) {
			return i
		}
	}
	return -1
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// index returns the index, along each axis, of element i in the order of the axes.
func index(i int, shape tensor.Shape) []int {
	at := make([]int, len(shape))
	for axis := len(shape) - 1; axis >= 0; axis-- {
		at[axis] = i % shape[axis]
		i /= shape[axis]
	}
	return at
}
