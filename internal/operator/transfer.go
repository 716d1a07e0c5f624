package operator

import (
	"fmt"
	"hash"
	"slices"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
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
	t := &transfer{place: p, up: up}
	switch {
	case x == nil || x.Graph() == nil:
		return nil, fmt.Errorf("op: %v: the node is missing or belongs to no graph, want a tensor of float32", t)
	case countable(x.Shape()) != nil:
		return nil, fmt.Errorf("op: %v: x %w", t, countable(x.Shape()))
	case x.Dtype() != tensor.Float32 || x.IsScalar():
		return nil, fmt.Errorf("op: %v: x is %v of shape %v, want a tensor of float32", t, x.Dtype(), x.Shape())
	}
	t.shape = x.Shape().Clone()
	return node.Apply(t, x)
}

// transfer is the operator of Upload and of Download.
type transfer struct {
	place Place
	up    bool
	shape tensor.Shape
	last  *Tensor
}

func (t *transfer) Arity() int                                     { return 1 }
func (t *transfer) InferShape(...G.DimSizer) (tensor.Shape, error) { return t.shape.Clone(), nil }
func (t *transfer) ReturnsPtr() bool                               { return true }
func (t *transfer) CallsExtern() bool                              { return false }
func (t *transfer) OverwritesInput() int                           { return -1 }
func (t *transfer) Hashcode() uint32                               { return hashcode(t) }
func (t *transfer) DiffWRT(int) []bool                             { return []bool{true} }

func (t *transfer) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

// Place returns where the result is.
func (t *transfer) Place() Place {
	if t.up {
		return t.place
	}
	return Place{}
}

func (t *transfer) Type() hm.Type {
	s := typeOf(tensor.Float32, t.shape)
	return hm.NewFnType(s, s)
}

func (t *transfer) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba %v %p %v %v", t, t.place.context, t.place.precision, t.shape)
}

func (t *transfer) String() string {
	if t.up {
		return "upload"
	}
	return "download"
}

func (t *transfer) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	n, err := t.place.transfer(grad, !t.up)
	return G.Nodes{n}, err
}

func (t *transfer) Do(values ...G.Value) (G.Value, error) {
	if !t.up {
		x, ok := values[0].(*Tensor)
		if !ok || !x.shape.Eq(t.shape) {
			return nil, fmt.Errorf("op: download: x is a %T of shape %v, want a tensor of shape %v on a device", values[0], values[0].Shape(), t.shape)
		}
		d, err := x.ToHost()
		if err != nil {
			return nil, fmt.Errorf("op: download: %w", err)
		}
		return d, nil
	}
	host, err := numbers[float32](values[0], t.shape)
	if err != nil {
		return nil, fmt.Errorf("op: upload: x %w", err)
	}
	err = t.place.context.Do(func(s *cuda.Stream) (err error) {
		t.last.drop()
		if t.last, err = t.place.allocate(t.shape); err != nil {
			return err
		}
		return t.last.buffer.array.CopyFrom(s, host)
	})
	if err != nil {
		return nil, fmt.Errorf("op: upload: %w", err)
	}
	return t.last, nil
}

// raise returns a node with Ints or Marks on the device. It has no derivative.
func (c *Context) raise(x *G.Node, kind Kind) (*G.Node, error) {
	return node.Apply(&raise{place: Place{context: c}, kind: kind, shape: x.Shape().Clone(), of: x.Dtype()}, x)
}

type raise struct {
	place Place
	kind  Kind
	shape tensor.Shape
	of    tensor.Dtype
	last  *raised
}

func (o *raise) Place() Place                                   { return o.place }
func (o *raise) Arity() int                                     { return 1 }
func (o *raise) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.shape.Clone(), nil }
func (o *raise) ReturnsPtr() bool                               { return true }
func (o *raise) CallsExtern() bool                              { return false }
func (o *raise) OverwritesInput() int                           { return -1 }
func (o *raise) Hashcode() uint32                               { return hashcode(o) }
func (o *raise) DiffWRT(int) []bool                             { return []bool{false} }

func (o *raise) String() string {
	return []string{"", "integers to a device", "marks to a device"}[o.kind]
}

func (o *raise) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba %v %p %v %v", o, o.place.context, o.shape, o.of)
}

func (o *raise) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v have no derivative", o)
}

func (o *raise) Type() hm.Type {
	return hm.NewFnType(typeOf(o.of, o.shape), typeOf(tensor.Int, o.shape))
}

func (o *raise) Do(values ...G.Value) (G.Value, error) {
	var (
		ints  []int
		ids   []int32
		marks []uint8
		err   error
	)
	if o.kind == Ints {
		ints, err = numbers[int](values[0], o.shape)
		for _, x := range ints {
			ids = append(ids, int32(x)) // an x that is no int32 is refused by the operator's check of ints
		}
	} else {
		marks, err = MarkBytes(values[0], o.shape)
	}
	if err != nil {
		return nil, fmt.Errorf("op: %v: the value %w", o, err)
	}
	err = o.place.context.Do(func(s *cuda.Stream) (err error) {
		if o.last == nil {
			r, err := o.place.newRaised(s, o.kind, o.shape)
			if err != nil {
				return err
			}
			a, b := r.ids, r.marks
			own(o.place.context, r, func() { a.Free(); b.Free() })
			o.last = r
		}
		o.last.ints = ints
		if o.kind == Ints {
			return o.last.ids.CopyFrom(s, ids)
		}
		return o.last.marks.CopyFrom(s, marks)
	})
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", o, err)
	}
	return o.last, nil
}

// newRaised returns Ints or Marks with memory on the device. The context must be locked.
func (p Place) newRaised(s *cuda.Stream, kind Kind, shape tensor.Shape) (r *raised, err error) {
	r = &raised{place: p, kind: kind, shape: slices.Clone(shape)}
	if kind == Ints {
		r.ids, err = cuda.NewArray[int32](s, shape.TotalSize())
	} else {
		r.marks, err = cuda.NewArray[uint8](s, shape.TotalSize())
	}
	return r, err
}
