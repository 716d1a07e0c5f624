package operator

import (
	"fmt"
	"runtime"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// Weight is a tensor of float32 with a copy on a device: a Gorgonia value for weights and the moments of solvers. A copy that is out of
// date is updated when it is used. All methods but Array, Half, HalfIfAny and Written lock the context.
type Weight struct {
	onPlace
	host   *tensor.Dense
	device *buffer
	half   cuda.Array[cuda.BFloat16]
	undo   runtime.Cleanup // of half
	single bool            // it is used without half, as training wanted

	hostOld, deviceOld, halfOld bool // these copies are out of date; guarded by the context's lock, as are the copies
}

var (
	_ G.Value        = (*Weight)(nil)
	_ G.Typer        = (*Weight)(nil)
	_ G.CloneErrorer = (*Weight)(nil)
	_ G.CopierTo     = (*Weight)(nil)
)

// NewWeight returns a weight with a value on the host that is used on the place's device. Matrix products with it have the place's precision.
func (p Place) NewWeight(host *tensor.Dense) (*Weight, error) {
	if err := p.context.check(); err != nil {
		return nil, err
	}
	switch {
	case host == nil:
		return nil, fmt.Errorf("op: weight: nothing, want a row-major tensor of float32")
	case host.Dtype() != tensor.Float32 || host.IsScalar() || host.RequiresIterator() || !host.DataOrder().IsRowMajor():
		return nil, fmt.Errorf("op: weight: a tensor of %v %v, want a row-major tensor of float32", host.Dtype(), host.Shape())
	}
	return &Weight{onPlace: onPlace{p, host.Shape().Clone()}, host: host, deviceOld: true, halfOld: true}, nil
}

// Array returns the copy on the device, up to date, for reading. Use it inside the context's Do. After an error the next call tries
// again.
func (w *Weight) Array() (cuda.Array[float32], error) {
	if err := w.check(); err != nil {
		return cuda.Array[float32]{}, err
	}
	if w.device == nil {
		defer w.place.context.stream.Lasting()()
		b, err := w.place.context.newBuffer(w.host.Shape().TotalSize())
		if err != nil {
			return cuda.Array[float32]{}, err
		}
		w.device = b
	}
	if w.deviceOld {
		if err := w.device.array.CopyFrom(w.place.context.stream, floats(w.host)); err != nil {
			return cuda.Array[float32]{}, err
		}
		w.deviceOld, w.halfOld = false, true
	}
	return w.device.array, nil
}

// Half returns the copy on the device in bfloat16, up to date. Use it inside the context's Do.
func (w *Weight) Half() (cuda.Array[cuda.BFloat16], error) {
	a, err := w.Array()
	if err != nil {
		return cuda.Array[cuda.BFloat16]{}, err
	}
	if w.half.Absent() {
		defer w.place.context.stream.Lasting()()
		if w.half, err = cuda.NewArray[cuda.BFloat16](w.place.context.stream, a.Len()); err != nil {
			return w.half, err
		}
		c, half := w.place.context, w.half
		c.halves += int64(half.Len())
		w.undo = own(c, w, func() { c.freeHalf(half) })
		w.halfOld = true
	}
	if w.halfOld {
		if err := cuda.Convert(w.place.context.stream, a, w.half); err != nil {
			return w.half, err
		}
		w.halfOld = false
	}
	return w.half, nil
}

// MostHalves is the number of elements of all copies in bfloat16 on a device up to which training makes another one.
var MostHalves int64 = 1 << 28

// HalfFor is Half, or returns an absent array: if training has found too many copies with that of this weight, until it finds fewer. The caller then converts the weight for
// each use, which costs a model of 2.8 billion weights 6 ms of a step and saves two bytes for each weight.
func (w *Weight) HalfFor(training bool) (cuda.Array[cuda.BFloat16], error) {
	if w.check() != nil {
		return w.Half()
	}
	if training {
		copies := w.place.context.halves
		if w.half.Absent() {
			copies += int64(w.Size())
		}
		if w.single = copies > MostHalves; w.single { // an evaluation before the training may have made the copy
			w.dropHalf()
		}
	}
	if w.single && w.half.Absent() {
		return w.half, nil
	}
	return w.Half()
}

// dropHalf frees the copy in bfloat16.
func (w *Weight) dropHalf() {
	w.undo.Stop()
	w.place.context.freeHalf(w.half)
	w.half, w.halfOld = cuda.Array[cuda.BFloat16]{}, true
}

// freeHalf frees a copy in bfloat16, if there is one. The context must be locked.
func (c *Context) freeHalf(half cuda.Array[cuda.BFloat16]) {
	c.halves -= int64(half.Len())
	half.Free()
}

// HalfIfAny returns the copy in bfloat16, absent if there is none. Code that writes the weight on the device writes this copy too. Use
// it inside the context's Do.
func (w *Weight) HalfIfAny() cuda.Array[cuda.BFloat16] { return w.half }

// Written records that the copy on the device has new numbers, and so has the copy in bfloat16 if there is one. Use it inside the
// context's Do.
func (w *Weight) Written() {
	w.hostOld, w.deviceOld, w.halfOld = true, false, false
	if w.check() == nil {
		w.place.context.changes++
	}
}

// Dense returns the tensor on the host without updating it: it may be older than the copy on the device.
func (w *Weight) Dense() *tensor.Dense { return w.host }

// ToHost brings the tensor on the host up to date and returns it. Do not call it inside the context's Do.
func (w *Weight) ToHost() (*tensor.Dense, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	return w.host, w.place.context.Do(w.toHost)
}

// toHost brings the tensor on the host up to date. The context is locked.
func (w *Weight) toHost(s *cuda.Stream) error {
	if !w.hostOld {
		return nil
	}
	if err := w.device.array.CopyTo(s, floats(w.host)); err != nil {
		return err
	}
	w.hostOld = false
	return nil
}

// HostChanged records that the tensor on the host has new numbers. They replace those on the device at the next use. Do not call it
// inside the context's Do.
func (w *Weight) HostChanged() {
	if w.check() != nil {
		return
	}
	w.place.context.mu.Lock()
	defer w.place.context.mu.Unlock()
	w.hostOld, w.deviceOld = false, true
	w.place.context.changes++
}

// Average writes keep·weight + by·v to the copy on the device. v is a value that gorgonia.Read has copied to the host. Do not call it inside the
// context's Do.
func (w *Weight) Average(v G.Value, keep, by float64) error {
	if err := w.check(); err != nil {
		return err
	}
	host, err := numbers[float32](v, w.shape)
	if err != nil {
		return fmt.Errorf("the value of the last run %w", err)
	}
	return w.place.context.Do(func(s *cuda.Stream) error {
		a, err := w.Array()
		if err != nil {
			return err
		}
		x, err := cuda.NewArray[float32](s, len(host))
		if err != nil {
			return err
		}
		defer x.Free()
		if err := x.CopyFrom(s, host); err != nil {
			return err
		}
		if err := cuda.Average(s, float32(keep), float32(by), x, a); err != nil {
			return err
		}
		w.Written()
		return nil
	})
}

// Free brings the tensor on the host up to date and frees the memory on the device. The weight can be used again: it is then uploaded
// from the host. After an error nothing was freed. Do not call Free inside the context's Do.
func (w *Weight) Free() error {
	if err := w.check(); err != nil {
		return err
	}
	return w.place.context.Do(func(s *cuda.Stream) error {
		if err := w.toHost(s); err != nil {
			return err
		}
		w.device.release()
		w.dropHalf()
		w.device, w.deviceOld = nil, true
		w.place.context.changes++
		return nil
	})
}

// check returns an error if NewWeight did not make the weight.
func (w *Weight) check() error {
	if w == nil || w.place.OnHost() {
		return fmt.Errorf("op: the weight is missing, want one that NewWeight returned")
	}
	return nil
}

func (w *Weight) Dtype() tensor.Dtype           { return tensor.Float32 }
func (w *Weight) Type() hm.Type                 { return typeOf(tensor.Float32, w.Shape()) }
func (w *Weight) Format(s fmt.State, verb rune) { fmt.Fprint(s, w.String()) }
func (w *Weight) String() string {
	return fmt.Sprintf("weight %v of float32 on %s", w.Shape(), w.place.context.name())
}

// Data returns the elements on the host, up to date, or nil if the copy from the device fails.
func (w *Weight) Data() any {
	d, err := w.ToHost()
	if err != nil {
		return nil
	}
	return d.Data()
}

// Clone returns a tensor on the device that shows the weight's numbers, without memory of its own. Gorgonia clones a weight for gorgonia.Read, and
// to add up its gradients; then it clears the clone.
func (w *Weight) Clone() (any, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	return w.shown(), nil
}

// shown returns a tensor that shows the weight's numbers.
func (w *Weight) shown() *Tensor {
	t := w.place.Zeros(w.Shape())
	t.weight = w
	return t
}

// CopyTo does nothing for a tensor that Clone returned, since it shows the weight's numbers, and is an error for others.
func (w *Weight) CopyTo(dest any) error {
	if t, ok := dest.(*Tensor); ok && t.weight == w {
		return nil
	}
	return fmt.Errorf("op: the weight is read into a %T, want nil or what gorgonia.Read of this weight set", dest)
}

// raised is the value of Ints or Marks on a device.
type raised struct {
	onPlace
	kind Kind
	ints []int // of Ints: the numbers on the host, nil if they are only on the device

	least, most int // of ints

	checked []*Operator // the operators that have checked ints; guarded by the context's lock
	ids     cuda.Array[int32]
	marks   cuda.Array[uint8]
}

var (
	_ G.Value = (*raised)(nil)
	_ G.Typer = (*raised)(nil)
)

func (r *raised) Data() any                     { return nil }
func (r *raised) Dtype() tensor.Dtype           { return tensor.Int }
func (r *raised) Type() hm.Type                 { return typeOf(tensor.Int, r.shape) }
func (r *raised) Format(s fmt.State, verb rune) { fmt.Fprintf(s, "%v of int on %v", r.shape, r.place) }
