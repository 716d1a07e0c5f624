package graph

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
)

// Upload returns a node with the value of x on the device. x is a tensor of float32 on the host. The derivative of Upload is Download.
// Errors: an x that is missing, a scalar, or of another type.
func (c *Context) Upload(x *G.Node) (*G.Node, error) { return c.transfer(x, true) }

// Download returns a node with the value of x on the host. The value of x is on the device. The derivative of Download is Upload. Its
// errors are those of Upload.
func (c *Context) Download(x *G.Node) (*G.Node, error) { return c.transfer(x, false) }

func (c *Context) transfer(x *G.Node, up bool) (*G.Node, error) {
	t := &transfer{context: c, up: up}
	if err := c.check(); err != nil {
		return nil, err
	}
	switch {
	case x == nil || x.Graph() == nil:
		return nil, fmt.Errorf("graph: %v: the node is missing or belongs to no graph, want a tensor of float32", t)
	case countable(x.Shape()) != nil:
		return nil, fmt.Errorf("graph: %v: x %w", t, countable(x.Shape()))
	case x.Dtype() != tensor.Float32 || x.IsScalar():
		return nil, fmt.Errorf("graph: %v: %v %v, want a tensor of float32", t, x.Dtype(), x.Shape())
	}
	t.shape = x.Shape().Clone()
	return node.Apply(t, x)
}

// transfer is the operator of Upload and of Download.
type transfer struct {
	context *Context
	up      bool
	shape   tensor.Shape
	last    *Tensor
}

func (t *transfer) Arity() int                                     { return 1 }
func (t *transfer) InferShape(...G.DimSizer) (tensor.Shape, error) { return t.shape.Clone(), nil }
func (t *transfer) ReturnsPtr() bool                               { return true }
func (t *transfer) CallsExtern() bool                              { return false }
func (t *transfer) OverwritesInput() int                           { return -1 }
func (t *transfer) Hashcode() uint32                               { return hashcode(t) }
func (t *transfer) DiffWRT(int) []bool                             { return []bool{true} }

func (t *transfer) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

func (t *transfer) Type() hm.Type {
	s := typeOf(tensor.Float32, t.shape)
	return hm.NewFnType(s, s)
}

func (t *transfer) WriteHash(h hash.Hash) { fmt.Fprintf(h, "mamba %v %p %v", t, t.context, t.shape) }

func (t *transfer) String() string {
	if t.up {
		return "upload"
	}
	return "download"
}

func (t *transfer) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	n, err := t.context.transfer(grad, !t.up)
	return G.Nodes{n}, err
}

func (t *transfer) Do(values ...G.Value) (G.Value, error) {
	if !t.up {
		x, ok := values[0].(*Tensor)
		if !ok || !x.shape.Eq(t.shape) {
			return nil, fmt.Errorf("graph: download: x is a %T of shape %v, want a tensor of shape %v on a device", values[0], values[0].Shape(), t.shape)
		}
		d, err := x.ToHost()
		if err != nil {
			return nil, fmt.Errorf("graph: download: %w", err)
		}
		return d, nil
	}
	host, err := hostOf(values[0], t.shape)
	if err != nil {
		return nil, fmt.Errorf("graph: upload: %w", err)
	}
	err = t.context.Do(func(s *cuda.Stream) (err error) {
		t.last.drop()
		if t.last, err = t.context.allocate(t.shape); err != nil {
			return err
		}
		return t.last.buffer.array.CopyFrom(s, host)
	})
	if err != nil {
		return nil, fmt.Errorf("graph: upload: %w", err)
	}
	return t.last, nil
}

// hostOf returns the numbers of a value on the host, row by row.
func hostOf(v G.Value, shape tensor.Shape) ([]float32, error) {
	t, ok := v.(tensor.Tensor)
	if _, device := v.(*Tensor); !ok || device || !v.Shape().Eq(shape) || v.Dtype() != tensor.Float32 {
		return nil, fmt.Errorf("x is a %T of %v %v, want a tensor of float32 and shape %v on the host", v, v.Dtype(), v.Shape(), shape)
	}
	d, ok := t.(*tensor.Dense)
	if !ok { // a type that embeds a Dense, such as op's keeping
		d = t.Clone().(*tensor.Dense)
	}
	if d.RequiresIterator() || !d.DataOrder().IsRowMajor() || d.DataOrder().IsTransposed() {
		plain := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(shape.Clone()...))
		if err := tensor.Copy(plain, d); err != nil {
			return nil, err
		}
		d = plain
	}
	return floats(d), nil
}

// Starts returns a node with the marks of sequence starts on the device, for the operators that take them. start has shape (batch,
// length), of int or float32, on the host; a number other than 0 marks a start. Errors: a start that is missing, or of another type or
// shape.
func (c *Context) Starts(start *G.Node) (*G.Node, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if start == nil || start.Graph() == nil || countable(start.Shape()) != nil || start.Shape().Dims() != 2 || start.Dtype() != tensor.Int && start.Dtype() != tensor.Float32 {
		return nil, fmt.Errorf("graph: Start is %v, want a node of shape (batch, length) of int or float32", start)
	}
	return node.Apply(&starts{context: c, shape: start.Shape().Clone(), of: start.Dtype()}, start)
}

type starts struct {
	context *Context
	shape   tensor.Shape
	of      tensor.Dtype
	last    *marks
	bytes   []uint8
}

func (o *starts) Arity() int                                     { return 1 }
func (o *starts) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.shape.Clone(), nil }
func (o *starts) ReturnsPtr() bool                               { return true }
func (o *starts) CallsExtern() bool                              { return false }
func (o *starts) OverwritesInput() int                           { return -1 }
func (o *starts) Hashcode() uint32                               { return hashcode(o) }
func (o *starts) String() string                                 { return "starts to a device" }
func (o *starts) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba starts %p %v %v", o.context, o.shape, o.of)
}
func (o *starts) DiffWRT(int) []bool { return []bool{false} }

func (o *starts) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("graph: %v has no derivative", o)
}

func (o *starts) Type() hm.Type {
	return hm.NewFnType(typeOf(o.of, o.shape), typeOf(tensor.Int, o.shape))
}

func (o *starts) Do(values ...G.Value) (G.Value, error) {
	d, ok := values[0].(*tensor.Dense)
	if !ok || !d.Shape().Eq(o.shape) {
		return nil, fmt.Errorf("graph: Start is a %T of shape %v, want a tensor of shape %v on the host", values[0], values[0].Shape(), o.shape)
	}
	o.bytes = append(o.bytes[:0], make([]uint8, o.shape.TotalSize())...)
	mark := func(i int, start bool) {
		if start {
			o.bytes[i] = 1
		}
	}
	switch v := d.Data().(type) {
	case []int:
		for i, x := range v {
			mark(i, x != 0)
		}
	case []float32:
		for i, x := range v {
			mark(i, x != 0)
		}
	default:
		return nil, fmt.Errorf("graph: Start is of %v, want int or float32", d.Dtype())
	}
	err := o.context.Do(func(s *cuda.Stream) error {
		if o.last == nil {
			a, err := cuda.NewArray[uint8](s, len(o.bytes))
			if err != nil {
				return err
			}
			o.last = &marks{o.shape, a}
			own(o.context, o.last, a.Free)
		}
		return o.last.array.CopyFrom(s, o.bytes)
	})
	if err != nil {
		return nil, fmt.Errorf("graph: Start: %w", err)
	}
	return o.last, nil
}
