package operator

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
)

// scalar copies the only number of a tensor to the host. Its derivative is spread, which copies a number to the device.
type scalar struct{ place Place }

func (o *scalar) Arity() int                                     { return 1 }
func (o *scalar) InferShape(...G.DimSizer) (tensor.Shape, error) { return tensor.ScalarShape(), nil }
func (o *scalar) ReturnsPtr() bool                               { return false }
func (o *scalar) CallsExtern() bool                              { return false }
func (o *scalar) OverwritesInput() int                           { return -1 }
func (o *scalar) WriteHash(h hash.Hash)                          { fmt.Fprintf(h, "mamba scalar %p", o.place.context) }
func (o *scalar) Hashcode() uint32                               { return hashcode(o) }
func (o *scalar) String() string                                 { return "scalar from a device" }
func (o *scalar) DiffWRT(int) []bool                             { return []bool{true} }

func (o *scalar) Type() hm.Type {
	return hm.NewFnType(typeOf(tensor.Float32, tensor.Shape{1}), tensor.Float32)
}

func (o *scalar) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

func (o *scalar) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	n, err := node.Apply(&spread{place: o.place}, grad)
	return G.Nodes{n}, err
}

func (o *scalar) Do(values ...G.Value) (G.Value, error) {
	t, ok := values[0].(*Tensor)
	if !ok || t.Size() != 1 {
		return nil, fmt.Errorf("op: %v: the operand is a %T of shape %v, want one number on a device", o, values[0], values[0].Shape())
	}
	d, err := t.ToHost()
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", o, err)
	}
	return G.NewF32(floats(d)[0]), nil
}

type spread struct {
	place Place
	last  *Tensor
}

func (o *spread) Place() Place                                   { return o.place }
func (o *spread) Arity() int                                     { return 1 }
func (o *spread) InferShape(...G.DimSizer) (tensor.Shape, error) { return tensor.Shape{1}, nil }
func (o *spread) ReturnsPtr() bool                               { return true }
func (o *spread) CallsExtern() bool                              { return false }
func (o *spread) OverwritesInput() int                           { return -1 }
func (o *spread) WriteHash(h hash.Hash)                          { fmt.Fprintf(h, "mamba spread %p", o.place.context) }
func (o *spread) Hashcode() uint32                               { return hashcode(o) }
func (o *spread) String() string                                 { return "scalar to a device" }
func (o *spread) DiffWRT(inputs int) []bool                      { return make([]bool, inputs) }

func (o *spread) Type() hm.Type {
	return hm.NewFnType(tensor.Float32, typeOf(tensor.Float32, tensor.Shape{1}))
}

func (o *spread) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v has no second derivative", o)
}

func (o *spread) Do(values ...G.Value) (G.Value, error) {
	v, ok := values[0].Data().(float32)
	if !ok {
		return nil, fmt.Errorf("op: %v: the operand is a %T, want a number of float32", o, values[0])
	}
	err := o.place.context.Do(func(s *cuda.Stream) (err error) {
		o.last.drop()
		if o.last, err = o.place.allocate(tensor.Shape{1}); err != nil {
			return err
		}
		return o.last.buffer.array.CopyFrom(s, []float32{v})
	})
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", o, err)
	}
	return o.last, nil
}
