package graph

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// views returns a node for each of several tensors that are packed in one value.
func views(packed *G.Node, shapes []tensor.Shape) (G.Nodes, error) {
	nodes := make(G.Nodes, len(shapes))
	for i := range shapes {
		n, err := node.Apply(&view{part{i, shapes}}, packed)
		if err != nil {
			return nil, fmt.Errorf("graph: part %d of %v: %w", i, packed, err)
		}
		nodes[i] = n
	}
	return nodes, nil
}

// part describes one of several tensors that are packed in one value.
type part struct {
	i      int
	shapes []tensor.Shape
}

func (p part) whole() hm.Type { return typeOf(tensor.Float32, resultShape(p.shapes)) }
func (p part) only() hm.Type  { return typeOf(tensor.Float32, p.shapes[p.i]) }

// view returns one part of a packed value.
type view struct{ part }

func (v *view) Arity() int                                     { return 1 }
func (v *view) Type() hm.Type                                  { return hm.NewFnType(v.whole(), v.only()) }
func (v *view) InferShape(...G.DimSizer) (tensor.Shape, error) { return v.shapes[v.i].Clone(), nil }
func (v *view) ReturnsPtr() bool                               { return true }
func (v *view) CallsExtern() bool                              { return false }
func (v *view) OverwritesInput() int                           { return -1 }
func (v *view) WriteHash(h hash.Hash)                          { fmt.Fprintf(h, "mamba device view %v", v.part) }
func (v *view) Hashcode() uint32                               { return hashcode(v) }
func (v *view) String() string                                 { return fmt.Sprintf("part %d on a device", v.i) }
func (v *view) DiffWRT(int) []bool                             { return []bool{true} }

func (v *view) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

func (v *view) Do(values ...G.Value) (G.Value, error) {
	t, ok := values[0].(*Tensor)
	if !ok || len(t.parts) != len(v.shapes) {
		return nil, fmt.Errorf("graph: %v: the operand is a %T, want %d tensors on a device", v, values[0], len(v.shapes))
	}
	return t.parts[v.i], nil
}

func (v *view) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	n, err := node.Apply(&scatter{part: v.part}, grad)
	if err != nil {
		return nil, fmt.Errorf("graph: gradient of %v: %w", v, err)
	}
	return G.Nodes{n}, nil
}

// scatter is the derivative of view. It returns a packed value whose parts are zero, except one that is the gradient.
type scatter struct {
	part
	last *Tensor
}

func (s *scatter) Arity() int                                     { return 1 }
func (s *scatter) Type() hm.Type                                  { return hm.NewFnType(s.only(), s.whole()) }
func (s *scatter) InferShape(...G.DimSizer) (tensor.Shape, error) { return resultShape(s.shapes), nil }
func (s *scatter) ReturnsPtr() bool                               { return true }
func (s *scatter) CallsExtern() bool                              { return false }
func (s *scatter) OverwritesInput() int                           { return -1 }
func (s *scatter) WriteHash(h hash.Hash)                          { fmt.Fprintf(h, "mamba device scatter %v", s.part) }
func (s *scatter) Hashcode() uint32                               { return hashcode(s) }
func (s *scatter) String() string                                 { return fmt.Sprintf("part %d alone on a device", s.i) }
func (s *scatter) DiffWRT(inputs int) []bool                      { return make([]bool, inputs) }

func (s *scatter) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("graph: %v has no second derivative", s)
}

func (s *scatter) Do(values ...G.Value) (G.Value, error) {
	grad, ok := values[0].(*Tensor)
	if !ok {
		return nil, fmt.Errorf("graph: %v: the operand is a %T, want a tensor on a device", s, values[0])
	}
	c := grad.context
	c.mu.Lock()
	defer c.mu.Unlock()
	s.last.drop()
	s.last = c.newTensor(resultShape(s.shapes))
	s.last.parts = make([]*Tensor, len(s.shapes))
	s.last.parts[s.i] = grad.share()
	return s.last, nil
}
