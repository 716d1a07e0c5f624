package operator

import (
	"fmt"
	"math"

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

// Int32 returns x as integers are on a device: the nearest number that an int32 holds.
func Int32(x int) int32 { return int32(min(max(x, math.MinInt32), math.MaxInt32)) }
