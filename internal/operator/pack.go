package operator

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// views returns a node for each value that is packed in one. A single value is the packed value itself.
func (o *Operator) views(packed *G.Node, shapes []tensor.Shape) (G.Nodes, error) {
	p := part{count: len(shapes)}
	nodes := make(G.Nodes, len(shapes))
	for i, s := range shapes {
		p.index = i
		n, err := node.Apply(&view{unary: p.operator("view", o.place, o.dt, resultShape(shapes), s), part: p}, packed)
		if err != nil {
			return nil, fmt.Errorf("part %d of %v: %w", i, packed, err)
		}
		nodes[i] = n
		p.offset += s.TotalSize()
	}
	return nodes, nil
}

// part says which of several packed values a value is: its index, their count, and its offset in a vector.
type part struct{ index, count, offset int }

// operator describes the operator called what, from values of the shape of to values of the shape to.
func (p part) operator(what string, place Place, dt tensor.Dtype, of, to tensor.Shape) unary {
	return newUnary(fmt.Sprintf("%s[%d:]", what, p.offset), place, dt, of, dt, to)
}

// view returns a part of a packed value without a copy.
//
// Gorgonia does not know that the part shares memory with the whole, and may overwrite a view. This is safe: the parts are disjoint, and
// only views read the whole, so an operator that overwrites a view changes no other node's value.
type view struct {
	unary
	part
	reuses       bool          // see ReuseResults
	packed, last *tensor.Dense // of the last run, if the view reuses them: as long as the packed value is the same, so is its part
}

var (
	_ G.SDOp = (*view)(nil)
	_ G.ADOp = (*view)(nil)
)

func (v *view) Do(values ...G.Value) (G.Value, error) {
	if !v.place.OnHost() {
		t, ok := values[0].(*Tensor)
		if !ok || len(t.parts) != v.count {
			return nil, fmt.Errorf("op: %v: the packed value is a %T, want %d tensors on %v", v, values[0], v.count, v.place)
		}
		return t.parts[v.index], nil
	}
	take := partOf[float64]
	if v.dt == tensor.Float32 {
		take = partOf[float32]
	}
	d, err := take(v, values[0])
	if err != nil {
		return nil, fmt.Errorf("op: %v: packed value %w", v, err)
	}
	return d, nil
}

// partOf returns a view's part of a packed value on the host. It shares the memory, unless it is a scalar.
func partOf[T Float](v *view, packed G.Value) (G.Value, error) {
	of, ok := packed.(*tensor.Dense)
	if ok && v.reuses && of == v.packed && v.last.Shape().Eq(v.to) && isRowMajor(v.last) {
		return v.last, nil
	}
	all, err := numbers[T](packed, v.of())
	if err != nil {
		return nil, err
	}
	end := v.offset + v.to.TotalSize()
	if v.to.IsScalar() {
		result, to := resultFor[T](nil, v.to)
		copy(to, all[v.offset:end])
		return result(), nil
	}
	d := denseFrom(all[v.offset:end:end], v.to)
	if ok && v.reuses {
		v.packed, v.last = of, d
	}
	return d, nil
}

func (v *view) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	if v.of().Eq(v.to) && v.place.OnHost() {
		return G.Nodes{grad}, nil
	}
	n, err := node.Apply(&scatter{constant: constant{v.operator("scatter", v.place, v.dt, v.to, v.of())}, part: v.part}, grad)
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %v: %w", v, err)
	}
	return G.Nodes{n}, nil
}

func (v *view) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	if !v.place.OnHost() {
		return errLisp
	}
	add := addPart[float64]
	if v.dt == tensor.Float32 {
		add = addPart[float32]
	}
	if err := add(v, inputs[0], output); err != nil {
		return fmt.Errorf("op: gradient of %v: %w", v, err)
	}
	return nil
}

// addPart adds the gradient that the lisp machine has stored in a view's node to a part of that of the packed value, which is a row-major vector, or a scalar like its only part.
func addPart[T Float](v *view, packed, output *G.Node) error {
	grad, err := gradientOf[T](output, v.to)
	if err != nil {
		return fmt.Errorf("result %w", err)
	}
	if v.to.IsScalar() {
		return addToGradient(packed, grad, v.to)
	}
	into, err := gradientOf[T](packed, v.of())
	if err != nil {
		return fmt.Errorf("packed value %w", err)
	}
	add(into[v.offset:][:len(grad)], grad)
	return nil
}

// scatter is the derivative of view. It returns a packed value whose parts are zero, except one that is the gradient.
type scatter struct {
	constant
	part
	last *Tensor // the result of the last run on a device
}

var (
	_ G.SDOp            = (*scatter)(nil)
	_ G.UsePreallocDoer = (*scatter)(nil)
)

func (s *scatter) CallsExtern() bool                     { return s.place.OnHost() }
func (s *scatter) Do(values ...G.Value) (G.Value, error) { return s.UsePreallocDo(nil, values...) }

func (s *scatter) UsePreallocDo(prealloc G.Value, values ...G.Value) (v G.Value, err error) {
	switch {
	case !s.place.OnHost():
		return s.onDevice(values[0])
	case s.dt == tensor.Float32:
		v, err = scatterOnHost[float32](s, prealloc, values[0])
	default:
		v, err = scatterOnHost[float64](s, prealloc, values[0])
	}
	if err != nil {
		return nil, fmt.Errorf("op: %v: gradient %w", s, err)
	}
	return v, nil
}

func scatterOnHost[T Float](s *scatter, prealloc, v G.Value) (G.Value, error) {
	grad, err := numbers[T](v, s.of())
	if err != nil {
		return nil, err
	}
	result, flat := resultFor[T](prealloc, s.to)
	clear(flat)
	copy(flat[s.offset:], grad)
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
	s.last = s.place.Zeros(s.to)
	s.last.parts = make([]*Tensor, s.count)
	s.last.parts[s.index] = grad.share()
	grad.drop() // no other operator reads it; a sum that Gorgonia made has no other owner
	return s.last, nil
}
