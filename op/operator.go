package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// value is the value of an operand on the host.
type value[T kernel.Float] = operator.Operand[T]

// array and onDevice are the values of results and operands on a device, and kept is what a forward pass keeps there.
type (
	array    = cuda.Array[float32]
	onDevice = operator.DeviceOperand
	kept     = operator.Kept
)

// apply adds an operator with the operands that were checked to their graph, and returns a node for each of its results, or the checker's error.
// f32 and f64 are one function, for each type of number.
func (c *checker) apply(f32 operator.Function[float32], f64 operator.Function[float64], results ...tensor.Shape) (G.Nodes, error) {
	if c.err != nil {
		return nil, c.err
	}
	return operator.Apply(operator.Definition{Name: c.op, Float32: f32, Float64: f64, Dtype: c.dt, In: c.in, Out: results})
}

// apply1 is apply for one result.
func (c *checker) apply1(f32 operator.Function[float32], f64 operator.Function[float64], result tensor.Shape) (*G.Node, error) {
	n, err := c.apply(f32, f64, result)
	return append(n, nil)[0], err
}

// apply2 is apply for two results.
func (c *checker) apply2(f32 operator.Function[float32], f64 operator.Function[float64], a, b tensor.Shape) (_, _ *G.Node, err error) {
	n, err := c.apply(f32, f64, a, b)
	n = append(n, nil, nil)
	return n[0], n[1], err
}

// second returns the second of several results, or a zero one if there is only one.
func second[V any](s []V) (v V) {
	if len(s) > 1 {
		v = s[1]
	}
	return v
}

// orZeros calls f with the gradient of a result of n elements: dout, or zeros if dout is absent because nothing uses the result.
func orZeros(s *cuda.Stream, dout array, n int, f func(dout array) error) error {
	if !dout.Absent() {
		return f(dout)
	}
	zeros, err := cuda.NewArray[float32](s, n)
	if err != nil {
		return err
	}
	defer zeros.Free()
	if err := zeros.Fill(s, 0); err != nil {
		return err
	}
	return f(zeros)
}

// as returns operands in the type of a product: as they are; or in bfloat16, the copy of a weight or a new array; or a new array for narrow weights of
// another type. free frees the new arrays.
func as[T cuda.Activation](s *cuda.Stream, training bool, list ...onDevice) (all []cuda.Array[T], free func(), err error) {
	var work []interface{ Free() }
	free = func() {
		for _, a := range work {
			a.Free()
		}
	}
	all = make([]cuda.Array[T], len(list))
	for i, o := range list {
		if o.Narrow == nil && o.Absent() {
			continue
		}
		if n := o.Narrow; n != nil {
			if half, ok := any(n.OnDevice().Half()).(cuda.Array[T]); ok && !half.Absent() {
				all[i] = half
			} else if all[i], err = cuda.NewArray[T](s, o.Shape.TotalSize()); err == nil {
				work = append(work, all[i])
				err = cuda.Widen(s, n.OnDevice(), all[i])
			}
			if err != nil {
				free()
				return nil, nil, err
			}
			continue
		}
		switch a := any(&all[i]).(type) {
		case *array:
			*a = o.Array
		case *cuda.Array[cuda.BFloat16]:
			if o.Weight != nil {
				*a, err = o.Weight.HalfFor(training)
			}
			if err != nil || !a.Absent() {
				break
			}
			if *a, err = cuda.NewArray[cuda.BFloat16](s, o.Len()); err == nil {
				work = append(work, *a)
				err = cuda.Convert(s, o.Array, *a)
			}
		}
		if err != nil {
			free()
			return nil, nil, err
		}
	}
	return all, free, nil
}
