//go:build cuda

package op

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"gorgonia.org/cu"
	G "gorgonia.org/gorgonia"
	engine "gorgonia.org/gorgonia/cuda"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// place returns a scan of float32 as an operator for the device of Gorgonia's CUDA machine, and all else as it is.
func place(o *operator) G.Op {
	if o.onDevice() {
		return &deviceOperator{o}
	}
	return o
}

func placeGradients(o *gradients) G.Op {
	if o.of.onDevice() {
		return &deviceGradients{o}
	}
	return o
}

func (o *operator) onDevice() bool {
	f, ok := o.f.(*scan)
	return ok && o.dt == tensor.Float32 && f.state <= cuda.MaxState
}

// deviceOperator is a scan for Gorgonia's tape machine of the build tag cuda, with the kernels of package cuda.
//
// The machine copies operands to the device as they lie in memory, so they must lie there row by row. Of Gorgonia's own
// arithmetic it has kernels for no operator but the sum of two tensors, given here: its other elementwise operators are errors when
// the graph runs, the operators of this package run on the CPU. The node of a result on the device has a value there: read it
// with gorgonia.Read. A machine that is closed before its first run may never return from Close: that is Gorgonia's.
type deviceOperator struct{ *operator }

// deviceGradients is the gradient operator of a deviceOperator. Its packed result is copied to the CPU once, where the views
// of it are.
type deviceGradients struct{ *gradients }

var (
	_ G.CUDADoer = (*deviceOperator)(nil)
	_ G.CUDADoer = (*deviceGradients)(nil)
)

// reuse does nothing: the machine gives the result its memory on the device.
func (*deviceOperator) reuse() {}

// CUDADo runs the scan. The values are on the device, and so is prealloc, which takes the result.
func (o *deviceOperator) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	err := o.onMachine(extern, dev, prealloc, resultShape(o.out), inputs, o.Arity(), func(r *scanRun) error {
		s, err := r.scan(o.operator, inputs)
		if err != nil {
			return err
		}
		into := r.packed(prealloc, o.out)
		y, final := r.take(into[0].Len()), cuda.Array[float32]{}
		if !into[1].Absent() {
			final = r.take(into[1].Len())
		}
		if r.err != nil {
			return r.err
		}
		if err := s.Forward(r.stream, y, final, cuda.Array[float32]{}); err != nil {
			return err
		}
		return r.pack(into, y, final)
	})
	return prealloc, err
}

// CUDADo runs the scan again for its checkpoints, and then backward.
func (o *deviceGradients) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	err := o.of.onMachine(extern, dev, prealloc, o.shape(), inputs, o.Arity(), func(r *scanRun) error {
		s, err := r.scan(o.of, inputs[:o.of.Arity()])
		if err != nil {
			return err
		}
		y, checkpoints := r.take(s.U.Len()), r.take(s.CheckpointLen())
		each := make([]cuda.Array[float32], len(o.of.in))
		for i, slot := range o.of.in {
			if slot.differentiable {
				each[i] = r.take(slot.shape.TotalSize())
			}
		}
		dout := r.packed(inputs[o.of.Arity()], o.of.out)
		dy, dfinal := r.aligned(dout[0]), r.aligned(dout[1])
		if r.err != nil {
			return r.err
		}
		if err := s.Forward(r.stream, y, cuda.Array[float32]{}, checkpoints); err != nil {
			return err
		}
		if err := s.Backward(r.stream, checkpoints, dy, dfinal, &cuda.ScanGrad[float32]{
			U: each[scanU], Delta: each[scanDelta], A: each[scanA], B: each[scanB], C: each[scanC],
			D: each[scanD], Z: each[scanZ], DeltaBias: each[scanDeltaBias], Initial: each[scanInitial],
		}); err != nil {
			return err
		}
		return r.pack(r.packed(prealloc, o.of.gradientShapes()), each...)
	})
	return prealloc, err
}

// onMachine calls run in the context of the machine's device, and waits until what it has queued is done.
func (o *operator) onMachine(
	extern G.External, dev G.Device, prealloc G.Value, result tensor.Shape, inputs []G.Value, arity int, run func(*scanRun) error,
) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("op: %v: %w", o.f, err)
		}
	}()
	machine, ok := extern.(G.CUDAMachine)
	switch {
	case !ok:
		return fmt.Errorf("machine is a %T, want a gorgonia.CUDAMachine", extern)
	case int(dev) < 0 || int(dev) >= len(machine.Engines()):
		return fmt.Errorf("device is %d, want one of the machine's %d", int(dev), len(machine.Engines()))
	case len(inputs) != arity:
		return fmt.Errorf("%d operands, want %d", len(inputs), arity)
	case prealloc == nil || prealloc.Dtype() != o.dt || !prealloc.Shape().Eq(result):
		return fmt.Errorf("prepared result is %v, want %v of shape %v", prealloc, o.dt, result)
	}
	runtime.LockOSThread() // a context is a thread's
	defer runtime.UnlockOSThread()
	e := &machine.Engines()[dev]
	// The machine's copies are queued, and done on a stream that ours does not wait for.
	if err := e.DoWork(); err != nil {
		return err
	}
	if err := cu.SetCurrentContext(e.Context().CUDAContext()); err != nil {
		return err
	}
	if err := cu.Synchronize(); err != nil {
		return err
	}
	stream, err := streamOf(e)
	if err != nil {
		return err
	}
	r := &scanRun{stream: stream}
	defer r.release()
	return errors.Join(run(r), stream.Synchronize())
}

// streams are those made in machines' contexts. A machine destroys its context with all that is in it, when it is closed; a
// context made later may have the same address, a weak pointer to an engine has not.
var streams = struct {
	sync.Mutex
	of map[weak.Pointer[engine.Engine]]*cuda.Stream
}{of: map[weak.Pointer[engine.Engine]]*cuda.Stream{}}

// streamOf returns the stream of an engine, whose context is current.
func streamOf(e *engine.Engine) (*cuda.Stream, error) {
	streams.Lock()
	defer streams.Unlock()
	key := weak.Make(e)
	if s := streams.of[key]; s != nil {
		return s, nil
	}
	if err := loadSum(e); err != nil {
		return nil, err
	}
	d, err := cuda.Current()
	if err != nil {
		return nil, err
	}
	s, err := d.NewStream()
	if err != nil {
		return nil, err
	}
	streams.of[key] = s
	runtime.AddCleanup(e, func(key weak.Pointer[engine.Engine]) {
		streams.Lock()
		defer streams.Unlock()
		delete(streams.of, key)
	}, key)
	return s, nil
}

// loadSum gives the engine the kernel by which the machine adds up the gradients of a node with several users, as those of a scan's
// two results; Gorgonia's release lacks it. (What gorgonia.AddToStdLib names is loaded when a machine is made, on a goroutine that
// may move to another thread, with another context, halfway.)
func loadSum(e *engine.Engine) error {
	if e.HasFunc("elembinop.add_vv_f32") {
		return nil
	}
	ptx, err := cuda.GorgoniaPTX()
	if err != nil {
		return err
	}
	return e.LoadCUDAFunc("elembinop", ptx, []string{"add_vv_f32", "add_vv_f64"})
}

// scanRun is an operator's one run. It remembers its first error.
type scanRun struct {
	stream *cuda.Stream
	taken  []interface{ Free() }
	err    error
}

func (r *scanRun) release() {
	for _, a := range r.taken {
		a.Free()
	}
}

// take returns an array that lives as long as the run.
func (r *scanRun) take(n int) cuda.Array[float32] {
	a, err := cuda.NewArray[float32](r.stream, n)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return a
	}
	r.taken = append(r.taken, a)
	return a
}

// aligned returns the array where the kernels may read four numbers at once: the machine's allocator gives any address.
func (r *scanRun) aligned(a cuda.Array[float32]) cuda.Array[float32] {
	if a.Absent() || a.Address()%16 == 0 {
		return a
	}
	b := r.take(a.Len())
	if r.err == nil {
		r.err = b.CopyOf(r.stream, a)
	}
	return b
}

// packed returns the arrays that are packed in a value; there are at least two, absent where there are not as many.
func (r *scanRun) packed(v G.Value, shapes []tensor.Shape) []cuda.Array[float32] {
	all := cuda.ArrayAt[float32](r.stream, v.Uintptr(), totalSize(shapes))
	parts, offset := make([]cuda.Array[float32], max(len(shapes), 2)), 0
	for i, s := range shapes {
		parts[i] = all.Slice(offset, s.TotalSize())
		offset += s.TotalSize()
	}
	return parts
}

// pack copies the arrays that there are into the parts of a packed value: not every part is aligned.
func (r *scanRun) pack(into []cuda.Array[float32], each ...cuda.Array[float32]) error {
	for _, a := range each {
		if a.Absent() {
			continue
		}
		if err := into[0].CopyOf(r.stream, a); err != nil {
			return err
		}
		into = into[1:]
	}
	return nil
}

// scan returns the scan of the operands that are there.
func (r *scanRun) scan(o *operator, inputs []G.Value) (*cuda.Scan[float32], error) {
	f := o.f.(*scan)
	var at [scanOperands]cuda.Array[float32]
	var start cuda.Array[uint8]
	for i, slot := range o.in {
		if !slot.present {
			continue
		}
		v := inputs[0]
		inputs = inputs[1:]
		if i == scanStart {
			start = r.start(v, slot)
			continue
		}
		at[i] = r.aligned(cuda.ArrayAt[float32](r.stream, v.Uintptr(), slot.shape.TotalSize()))
	}
	return &cuda.Scan[float32]{
		Batch: f.batch, Length: f.length, Channels: f.channels, State: f.state,
		U: at[scanU], Delta: at[scanDelta], A: at[scanA],
		B: cuda.Projection[float32]{Data: at[scanB], Groups: f.bGroups},
		C: cuda.Projection[float32]{Data: at[scanC], Groups: f.cGroups},
		D: at[scanD], Z: at[scanZ], DeltaBias: at[scanDeltaBias], Initial: at[scanInitial], Start: start,
		Softplus: f.DeltaSoftplus, Reverse: f.Reverse,
	}, r.err
}

// start uploads Start in the kernels' type. The machine's memory is managed, so that the host can read it.
func (r *scanRun) start(v G.Value, slot slot) cuda.Array[uint8] {
	o, err := operandOf(v, slot.dt, slot.shape)
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("operand Start %w", err))
		return cuda.Array[uint8]{}
	}
	flags := make([]uint8, slot.shape.TotalSize())
	for i, starts := range starts(o) {
		if starts {
			flags[i] = 1
		}
	}
	a, err := cuda.Upload(r.stream, flags)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return a
	}
	r.taken = append(r.taken, a)
	return a
}
