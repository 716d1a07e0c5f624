package operator

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// views returns a node for each value that is packed in one. A single value is the packed value itself.
func (o *Operator) views(packed *G.Node, shapes []tensor.Shape) (G.Nodes, error) {
	p := part{place: o.place, dt: o.dt, of: resultShape(shapes), count: len(shapes)}
	nodes := make(G.Nodes, len(shapes))
	for i, s := range shapes {
		p.index, p.shape = i, s.Clone()
		n, err := node.Apply(&view{p}, packed)
		if err != nil {
			return nil, fmt.Errorf("part %d of %v: %w", i, packed, err)
		}
		nodes[i] = n
		p.offset += s.TotalSize()
	}
	return nodes, nil
}

// part describes one of several values that are packed in one.
type part struct {
	place        Place
	dt           tensor.Dtype
	of           tensor.Shape // shape of the packed value
	index, count int          // of the part, and of all parts
	offset       int          // of the part in a vector
	shape        tensor.Shape
}

func (p part) String() string {
	return fmt.Sprintf("[%d:%d]%v of %v", p.offset, p.offset+p.shape.TotalSize(), p.shape, p.of)
}

func (p part) write(h hash.Hash, what string) {
	fmt.Fprintf(h, "mamba %s %p %v %v %v", what, p.place.context, p.place.precision, p.dt, p)
}

func (p part) Arity() int           { return 1 }
func (p part) ReturnsPtr() bool     { return true }
func (p part) OverwritesInput() int { return -1 }
func (p part) Place() Place         { return p.place }
func (p part) whole() hm.Type       { return typeOf(p.dt, p.of) }
func (p part) only() hm.Type        { return typeOf(p.dt, p.shape) }

// view returns a part of a packed value without a copy.
//
// Gorgonia does not know that the part shares memory with the whole, and may overwrite a view. This is safe: the parts are disjoint, and
// only views read the whole, so an operator that overwrites a view changes no other node's value.
type view struct{ part }

var (
	_ G.SDOp = (*view)(nil)
	_ G.ADOp = (*view)(nil)
)

func (v *view) Type() hm.Type                                  { return hm.NewFnType(v.whole(), v.only()) }
func (v *view) InferShape(...G.DimSizer) (tensor.Shape, error) { return v.shape.Clone(), nil }
func (v *view) CallsExtern() bool                              { return false } // a preallocated result would not be used
func (v *view) WriteHash(h hash.Hash)                          { v.write(h, "view") }
func (v *view) Hashcode() uint32                               { return hashcode(v) }
func (v *view) String() string                                 { return "view" + v.part.String() }
func (v *view) DiffWRT(int) []bool                             { return []bool{true} }

func (v *view) Do(values ...G.Value) (G.Value, error) {
	if !v.place.OnHost() {
		t, ok := values[0].(*Tensor)
		if !ok || len(t.parts) != v.count {
			return nil, fmt.Errorf("op: %v: the packed value is a %T, want %d tensors on %v", v, values[0], v.count, v.place)
		}
		return t.parts[v.index], nil
	}
	d, err := slice(values[0], v.dt, v.of, v.offset, v.shape)
	if err != nil {
		return nil, fmt.Errorf("op: %v: packed value %w", v, err)
	}
	return d, nil
}

func (v *view) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	if v.of.Eq(v.shape) && v.place.OnHost() {
		return G.Nodes{grad}, nil
	}
	n, err := node.Apply(&scatter{part: v.part}, grad)
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %v: %w", v, err)
	}
	return G.Nodes{n}, nil
}

func (v *view) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	if !v.place.OnHost() {
		return errLisp
	}
	into, err := inputs[0].Grad()
	if err != nil {
		return fmt.Errorf("op: gradient of %v: packed value has no gradient: %w", v, err)
	}
	d, err := slice(into, v.dt, v.of, v.offset, v.shape)
	if err != nil {
		return fmt.Errorf("op: gradient of %v: packed value %w", v, err)
	}
	if v.dt == tensor.Float32 {
		err = addGradientOf[float32](output, d)
	} else {
		err = addGradientOf[float64](output, d)
	}
	if err != nil {
		return fmt.Errorf("op: gradient of %v: result %w", v, err)
	}
	return nil
}

// scatter is the derivative of view. It returns a packed value whose parts are zero, except one that is the gradient.
type scatter struct {
	part
	last *Tensor // the result of the last run on a device
}

var (
	_ G.SDOp            = (*scatter)(nil)
	_ G.UsePreallocDoer = (*scatter)(nil)
)

func (s *scatter) Type() hm.Type                                  { return hm.NewFnType(s.only(), s.whole()) }
func (s *scatter) InferShape(...G.DimSizer) (tensor.Shape, error) { return s.of.Clone(), nil }
func (s *scatter) CallsExtern() bool                              { return s.place.OnHost() }
func (s *scatter) WriteHash(h hash.Hash)                          { s.write(h, "scatter") }
func (s *scatter) Hashcode() uint32                               { return hashcode(s) }
func (s *scatter) String() string                                 { return "scatter" + s.part.String() }
func (s *scatter) DiffWRT(inputs int) []bool                      { return make([]bool, inputs) }
func (s *scatter) Do(values ...G.Value) (G.Value, error)          { return s.UsePreallocDo(nil, values...) }

func (s *scatter) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v has no second derivative", s)
}

func (s *scatter) UsePreallocDo(prealloc G.Value, values ...G.Value) (v G.Value, err error) {
	switch {
	case !s.place.OnHost():
		return s.onDevice(values[0])
	case s.dt == tensor.Float32:
		v, err = scatterOnHost[float32](s.part, prealloc, values[0])
	default:
		v, err = scatterOnHost[float64](s.part, prealloc, values[0])
	}
	if err != nil {
		return nil, fmt.Errorf("op: %v: gradient %w", s, err)
	}
	return v, nil
}

func scatterOnHost[T Float](p part, prealloc, v G.Value) (G.Value, error) {
	grad, err := numbers[T](v, p.shape)
	if err != nil {
		return nil, err
	}
	result, flat := resultFor[T](prealloc, p.of)
	clear(flat)
	copy(flat[p.offset:], grad)
	return result(), nil
}

func (s *scatter) onDevice(v G.Value) (G.Value, error) {
	grad, ok := v.(*Tensor)
	if !ok {
		return nil, fmt.Errorf("op: %v: the gradient is a %T, want a tensor on %v", s, v, s.place)
	}
	c := grad.place.context
	c.mu.Lock()
	defer c.mu.Unlock()
	s.last.drop()
	s.last = newTensor(s.place, s.of)
	s.last.parts = make([]*Tensor, s.count)
	s.last.parts[s.index] = grad.share()
	return s.last, nil
}
