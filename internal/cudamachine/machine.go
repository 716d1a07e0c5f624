//go:build cuda

package cudamachine

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

// Use makes the machine run the operators on its device whose function is allowed, and their gradients. An allowed function computes in float32,
// implements operator.OnDevice, supports its sizes (operator.Limited), and has operands of Numbers and Marks, and tensors as results.
func Use(allowed func(function any) bool) {
	operator.Replace = func(o G.Op) G.Op {
		switch o := o.(type) {
		case *operator.Operator:
			if o.Place().OnHost() && allowed(o.Function()) {
				return &forward{o}
			}
		case *operator.Gradients:
			if o.Place().OnHost() && allowed(o.Of().Function()) {
				return &backward{o}
			}
		}
		return o
	}
}

// forward is an operator that runs in Gorgonia's tape machine of the build tag cuda.
//
// The machine copies operands to the device in the order in which they are in memory, so they must be row-major. It has no kernels for
// Gorgonia's own elementwise operators: they are errors when the graph runs, except the sum of two tensors, for which loadSum loads a
// kernel. The other operators of this library run on the CPU. The value of a result's node is on the device: read it with gorgonia.Read.
// If a machine is closed before its first run, its Close may never return. This is a fault of Gorgonia's machine.
type forward struct{ *operator.Operator }

// backward is the operator of a forward's gradients. Its packed result is copied to the CPU once, and the views of it run there.
type backward struct{ *operator.Gradients }

var (
	_ G.CUDADoer = (*forward)(nil)
	_ G.CUDADoer = (*backward)(nil)
)

// CUDADo runs the function and writes the results into prealloc. All values are on the device.
func (o *forward) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	return run(o.Operator, extern, dev, prealloc, o.Results(), inputs, o.Arity(), func(c *call) ([]array, error) {
		in, out := c.operands(o.Operator, inputs), c.arrays(o.Results())
		if c.err != nil {
			return nil, c.err
		}
		_, err := c.f.ForwardOn(c.stream, cuda.Strict, in, out, false)
		return out, err
	})
}

// CUDADo runs the function again to get the values that it keeps, then the backward pass.
func (o *backward) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	of := o.Of()
	return run(of, extern, dev, prealloc, o.Shapes(), inputs, o.Arity(), func(c *call) ([]array, error) {
		in, out := c.operands(of, inputs), c.arrays(of.Results())
		dout := c.unpack(inputs[of.Arity()], of.Results())
		shapes, _, differentiable := of.Slots()
		for i := range shapes {
			if !differentiable[i] {
				shapes[i] = nil
			}
		}
		grad := c.arrays(shapes)
		for i := range dout {
			dout[i] = c.aligned(dout[i])
		}
		if c.err != nil {
			return nil, c.err
		}
		kept, err := c.f.ForwardOn(c.stream, cuda.Strict, in, out, true)
		if err != nil {
			return nil, err
		}
		if kept != nil {
			c.frees = append(c.frees, kept.Free)
		}
		return grad, c.f.BackwardOn(c.stream, cuda.Strict, in, dout, grad, kept)
	})
}

// run calls f in the CUDA context of the machine's device, copies the arrays that f returns into prealloc, and waits until all of the work is done.
func run(
	o *operator.Operator, extern G.External, dev G.Device, prealloc G.Value, results []tensor.Shape, inputs []G.Value, arity int,
	f func(*call) ([]array, error),
) (_ G.Value, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("op: %v: %w", o, err)
		}
	}()
	machine, ok := extern.(G.CUDAMachine)
	switch {
	case !ok:
		return nil, fmt.Errorf("machine is a %T, want a gorgonia.CUDAMachine", extern)
	case int(dev) < 0 || int(dev) >= len(machine.Engines()):
		return nil, fmt.Errorf("device is %d, want one of the machine's %d", int(dev), len(machine.Engines()))
	case len(inputs) != arity:
		return nil, fmt.Errorf("%d operands, want %d", len(inputs), arity)
	case prealloc == nil || prealloc.Dtype() != tensor.Float32 || prealloc.Shape().TotalSize() != total(results):
		return nil, fmt.Errorf("prepared result is %v, want float32 of the shapes %v", prealloc, results)
	}
	runtime.LockOSThread() // a CUDA context is current on one thread
	defer runtime.UnlockOSThread()
	e := &machine.Engines()[dev]
	// The machine queues its copies on a stream that our stream does not wait for.
	if err := e.DoWork(); err != nil {
		return nil, err
	}
	if err := cu.SetCurrentContext(e.Context().CUDAContext()); err != nil {
		return nil, err
	}
	if err := cu.Synchronize(); err != nil {
		return nil, err
	}
	stream, err := streamOf(e)
	if err != nil {
		return nil, err
	}
	c := &call{f: o.Function().(operator.OnDevice), stream: stream}
	defer c.release()
	each, err := f(c)
	if err == nil {
		err = c.pack(c.unpack(prealloc, results), each)
	}
	return prealloc, errors.Join(err, stream.Synchronize())
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
