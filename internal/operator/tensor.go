package operator

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync/atomic"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// buffer is device memory that several values may share. It is freed when the last reference is released, or, since Gorgonia drops values
// without notice, after the garbage collector has found it.
type buffer struct {
	array cuda.Array[float32]
	refs  atomic.Int32
	undo  runtime.Cleanup
}

// newBuffer allocates a buffer of n elements with one reference. The context must be locked.
func (c *Context) newBuffer(n int) (*buffer, error) {
	a, err := cuda.NewArray[float32](c.stream, n)
	if err != nil {
		return nil, err
	}
	b := &buffer{array: a}
	b.refs.Store(1)
	b.undo = own(c, b, a.Free)
	return b, nil
}

func (b *buffer) release() {
	if b != nil && b.refs.Add(-1) == 0 {
		b.undo.Stop()
		b.array.Free()
	}
}

// onPlace is what the values on a device have in common. Its methods are those of gorgonia.Value that do not depend on the elements.
type onPlace struct {
	place Place
	shape tensor.Shape
}

func (v *onPlace) Place() Place        { return v.place }
func (v *onPlace) Shape() tensor.Shape { return v.shape }
func (v *onPlace) Size() int           { return v.shape.TotalSize() }
func (v *onPlace) MemSize() uintptr    { return uintptr(4 * v.Size()) }
func (v *onPlace) Uintptr() uintptr    { return 0 }

// dense provides the unexported methods of tensor.Tensor. The methods of onPlace hide the others.
type dense struct{ *tensor.Dense }

// Tensor is a Gorgonia value: numbers of float32 in a device's memory. It implements as much of tensor.Tensor as Gorgonia's machines need.
// They add gradients, which is done on the device. Other operations return errors.
type Tensor struct {
	dense // the shell
	onPlace
	buffer *buffer   // nil for zeros, which take no memory, and if weight is set
	weight *Weight   // the weight whose numbers the tensor shows, if any
	parts  []*Tensor // the tensors of a packed value; a nil element is zero
	sums   []*Tensor // sums of this tensor and others that Gorgonia made, which are dropped with it
	kept   atomic.Pointer[keptOnDevice]
	// reads says when the tensor is freed (see FreeAfterUse): the number of operators that have yet to read it, or 0 if it stays; then that number of the sum
	// that Gorgonia makes of it as the first operand, of the sum that it makes of this sum, and so on.
	reads  []int
	repeat func() error // computes the numbers again after they were freed; nil if nothing can. The context must be locked
	gone   bool
}

// keptOnDevice holds the values that a forward pass keeps for the backward pass.
type keptOnDevice struct {
	Kept
	undo runtime.Cleanup
}

// release frees the kept values. The context must be locked.
func (k *keptOnDevice) release() {
	if k.Kept != nil {
		k.undo.Stop()
		k.Free()
	}
}

var errGone = fmt.Errorf("was overwritten when its operator ran again, or freed after its last use; run one machine of a graph at a time, " +
	"and name values that you read to op.FreeAfterUse")

// shell is an empty Dense that carries our engine, so that package tensor calls the engine for sums.
var shell = func() *tensor.Dense {
	d := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(1))
	tensor.WithEngine(engine{})(d)
	return d
}()

var _ tensor.Tensor = (*Tensor)(nil)

// allocate returns a tensor with memory of its own. The context must be locked.
func (p Place) allocate(shape tensor.Shape) (*Tensor, error) {
	t := p.Zeros(shape)
	var err error
	t.buffer, err = p.context.newBuffer(shape.TotalSize())
	return t, err
}

// Zeros returns a tensor of zeros on a device. It takes no memory before it is used.
func (p Place) Zeros(shape tensor.Shape) *Tensor {
	return &Tensor{dense: dense{shell}, onPlace: onPlace{p, shape.Clone()}}
}

// drop releases the tensor's memory and kept values. Reading the tensor is an error afterwards. The context must be locked.
func (t *Tensor) drop() {
	if t == nil {
		return
	}
	t.buffer.release()
	t.buffer, t.weight, t.repeat, t.gone = nil, nil, nil, true
	if k := t.kept.Swap(nil); k != nil {
		k.release()
	}
	for _, p := range slices.Concat(t.parts, t.sums) {
		p.drop()
	}
	t.sums = nil
}

// read notes that an operator, or a sum that Gorgonia makes, has read the tensor. After the last one it frees the memory, but not the kept values and the
// sums. The context must be locked.
func (t *Tensor) read() {
	if len(t.reads) == 0 || t.reads[0] == 0 {
		return
	}
	t.reads = append([]int{t.reads[0] - 1}, t.reads[1:]...)
	if t.reads[0] == 0 {
		t.buffer.release()
		t.buffer, t.weight, t.gone = nil, nil, true
	}
}

// share returns another tensor with the same memory.
func (t *Tensor) share() *Tensor {
	if t == nil {
		return nil
	}
	s := t.place.Zeros(t.shape)
	if s.weight, s.gone = t.weight, t.gone; t.buffer != nil {
		t.buffer.refs.Add(1)
		s.buffer = t.buffer
	}
	return s
}

// array returns the tensor's memory. If a tensor of zeros has none yet, array allocates it. The context must be locked.
func (t *Tensor) array() (cuda.Array[float32], error) {
	switch {
	case t.gone:
		return cuda.Array[float32]{}, errGone
	case t.buffer != nil:
		return t.buffer.array, nil
	case t.weight != nil:
		return t.weight.Array()
	}
	b, err := t.place.context.newBuffer(t.shape.TotalSize())
	if err != nil {
		return cuda.Array[float32]{}, err
	}
	t.buffer = b
	return b.array, b.array.Fill(t.place.context.stream, 0)
}

// zero reports whether the tensor stands for zeros without memory.
func (t *Tensor) zero() bool {
	return t == nil || !t.gone && t.buffer == nil && t.weight == nil && t.parts == nil
}

// add adds v to t. The context must be locked.
func (t *Tensor) add(v *Tensor) error {
	if v.zero() {
		return nil
	}
	if t.parts != nil || v.parts != nil {
		for i, p := range v.parts {
			if t.parts == nil {
				t.parts = make([]*Tensor, len(v.parts))
			}
			switch {
			case p == nil:
			case t.parts[i] == nil:
				t.parts[i] = p.share()
			default:
				if err := t.parts[i].add(p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if t.zero() && v.buffer != nil {
		v.buffer.refs.Add(1) // zero + v shares v's memory
		t.buffer = v.buffer
		return nil
	}
	a, err := t.array()
	if err != nil {
		return err
	}
	b, err := v.array()
	if err != nil {
		return err
	}
	to := t.buffer
	if to == nil || to.refs.Load() > 1 { // other tensors share t's memory, so the sum needs memory of its own
		if to, err = t.place.context.newBuffer(t.shape.TotalSize()); err != nil {
			return err
		}
	}
	if err := cuda.Add(t.place.context.stream, a, b, to.array); err != nil {
		return err
	}
	if to != t.buffer {
		t.buffer.release()
		t.buffer, t.weight = to, nil
	}
	return nil
}

// ToHost returns a copy of the tensor on the host.
func (t *Tensor) ToHost() (*tensor.Dense, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	d := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(t.shape.Clone()...))
	if t.zero() {
		return d, nil
	}
	return d, t.place.context.Do(func(s *cuda.Stream) error {
		a, err := t.array()
		if err != nil {
			return err
		}
		return a.CopyTo(s, floats(d))
	})
}

// FromHost replaces the tensor's numbers. Other values that share its memory keep theirs. It is an error if there are not as many.
func (t *Tensor) FromHost(numbers []float32) error {
	if err := t.check(); err != nil {
		return err
	}
	if len(numbers) != t.shape.TotalSize() {
		return fmt.Errorf("op: %d numbers for a tensor of shape %v, want %d", len(numbers), t.shape, t.shape.TotalSize())
	}
	return t.place.context.Do(func(s *cuda.Stream) error {
		b, err := t.place.context.newBuffer(len(numbers))
		if err != nil {
			return err
		}
		if err := b.array.CopyFrom(s, numbers); err != nil {
			b.release()
			return err
		}
		t.drop()
		t.parts, t.gone, t.buffer = nil, false, b
		return nil
	})
}

// Array returns the tensor's device memory. Call it and use the array inside the context's Do, before the operator that made the tensor runs
// again.
func (t *Tensor) Array() (cuda.Array[float32], error) {
	if err := t.check(); err != nil {
		return cuda.Array[float32]{}, err
	}
	return t.array()
}

// check returns an error if no operator made the tensor.
func (t *Tensor) check() error {
	if t == nil || t.place.OnHost() {
		return fmt.Errorf("op: the tensor is missing, want the result of an operator on a device")
	}
	return nil
}

// The methods below implement gorgonia.Value and tensor.Tensor.

func (t *Tensor) Dims() int                     { return t.shape.Dims() }
func (t *Tensor) DataSize() int                 { return t.shape.TotalSize() }
func (t *Tensor) Strides() []int                { return t.shape.CalcStrides() }
func (t *Tensor) Dtype() tensor.Dtype           { return tensor.Float32 }
func (t *Tensor) IsScalar() bool                { return false }
func (t *Tensor) ScalarValue() any              { return nil }
func (t *Tensor) Engine() tensor.Engine         { return engine{t.place.context, t} }
func (t *Tensor) IsNativelyAccessible() bool    { return false }
func (t *Tensor) IsManuallyManaged() bool       { return true }
func (t *Tensor) RequiresIterator() bool        { return false }
func (t *Tensor) Format(s fmt.State, verb rune) { fmt.Fprint(s, t.String()) }
func (t *Tensor) String() string {
	return fmt.Sprintf("%v of float32 on %s", t.shape, t.place.context.name())
}
func (t *Tensor) Eq(other any) bool { return t == other }

// IsView, IsMaterializable and Materialize override the methods of the embedded Dense. With those, package tensor would take the tensor for a
// view and replace it by the Dense.
func (t *Tensor) IsView() bool               { return false }
func (t *Tensor) IsMaterializable() bool     { return false }
func (t *Tensor) Materialize() tensor.Tensor { return t }

// Data returns a copy of the tensor's elements on the host, a []float32. If the copy fails, all elements are NaN.
func (t *Tensor) Data() any { return t.Clone().(*tensor.Dense).Data() }

// Clone returns a copy of the tensor on the host, as gorgonia.Read needs it. If the copy fails, all elements are NaN.
func (t *Tensor) Clone() any {
	d, err := t.ToHost()
	if d == nil {
		d = tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(1))
	}
	if err != nil { // Clone cannot return the error, but the next operator on the device will
		for i := range floats(d) {
			floats(d)[i] = float32(math.NaN())
		}
	}
	return d
}

// Zero sets the tensor to zero and releases its memory.
func (t *Tensor) Zero() {
	if t.check() != nil {
		return
	}
	t.place.context.mu.Lock()
	defer t.place.context.mu.Unlock()
	Clear(t)
}

// Clear is Tensor.Zero inside the context's Do.
func Clear(t *Tensor) {
	t.drop()
	t.parts, t.gone = nil, false
}

// Discard frees the memory of a gradient that no operator reads (see FreeAfterUse). Reading it is an error afterwards.
func (t *Tensor) Discard() {
	if t.check() != nil {
		return
	}
	t.place.context.mu.Lock()
	defer t.place.context.mu.Unlock()
	if len(t.reads) == 0 || t.reads[0] == 0 {
		t.drop()
	}
}

var errOnDevice = fmt.Errorf("op: the tensor is on a device; Download it first")

func (t *Tensor) At(...int) (any, error)                              { return nil, errOnDevice }
func (t *Tensor) SetAt(any, ...int) error                             { return errOnDevice }
func (t *Tensor) Reshape(...int) error                                { return errOnDevice }
func (t *Tensor) T(...int) error                                      { return errOnDevice }
func (t *Tensor) UT()                                                 {}
func (t *Tensor) Transpose() error                                    { return errOnDevice }
func (t *Tensor) Apply(any, ...tensor.FuncOpt) (tensor.Tensor, error) { return nil, errOnDevice }
func (t *Tensor) Slice(...tensor.Slice) (tensor.View, error)          { return nil, errOnDevice }
func (t *Tensor) Memset(any) error                                    { return errOnDevice }
func (t *Tensor) WriteNpy(io.Writer) error                            { return errOnDevice }
func (t *Tensor) ReadNpy(io.Reader) error                             { return errOnDevice }
func (t *Tensor) GobEncode() ([]byte, error)                          { return nil, errOnDevice }
func (t *Tensor) GobDecode([]byte) error                              { return errOnDevice }

// engine is the tensor.Engine of a Tensor. It implements what Gorgonia asks for: addition, and the copy to the host of gorgonia.Read.
type engine struct {
	context *Context
	of      *Tensor
}

var _ tensor.Adder = engine{}

// Add returns the sum of two tensors on one device, in place if the options ask for it.
func (e engine) Add(a, b tensor.Tensor, opts ...tensor.FuncOpt) (tensor.Tensor, error) {
	x, ok := a.(*Tensor)
	y, ok2 := b.(*Tensor)
	if !ok || !ok2 || x.place != y.place || !x.shape.Eq(y.shape) {
		return nil, fmt.Errorf("op: sum of a %T of shape %v and a %T of shape %v, want two tensors of one shape on one device", a, a.Shape(), b, b.Shape())
	}
	e.context.mu.Lock()
	defer e.context.mu.Unlock()
	e.context.bury()
	// A packed value is the result of a scatter. Only this sum reads it, so adding in place is safe.
	sum, next := x, x.reads[min(len(x.reads), 1):]
	if o := tensor.ParseFuncOpts(opts...); o.Safe() && x.parts == nil {
		sum = x.share()
		x.sums = append(x.sums, sum)
		if x != y {
			x.read() // if this sum is the last reader, it is written into the memory of x
		}
	}
	err := sum.add(y)
	if y.parts != nil && x != y {
		y.drop()
	}
	y.read()
	sum.reads = next
	return sum, err
}

// Memcpy copies the engine's tensor into the memory of a Dense. If the copy fails, all elements are NaN, since package tensor panics after an
// error.
func (e engine) Memcpy(to, _ tensor.Memory) error {
	d, ok := to.(interface{ Data() any })
	if !ok || e.of == nil {
		return errOnDevice
	}
	if v, ok := d.Data().([]float32); ok {
		copy(v, e.of.Data().([]float32))
	}
	return nil
}

// AddScalar is an error.
func (engine) AddScalar(tensor.Tensor, any, bool, ...tensor.FuncOpt) (tensor.Tensor, error) {
	return nil, errOnDevice
}

func (engine) AllocAccessible() bool                           { return false }
func (engine) Alloc(int64) (tensor.Memory, error)              { return nil, errOnDevice }
func (engine) Free(tensor.Memory, int64) error                 { return errOnDevice }
func (engine) Memset(tensor.Memory, any) error                 { return errOnDevice }
func (engine) Memclr(tensor.Memory)                            {}
func (engine) Accessible(tensor.Memory) (tensor.Memory, error) { return nil, errOnDevice }
func (engine) WorksWith(tensor.DataOrder) bool                 { return false }

func floats(d *tensor.Dense) []float32 {
	switch v := d.Data().(type) {
	case []float32:
		return v
	case float32:
		return []float32{v}
	}
	return nil
}
