package operator

import (
	"fmt"
	"math"
	"slices"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/work"
)

// Upload returns a node with the value of x on the place's device. x is a tensor of float32 on the host. The derivative of Upload is Download.
// Errors: an x that is missing, a scalar, of another type, or on a device already.
func (p Place) Upload(x *G.Node) (*G.Node, error) {
	if err := p.context.check(); err != nil {
		return nil, err
	}
	if at := PlaceOf(x); !at.OnHost() {
		return nil, fmt.Errorf("op: upload: x is on %v, want a node on the host", at)
	}
	return p.transfer(x, true)
}

// Download returns a node with the value of x on the host. The value of x is on a device. The derivative of Download is Upload. Errors: an x that
// is missing, or not on a device.
func Download(x *G.Node) (*G.Node, error) {
	p := PlaceOf(x)
	if p.OnHost() {
		return nil, fmt.Errorf("op: download: x is %v on the host, want a node on a device", x)
	}
	return p.transfer(x, false)
}

func (p Place) transfer(x *G.Node, up bool) (*G.Node, error) {
	t := p.newTransfer(up, nil, nil)
	switch {
	case x == nil || x.Graph() == nil:
		return nil, fmt.Errorf("op: %v: the node is missing or belongs to no graph, want a tensor of float32", t)
	case countable(x.Shape()) != nil:
		return nil, fmt.Errorf("op: %v: x %w", t, countable(x.Shape()))
	case x.Dtype() != tensor.Float32 || x.IsScalar():
		return nil, fmt.Errorf("op: %v: x is %v of shape %v, want a tensor of float32", t, x.Dtype(), x.Shape())
	}
	return node.Apply(p.newTransfer(up, x.Shape(), x.Shape()), x)
}

// unary is what the operators of one operand share. They move values and compute nothing.
type unary struct{ frame }

func newUnary(name string, place Place, dt tensor.Dtype, of tensor.Shape, toDt tensor.Dtype, to tensor.Shape) unary {
	return unary{frame{name: name, place: place, in: []slot{{dt: dt, shape: of, present: true}}, dt: toDt, to: to}}
}

// of returns the shape of the operand.
func (u *unary) of() tensor.Shape { return u.in[0].shape }

func (u *unary) CallsExtern() bool                                 { return false }
func (u *unary) DiffWRT(int) []bool                                { return []bool{true} }
func (u *unary) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

// constant is an operator without a derivative.
type constant struct{ unary }

func (c *constant) DiffWRT(int) []bool { return []bool{false} }
func (c *constant) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v has no derivative", c)
}

// transfer is the operator of Upload and of Download. A shape on the host may be that of a scalar, and is then (1) on the device.
type transfer struct {
	unary
	device Place
	up     bool
	last   *Tensor
	reads  int      // see FreeAfterUse
	number *float32 // the last upload of a single number
}

func (p Place) newTransfer(up bool, of, to tensor.Shape) *transfer {
	name, place := "download", Place{}
	if up {
		name, place = "upload", p
	}
	return &transfer{unary: newUnary(name, place, tensor.Float32, of, tensor.Float32, to), device: p, up: up}
}

// SymDiff names the transfer after x: the gradients of two values can be one node on the host, and each needs a copy on the device, because a
// gradient there is dropped after its only reader.
func (t *transfer) SymDiff(x G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	back := t.device.newTransfer(!t.up, t.to, t.of())
	back.name += fmt.Sprintf(" of a gradient, %08x", x[0].Hashcode())
	n, err := node.Apply(back, grad)
	return G.Nodes{n}, err
}

func (t *transfer) Do(values ...G.Value) (v G.Value, err error) {
	if t.up {
		v, err = t.upload(values[0])
	} else {
		v, err = t.download(values[0])
	}
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", t, err)
	}
	return v, nil
}

func (t *transfer) download(v G.Value) (G.Value, error) {
	x, ok := v.(*Tensor)
	if !ok || !x.shape.Eq(t.of()) {
		return nil, fmt.Errorf("x is a %T of shape %v, want a tensor of shape %v on a device", v, v.Shape(), t.of())
	}
	d, err := x.ToHost()
	if err == nil {
		err = x.place.context.Do(func(*cuda.Stream) error { x.read(); return nil })
	}
	if err == nil && t.to.IsScalar() {
		return G.NewF32(floats(d)[0]), nil
	}
	return d, err
}

func (t *transfer) upload(v G.Value) (G.Value, error) {
	host, err := numbers[float32](v, t.of())
	if err != nil {
		return nil, fmt.Errorf("x %w", err)
	}
	err = t.place.context.Do(func(s *cuda.Stream) (err error) {
		t.last.drop()
		if t.last, err = t.place.allocate(t.to); err != nil {
			return err
		}
		t.last.reads = []int{t.reads}
		if len(host) == 1 { // the gradient of a loss is the same in most steps; then it is a part of the work that is replayed
			x := host[0]
			again := t.number != nil && *t.number == x
			if t.number = &x; again {
				return cuda.Set(s, t.last.buffer.array, x)
			}
		}
		return t.last.buffer.array.CopyFrom(s, host)
	})
	return t.last, err
}

// raise returns a node with Ints or Marks on the device. It has no derivative.
func (c *Context) raise(x *G.Node, kind Kind) (*G.Node, error) {
	name := []string{"", "integers to a device", "marks to a device"}[kind]
	u := newUnary(name, Place{context: c}, x.Dtype(), x.Shape(), tensor.Int, x.Shape())
	return node.Apply(&raise{constant: constant{u}, kind: kind}, x)
}

type raise struct {
	constant
	kind Kind
	last *raised
	ids  []int32 // those of the last run; their memory is reused
}

func (o *raise) Do(values ...G.Value) (v G.Value, err error) {
	var ints []int
	var marks []uint8
	if o.kind == Ints {
		ints, err = numbers[int](values[0], o.to)
	} else {
		marks, err = MarkBytes(values[0], o.to)
	}
	if err != nil {
		return nil, fmt.Errorf("op: %v: the value %w", o, err)
	}
	err = o.place.context.Do(func(s *cuda.Stream) error {
		if o.last == nil {
			r, err := o.place.newRaised(s, o.kind, o.to)
			if err != nil {
				return err
			}
			a, b := r.ids, r.marks
			own(o.place.context, r, func() { a.Free(); b.Free() })
			o.last = r
		}
		o.last.ints, o.last.checked = ints, o.last.checked[:0]
		if o.kind == Ints {
			o.ids = slices.Grow(o.ids[:0], len(ints))[:len(ints)]
			o.last.least, o.last.most = int32sOf(o.ids, ints)
			return o.last.ids.CopyFrom(s, o.ids)
		}
		return o.last.marks.CopyFrom(s, marks)
	})
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", o, err)
	}
	return o.last, nil
}

// int32sOf writes the numbers of from as integers are on a device, and returns the least and the most of them.
func int32sOf(to []int32, from []int) (least, most int) {
	least, most = math.MaxInt, math.MinInt
	var mu sync.Mutex
	work.ParallelRange(len(from), 1<<14, func(begin, end int) {
		low, high, ids := math.MaxInt, math.MinInt, to[begin:end]
		for i, x := range from[begin:end] {
			ids[i], low, high = int32(x), min(low, x), max(high, x)
		}
		if low < math.MinInt32 || high > math.MaxInt32 {
			for i, x := range from[begin:end] {
				ids[i] = Int32(x)
			}
		}
		mu.Lock()
		least, most = min(least, low), max(most, high)
		mu.Unlock()
	})
	return least, most
}

// Int32 returns x as integers are on a device: the nearest number that an int32 holds.
func Int32(x int) int32 { return int32(min(max(x, math.MinInt32), math.MaxInt32)) }

// newRaised returns Ints or Marks with memory on the device. The context must be locked.
func (p Place) newRaised(s *cuda.Stream, kind Kind, shape tensor.Shape) (r *raised, err error) {
	r = &raised{onPlace: onPlace{p, shape.Clone()}, kind: kind}
	if kind == Ints {
		r.ids, err = cuda.NewArray[int32](s, shape.TotalSize())
	} else {
		r.marks, err = cuda.NewArray[uint8](s, shape.TotalSize())
	}
	return r, err
}
