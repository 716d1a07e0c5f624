package nn

import (
	"cmp"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"slices"
	"sync/atomic"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// WithSegments applies a stack or a language model to sequences that are too long for one process: x, start and targets have the steps of this rank, and the ranks
// of the group have the parts of the sequences in order, each of any length. Before each layer a rank receives the state of that layer from the rank before it,
// and sends the state after its own steps to the next one. Gradients of the states go the other way. So the results and gradients are those of one process, and a rank
// needs the memory of its own steps only. Rank r works at a layer while rank r+1 works at the one before, so a stack of many layers keeps all ranks busy.
//
// All ranks run the same graph. Each rank's gradients of the weights are those of its own steps; add them up (dist.AllReduce), or train with train.Config.Segments.
//
// With weights on a GPU, each rank has a GPU of its own, and the states go from GPU to GPU through NCCL (dist.Devices). If NCCL is missing on a rank, they go through the memory of the hosts.
// The first call for a GPU connects the GPUs, so all ranks make it.
//
// Errors: a layer without a state of fixed size, such as attention without a window; a state.
func WithSegments(group *dist.Group) CallOption {
	return func(c *build.Call) {
		if group.Size() > 1 {
			c.Segments = group
		}
	}
}

// groupOf returns the group of WithSegments, nil without one. If an option is invalid, the layers say so.
func groupOf(opts []CallOption) *dist.Group {
	call, _ := build.CallOf(opts)
	group, _ := call.Segments.(*dist.Group)
	return group
}

// segmented applies a layer to this rank's steps.
func segmented(l layer.Mixer, x *G.Node, group *dist.Group, opts []CallOption) (y *G.Node, err error) {
	if err := l.Err(); err != nil {
		return nil, err
	}
	if x == nil || x.Graph() == nil || x.Shape().Dims() != 3 {
		return l.Apply(x) // which says what is wrong
	}
	if !l.Params().Place().OnHost() {
		return segmentedOn(l, x, group, opts)
	}
	slots := l.Slots()
	var state layer.State
	var sizes []int
	width, batch := 0, x.Shape()[0]
	for _, s := range slots {
		sizes = append(sizes, s.Shape.TotalSize())
		width += s.Shape.TotalSize()
	}
	n := neighbour{group: group, id: neighbours.Add(1), x: x.Shape().Clone(), state: tensor.Shape{batch, width}, dt: x.Dtype()}
	if group.Rank() > 0 && width > 0 {
		w := anchor(l.Params()).Node(x.Graph())
		n.w = w.Shape().Clone()
		flat, err := G.ApplyOp(receiveState{n}, x, w)
		if err != nil {
			return nil, err
		}
		parts, err := op.Split(flat, sizes...)
		if err != nil {
			return nil, err
		}
		for i, s := range slots {
			part, err := op.Reshape(parts[i], append([]int{batch}, s.Shape...)...)
			if err != nil {
				return nil, err
			}
			state = append(state, part)
		}
	}
	y, next, err := l.ApplyWithState(x, state, opts...)
	if err != nil || group.Rank() == group.Size()-1 || width == 0 {
		return y, err
	}
	parts := make(G.Nodes, len(next))
	for i := range next {
		if parts[i], err = op.Reshape(next[i], batch, sizes[i]); err != nil {
			return nil, err
		}
	}
	flat, err := op.Concat(1, parts...)
	if err != nil {
		return nil, err
	}
	return G.ApplyOp(sendState{n}, y, flat)
}

// anchor returns a weight for the operator that receives a state. The gradients of the weights of the rank before depend on the gradient of this state, also if x has none. So the
// operator depends on a weight, if one is trained, and its gradient with respect to that is zero.
func anchor(all layer.Params) (least *layer.Param) {
	trained := all.Trainable()
	if len(trained) == 0 {
		trained = all
	}
	return slices.MinFunc(trained, func(a, b *layer.Param) int { return cmp.Compare(a.Shape().TotalSize(), b.Shape().TotalSize()) })
}

var neighbours atomic.Uint64

// neighbour is what the four operators between two ranks share. An operand that an operator does not read puts it in its place in the order of the machine.
type neighbour struct {
	group    *dist.Group
	id       uint64 // no two operators are the same node
	x, state tensor.Shape
	w        tensor.Shape // of the weight of receiveState
	dt       tensor.Dtype
}

func (n neighbour) OverwritesInput() int { return -1 }
func (n neighbour) CallsExtern() bool    { return false }
func (n neighbour) ReturnsPtr() bool     { return true }
func (n neighbour) matrix() hm.Type      { return G.TensorType{Dims: 2, Of: n.dt} }
func (n neighbour) sequence() hm.Type    { return G.TensorType{Dims: n.x.Dims(), Of: n.dt} }

func code(name string) uint32 {
	h := fnv.New32a()
	io.WriteString(h, name)
	return h.Sum32()
}

func (n neighbour) empty(shape tensor.Shape) *tensor.Dense {
	return tensor.New(tensor.Of(n.dt), tensor.WithShape(shape.Clone()...))
}

// move sends a value to a rank, or receives it.
func (n neighbour) move(v G.Value, rank int, receive bool) error {
	switch x := v.Data().(type) {
	case []float32:
		return moveTo(n.group, x, rank, receive)
	case []float64:
		return moveTo(n.group, x, rank, receive)
	}
	return fmt.Errorf("nn: segments: a state is of %v, want float32 or float64", v.Dtype())
}

func moveTo[T dist.Element](g *dist.Group, x []T, rank int, receive bool) error {
	if receive {
		return dist.Receive(g, x, rank)
	}
	return dist.Send(g, x, rank)
}

// receiveState is the state (batch, width) that the rank before sends. Its operands are the layer's input and its anchor.
type receiveState struct{ neighbour }

func (o receiveState) Arity() int { return 2 }
func (o receiveState) Type() hm.Type {
	return hm.NewFnType(o.sequence(), G.TensorType{Dims: o.w.Dims(), Of: o.dt}, o.matrix())
}
func (o receiveState) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.state.Clone(), nil }
func (o receiveState) String() string                                 { return fmt.Sprintf("receive state %d", o.id) }
func (o receiveState) WriteHash(h hash.Hash)                          { io.WriteString(h, o.String()) }
func (o receiveState) Hashcode() uint32                               { return code(o.String()) }
func (o receiveState) DiffWRT(int) []bool                             { return []bool{true, true} }

func (o receiveState) Do(...G.Value) (G.Value, error) {
	v := o.empty(o.state)
	return v, o.move(v, o.group.Rank()-1, true)
}

func (o receiveState) SymDiff(in G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	dx, err := G.ApplyOp(returnGradient(o), in[0], grad)
	if err != nil {
		return nil, err
	}
	s := build.Steps{Graph: in[0].Graph()}
	zero := s.Do(op.Scale(s.Do(op.Reshape(in[1], 1, o.w.TotalSize())), nil, 0))
	dw, err := s.Result(op.Reshape(zero, o.w...))
	return G.Nodes{dx, dw}, err
}

// returnGradient sends the gradient of the state to the rank before. Its result is the gradient of the layer's input, which is zero, so that it runs before the layers below.
type returnGradient struct{ neighbour }

func (o returnGradient) Arity() int                                     { return 2 }
func (o returnGradient) Type() hm.Type                                  { return hm.NewFnType(o.sequence(), o.matrix(), o.sequence()) }
func (o returnGradient) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.x.Clone(), nil }
func (o returnGradient) String() string                                 { return fmt.Sprintf("return gradient %d", o.id) }
func (o returnGradient) WriteHash(h hash.Hash)                          { io.WriteString(h, o.String()) }
func (o returnGradient) Hashcode() uint32                               { return code(o.String()) }

func (o returnGradient) Do(in ...G.Value) (G.Value, error) {
	return o.empty(o.x), o.move(in[1], o.group.Rank()-1, false)
}

// sendState sends the state (batch, width) to the next rank. Its result is a copy of the layer's result.
type sendState struct{ neighbour }

func (o sendState) Arity() int                                     { return 2 }
func (o sendState) Type() hm.Type                                  { return hm.NewFnType(o.sequence(), o.matrix(), o.sequence()) }
func (o sendState) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.x.Clone(), nil }
func (o sendState) String() string                                 { return fmt.Sprintf("send state %d", o.id) }
func (o sendState) WriteHash(h hash.Hash)                          { io.WriteString(h, o.String()) }
func (o sendState) Hashcode() uint32                               { return code(o.String()) }
func (o sendState) DiffWRT(int) []bool                             { return []bool{true, true} }

func (o sendState) Do(in ...G.Value) (G.Value, error) {
	y := o.empty(o.x)
	if err := tensor.Copy(y, in[0].(*tensor.Dense)); err != nil {
		return nil, err
	}
	return y, o.move(in[1], o.group.Rank()+1, false)
}

func (o sendState) SymDiff(in G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	dstate, err := G.ApplyOp(receiveGradient(o), grad)
	return G.Nodes{grad, dstate}, err
}

// receiveGradient is the gradient of the state, which the next rank sends. Its operand is the gradient of the layer's result.
type receiveGradient struct{ neighbour }

func (o receiveGradient) Arity() int                                     { return 1 }
func (o receiveGradient) Type() hm.Type                                  { return hm.NewFnType(o.sequence(), o.matrix()) }
func (o receiveGradient) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.state.Clone(), nil }
func (o receiveGradient) String() string                                 { return fmt.Sprintf("receive gradient %d", o.id) }
func (o receiveGradient) WriteHash(h hash.Hash)                          { io.WriteString(h, o.String()) }
func (o receiveGradient) Hashcode() uint32                               { return code(o.String()) }

func (o receiveGradient) Do(...G.Value) (G.Value, error) {
	v := o.empty(o.state)
	return v, o.move(v, o.group.Rank()+1, true)
}
