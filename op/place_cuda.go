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
	"github.com/gomamba/mamba/internal/operator"
)

// A scan of float32 becomes an operator for the device of Gorgonia's CUDA machine.
func init() {
	operator.Replace = func(o G.Op) G.Op {
		switch o := o.(type) {
		case *operator.Operator:
			if f := machineScan(o); f != nil {
				return &deviceOperator{o, f}
			}
		case *operator.Gradients:
			if f := machineScan(o.Of()); f != nil {
				return &deviceGradients{o, f}
			}
		}
		return o
	}
}

// machineScan returns the function of a scan that the machine's device can run, or nil.
func machineScan(o *operator.Operator) *scan[float32] {
	if f, ok := o.Function().(*scan[float32]); ok && o.Place().OnHost() && f.state <= cuda.MaxState {
		return f
	}
	return nil
}

// deviceOperator is a scan that runs with the kernels of package cuda in Gorgonia's tape machine of the build tag cuda.
//
// The machine copies operands to the device in the order in which they are in memory, so they must be row-major. It has no kernels for
// Gorgonia's own elementwise operators: they are errors when the graph runs, except the sum of two tensors, for which loadSum loads a
// kernel. The other operators of this package run on the CPU. The value of a result's node is on the device: read it with gorgonia.Read.
// If a machine is closed before its first run, its Close may never return. This is a fault of Gorgonia's machine.
type deviceOperator struct {
	*operator.Operator
	f *scan[float32]
}

// deviceGradients is the gradient operator of a deviceOperator. Its packed result is copied to the CPU once, and the views of it run there.
type deviceGradients struct {
	*operator.Gradients
	f *scan[float32]
}

var (
	_ G.CUDADoer = (*SelectiveScanOp)(nil)
	_ G.CUDADoer = (*deviceOperator)(nil)
	_ G.CUDADoer = (*deviceGradients)(nil)
)

// CUDADo runs the scan of float32 on Gorgonia's CUDA machine. A state above cuda.MaxState is an error there.
func (o *SelectiveScanOp) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	f := machineScan(o.operator())
	if f == nil {
		return nil, fmt.Errorf("op: %v does not run on a CUDA machine, want float32 and a state of at most %d", o, cuda.MaxState)
	}
	return (&deviceOperator{o.operator(), f}).CUDADo(extern, dev, prealloc, inputs...)
}

// CUDADo runs the scan and writes the result into prealloc. All values are on the device.
func (o *deviceOperator) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	err := o.f.onMachine(extern, dev, prealloc, o.Results(), inputs, o.Arity(), func(r *scanRun) error {
		s, err := r.scan(o.f, o.Operator, inputs)
		if err != nil {
			return err
		}
		into := r.packed(prealloc, o.Results())
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

// CUDADo runs the scan again to get its checkpoints, then the backward pass.
func (o *deviceGradients) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	of := o.Of()
	err := o.f.onMachine(extern, dev, prealloc, o.Shapes(), inputs, o.Arity(), func(r *scanRun) error {
		s, err := r.scan(o.f, of, inputs[:of.Arity()])
		if err != nil {
			return err
		}
		y, checkpoints := r.take(s.U.Len()), r.take(s.CheckpointLen())
		shapes, differentiable := of.Slots()
		each := make([]cuda.Array[float32], len(shapes))
		for i, shape := range shapes {
			if differentiable[i] {
				each[i] = r.take(shape.TotalSize())
			}
		}
		dout := r.packed(inputs[of.Arity()], of.Results())
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
		return r.pack(r.packed(prealloc, o.Shapes()), each...)
	})
	return prealloc, err
}

// onMachine calls run in the CUDA context of the machine's device, and waits until the work that run has queued is done.
func (f *scan[T]) onMachine(
	extern G.External, dev G.Device, prealloc G.Value, results []tensor.Shape, inputs []G.Value, arity int, run func(*scanRun) error,
) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("op: %v: %w", f, err)
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
	case prealloc == nil || prealloc.Dtype() != tensor.Float32 || prealloc.Shape().TotalSize() != total(results):
		return fmt.Errorf("prepared result is %v, want float32 of the shapes %v", prealloc, results)
	}
	runtime.LockOSThread() // a CUDA context is current on one thread
	defer runtime.UnlockOSThread()
	e := &machine.Engines()[dev]
	// The machine queues its copies on a stream that our stream does not wait for.
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

func total(shapes []tensor.Shape) (n int) {
	for _, s := range shapes {
		n += s.TotalSize()
	}
	return n
}

// streams holds the stream of each machine's engine. A machine that is closed destroys its context with the streams in it. The key is a weak
// pointer to the engine and not the address of the context, since a later context may have the same address.
var streams = struct {
	sync.Mutex
	of map[weak.Pointer[engine.Engine]]*cuda.Stream
}{of: map[weak.Pointer[engine.Engine]]*cuda.Stream{}}

// streamOf returns the stream of an engine. The engine's context must be current.
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

// loadSum loads the kernel with which the machine adds the gradients of a node that several operators read, such as the packed results of a
// scan. Gorgonia's release lacks this kernel. It is not loaded with gorgonia.AddToStdLib: that loads when a machine is made, on a goroutine
// that may move to a thread with another context meanwhile.
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

// scanRun is one run of an operator. It collects errors in err.
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

// take returns a new array that is freed at the end of the run.
func (r *scanRun) take(n int) cuda.Array[float32] {
	a, err := cuda.NewArray[float32](r.stream, n)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return a
	}
	r.taken = append(r.taken, a)
	return a
}

// aligned returns a, or a copy if a is not aligned to 16 bytes, since the kernels read four numbers at once. The machine's allocator may
// return any address.
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

// packed returns the arrays that are packed in a value. It adds absent arrays to return at least two.
func (r *scanRun) packed(v G.Value, shapes []tensor.Shape) []cuda.Array[float32] {
	all := cuda.ArrayAt[float32](r.stream, v.Uintptr(), total(shapes))
	parts, offset := make([]cuda.Array[float32], max(len(shapes), 2)), 0
	for i, s := range shapes {
		parts[i] = all.Slice(offset, s.TotalSize())
		offset += s.TotalSize()
	}
	return parts
}

// pack copies the arrays that are present into the parts of a packed value. The kernels cannot write there directly, since parts may be
// unaligned.
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

// scan returns the scan of an operator's operands on the device.
func (r *scanRun) scan(f *scan[float32], o *operator.Operator, inputs []G.Value) (*cuda.Scan[float32], error) {
	var at [scanOperands]cuda.Array[float32]
	var start cuda.Array[uint8]
	shapes, _ := o.Slots()
	for i, shape := range shapes {
		if shape == nil {
			continue
		}
		v := inputs[0]
		inputs = inputs[1:]
		if i == scanStart {
			start = r.start(v, shape)
			continue
		}
		at[i] = r.aligned(cuda.ArrayAt[float32](r.stream, v.Uintptr(), shape.TotalSize()))
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

// start uploads Start in the type that the kernels take. The machine's memory is managed, so the host can read it.
func (r *scanRun) start(v G.Value, shape tensor.Shape) cuda.Array[uint8] {
	marks, err := operator.MarksOf(v, shape)
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("operand Start %w", err))
		return cuda.Array[uint8]{}
	}
	flags := make([]uint8, len(marks))
	for i := range marks {
		if marks[i] {
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
