//go:build cuda

package cudamachine

import (
	"errors"
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/operator"
)

type array = cuda.Array[float32]

// call is one run of an operator. It keeps its first error in err.
type call struct {
	f      operator.OnDevice
	stream *cuda.Stream
	frees  []func()
	err    error
}

func (c *call) release() {
	for _, free := range c.frees {
		free()
	}
}

// keep returns an array that is freed at the end of the run.
func keep[T cuda.Element](c *call, a cuda.Array[T], err error) cuda.Array[T] {
	if err == nil {
		c.frees = append(c.frees, a.Free)
	} else if c.err == nil {
		c.err = err
	}
	return a
}

func (c *call) array(n int) array {
	a, err := cuda.NewArray[float32](c.stream, n)
	return keep(c, a, err)
}

// arrays returns a new array for each shape, an absent one for nil.
func (c *call) arrays(shapes []tensor.Shape) []array {
	each := make([]array, len(shapes))
	for i, s := range shapes {
		if s != nil {
			each[i] = c.array(s.TotalSize())
		}
	}
	return each
}

// aligned returns a, or a copy if a is not aligned to 16 bytes, since the kernels read four numbers at once. The machine's allocator may
// return any address.
func (c *call) aligned(a array) array {
	if a.Address()%16 == 0 {
		return a
	}
	b := c.array(a.Len())
	if c.err == nil {
		c.err = b.CopyOf(c.stream, a)
	}
	return b
}

func total(shapes []tensor.Shape) (n int) {
	for _, s := range shapes {
		n += s.TotalSize()
	}
	return n
}

// unpack returns the arrays that are packed in a value.
func (c *call) unpack(v G.Value, shapes []tensor.Shape) (parts []array) {
	all, offset := cuda.ArrayAt[float32](c.stream, v.Uintptr(), total(shapes)), 0
	for _, s := range shapes {
		parts = append(parts, all.Slice(offset, s.TotalSize()))
		offset += s.TotalSize()
	}
	return parts
}

// pack copies the arrays that are present into the parts of a packed value. The kernels cannot write there directly, since parts may be
// unaligned.
func (c *call) pack(into, each []array) error {
	for _, a := range each {
		if a.Absent() {
			continue
		}
		if err := into[0].CopyOf(c.stream, a); err != nil {
			return err
		}
		into = into[1:]
	}
	return nil
}

// operands returns the values of an operator's operands, with zero operands for absent ones. Marks are uploaded in the type that the kernels take:
// the machine's memory is managed, so the host can read them there.
func (c *call) operands(o *operator.Operator, values []G.Value) []operator.DeviceOperand {
	shapes, kinds, _ := o.Slots()
	in := make([]operator.DeviceOperand, len(shapes))
	for i, s := range shapes {
		if s == nil {
			continue
		}
		v := values[0]
		values = values[1:]
		if in[i].Shape = s; kinds[i] == operator.Numbers {
			in[i].Array = c.aligned(cuda.ArrayAt[float32](c.stream, v.Uintptr(), s.TotalSize()))
			continue
		}
		marks, err := operator.MarkBytes(v, s)
		if err != nil {
			c.err = errors.Join(c.err, fmt.Errorf("operand %d %w", i, err))
			continue
		}
		a, err := cuda.Upload(c.stream, marks)
		in[i].Marks = keep(c, a, err)
	}
	return in
}
