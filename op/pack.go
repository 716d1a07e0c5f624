package op

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// views returns a node for each value that is packed in a vector. A single value is the packed value itself.
func views(packed *G.Node, shapes []tensor.Shape) (G.Nodes, error) {
	p := part{dt: packed.Dtype(), of: packed.Shape().Clone()}
	nodes := make(G.Nodes, len(shapes))
	for i, s := range shapes {
		p.shape = s.Clone()
		n, err := node.Apply(&view{p}, packed)
		if err != nil {
			return nil, fmt.Errorf("op: part %d of %v: %w", i, packed, err)
		}
		nodes[i] = n
		p.offset += s.TotalSize()
	}
	return nodes, nil
}

// part describes a value that is packed in a vector.
type part struct {
	dt     tensor.Dtype
	of     tensor.Shape // shape of the vector, or of the value itself if it is the only one
	offset int
	shape  tensor.Shape
}

func (p part) end() int { return p.offset + p.shape.TotalSize() }

func (p part) String() string {
	return fmt.Sprintf("[%d:%d]%v of %v", p.offset, p.end(), p.shape, p.of)
}

// view returns a part of a packed vector without a copy.
//
// Gorgonia does not know that the part shares memory with the vector, and may overwrite a view. This is safe: the parts are disjoint, and
// only views read the vector, so an operator that overwrites a view changes no other node's value.
type view struct{ part }

var (
	_ G.SDOp = (*view)(nil)
	_ G.ADOp = (*view)(nil)
)

func (v *view) Arity() int { return 1 }

func (v *view) Type() hm.Type {
	return hm.NewFnType(typeOf(v.dt, v.of), typeOf(v.dt, v.shape))
}

func (v *view) InferShape(...G.DimSizer) (tensor.Shape, error) { return v.shape.Clone(), nil }

func (v *view) Do(values ...G.Value) (G.Value, error) {
	packed, err := operandOf(values[0], v.dt, v.of)
	if err != nil {
		return nil, fmt.Errorf("op: %v: packed value %w", v, err)
	}
	return packed.slice(v.offset, v.shape).dense(), nil
}

func (v *view) ReturnsPtr() bool          { return true }
func (v *view) CallsExtern() bool         { return false } // a preallocated result would not be used
func (v *view) OverwritesInput() int      { return -1 }
func (v *view) WriteHash(h hash.Hash)     { fmt.Fprintf(h, "mamba view %v %v", v.dt, v.part) }
func (v *view) Hashcode() uint32          { return hashcode(v) }
func (v *view) String() string            { return "view" + v.part.String() }
func (v *view) DiffWRT(inputs int) []bool { return []bool{true} }

func (v *view) SymDiff(_ G.Nodes, _, grad *G.Node) (G.Nodes, error) {
	if v.of.Eq(v.shape) {
		return G.Nodes{grad}, nil
	}
	n, err := node.Apply(&scatter{v.part}, grad)
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %v: %w", v, err)
	}
	return G.Nodes{n}, nil
}

func (v *view) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	grad, err := gradientOf(output, v.dt, v.shape)
	if err != nil {
		return fmt.Errorf("op: gradient of %v: result %w", v, err)
	}
	into, err := gradientOf(inputs[0], v.dt, v.of)
	if err != nil {
		return fmt.Errorf("op: gradient of %v: packed value %w", v, err)
	}
	into.slice(v.offset, v.shape).add(grad)
	return nil
}

// scatter is the derivative of view. It returns a vector that holds the gradient in one part, and zeros elsewhere.
type scatter struct{ part }

var (
	_ G.SDOp            = (*scatter)(nil)
	_ G.UsePreallocDoer = (*scatter)(nil)
)

func (s *scatter) Arity() int { return 1 }

func (s *scatter) Type() hm.Type {
	return hm.NewFnType(typeOf(s.dt, s.shape), typeOf(s.dt, s.of))
}

func (s *scatter) InferShape(...G.DimSizer) (tensor.Shape, error) { return s.of.Clone(), nil }

func (s *scatter) Do(values ...G.Value) (G.Value, error) { return s.UsePreallocDo(nil, values...) }

func (s *scatter) UsePreallocDo(prealloc G.Value, values ...G.Value) (G.Value, error) {
	grad, err := operandOf(values[0], s.dt, s.shape)
	if err != nil {
		return nil, fmt.Errorf("op: %v: gradient %w", s, err)
	}
	result, flat := resultFor(prealloc, s.dt, s.of)
	flat.clear()
	flat.slice(s.offset, s.shape).copy(grad)
	return result(), nil
}

func (s *scatter) ReturnsPtr() bool          { return true }
func (s *scatter) CallsExtern() bool         { return true }
func (s *scatter) OverwritesInput() int      { return -1 }
func (s *scatter) WriteHash(h hash.Hash)     { fmt.Fprintf(h, "mamba scatter %v %v", s.dt, s.part) }
func (s *scatter) Hashcode() uint32          { return hashcode(s) }
func (s *scatter) String() string            { return "scatter" + s.part.String() }
func (s *scatter) DiffWRT(inputs int) []bool { return make([]bool, inputs) }

func (s *scatter) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v has no second derivative", s)
}
