package graph

import (
	"fmt"
	"hash"
	"hash/fnv"
	"math"
	"slices"
	"sync/atomic"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/size"
)

// function defines one operator. The types operator, gradients, view and scatter turn a function into Gorgonia's operators, as in package
// op.
type function interface {
	// String returns the operator's name with every parameter that changes its result.
	String() string
	// differentiable reports for each operand whether it has a gradient.
	differentiable() []bool
	// forward queues kernels that write every result. If keep is true, it also returns the values that backward needs.
	forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error)
	// backward queues kernels that write every gradient that is not absent. The gradient dout of a result that is not used is absent.
	backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], values any) error
}

// operand is a value in the form that a function takes. The zero operand is an absent optional operand.
type operand struct {
	cuda.Array[float32]
	weight *Weight
	starts cuda.Array[uint8]
	ints   []int
}

// place is where the value of an operand is.
type place int

const (
	onDevice place = iota // a Tensor or Weight
	onHost                // a tensor of int
	asStarts              // marks, a result of Starts
)

type slot struct {
	name           string
	place          place
	shape          tensor.Shape
	present        bool
	differentiable bool // present, and with a gradient
}

func (s slot) dtype() tensor.Dtype {
	if s.place == onDevice {
		return tensor.Float32
	}
	return tensor.Int
}

// operands holds an operator's operands as nodes, nil for absent ones.
type operands []struct {
	name  string
	place place
	node  *G.Node
}

// passes is a function that returns one of its operands as one of its results.
type passes interface {
	// passed returns the indices of the result and the operand. The function adds its own gradient to the gradient of this result.
	passed() (result, operand int)
}

// overwrites is a function whose backward overwrites the values that forward kept, so it can be differentiated only once.
type overwrites interface{ overwritesKept() }

// operator runs a function forward.
type operator struct {
	context *Context
	f       function
	in      []slot
	out     []tensor.Shape
	readers atomic.Int32 // number of gradients operators that read the result
	last    *Tensor      // the result of the last run
}

// apply adds f to the graph of its operands and returns a node for each of its results.
func (c *Context) apply(f function, in operands, results ...tensor.Shape) (G.Nodes, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	for _, s := range results {
		if err := countable(s); err != nil {
			return nil, fmt.Errorf("graph: %v: a result %w", f, err)
		}
	}
	o := &operator{context: c, f: f, out: results}
	var children G.Nodes
	for i, x := range in {
		if x.node == nil {
			o.in = append(o.in, slot{name: x.name})
			continue
		}
		if err := countable(x.node.Shape()); err != nil {
			return nil, fmt.Errorf("graph: %v: %s %w", f, x.name, err)
		}
		o.in = append(o.in, slot{x.name, x.place, x.node.Shape(), true, f.differentiable()[i]})
		children = append(children, x.node)
	}
	n, err := node.Apply(o, children...)
	if err != nil {
		return nil, fmt.Errorf("graph: %v: %w", f, err)
	}
	if len(results) == 1 {
		return G.Nodes{n}, nil
	}
	return views(n, results)
}

// countable returns an error if no memory can hold the elements of a shape. Whether the device's can shows when the graph runs.
func countable(s tensor.Shape) error {
	if size.Of(8, s...) > math.MaxInt64 {
		return fmt.Errorf("has shape %v, want one of less than 2^60 elements", s)
	}
	return nil
}

func (o *operator) Arity() (n int) {
	for _, s := range o.in {
		if s.present {
			n++
		}
	}
	return n
}

func (o *operator) types() (types []hm.Type) {
	for _, s := range o.in {
		if s.present {
			types = append(types, typeOf(s.dtype(), s.shape))
		}
	}
	return types
}

func resultShape(shapes []tensor.Shape) tensor.Shape {
	if len(shapes) == 1 {
		return shapes[0].Clone()
	}
	n := 0
	for _, s := range shapes {
		n += s.TotalSize()
	}
	return tensor.Shape{n}
}

func (o *operator) Type() hm.Type {
	return hm.NewFnType(append(o.types(), typeOf(tensor.Float32, resultShape(o.out)))...)
}

func (o *operator) InferShape(...G.DimSizer) (tensor.Shape, error) { return resultShape(o.out), nil }
func (o *operator) ReturnsPtr() bool                               { return true }
func (o *operator) CallsExtern() bool                              { return false }
func (o *operator) OverwritesInput() int                           { return -1 }
func (o *operator) Hashcode() uint32                               { return hashcode(o) }
func (o *operator) String() string                                 { return o.f.String() + " on a device" }

func (o *operator) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba on device %p %v", o.context, o.f)
	for _, s := range o.in {
		fmt.Fprintf(h, " %v%v%v", s.present, s.dtype(), s.shape)
	}
	fmt.Fprintf(h, " %v", o.out)
}

func hashcode(o G.Op) uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

// Do frees the result of the last run, queues the operator and returns its result.
func (o *operator) Do(values ...G.Value) (G.Value, error) {
	var t *Tensor
	err := o.context.Do(func(s *cuda.Stream) error {
		o.last.drop()
		o.last = nil
		in, err := o.operands(values)
		if err != nil {
			return err
		}
		var arrays []cuda.Array[float32]
		if t, arrays, err = o.context.results(o.out, o.passed(in)); err != nil {
			return err
		}
		o.last = t
		k, err := o.f.forward(s, in, arrays, o.readers.Load() > 0)
		if k != nil && k.free != nil {
			k.undo = own(o.context, k, k.free)
		}
		t.kept.Store(k)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("graph: %v: %w", o.f, err)
	}
	return t, nil
}

// passed returns for each result the operand that is returned as this result, nil for results with memory of their own.
func (o *operator) passed(in []operand) []*operand {
	passed := make([]*operand, len(o.out))
	if p, ok := o.f.(passes); ok {
		if result, operand := p.passed(); result < len(passed) {
			passed[result] = &in[operand]
		}
	}
	return passed
}

// results returns a tensor for results of the given shapes, and their arrays. The context must be locked.
func (c *Context) results(shapes []tensor.Shape, passed []*operand) (*Tensor, []cuda.Array[float32], error) {
	var parts []*Tensor
	arrays := make([]cuda.Array[float32], len(shapes))
	for i, s := range shapes {
		p := c.newTensor(s)
		if passed != nil && passed[i] != nil {
			p.alias, p.weight, arrays[i] = passed[i].Array, passed[i].weight, passed[i].Array
		} else {
			b, err := c.newBuffer(s.TotalSize())
			if err != nil {
				for _, p := range parts {
					p.drop()
				}
				return nil, nil, err
			}
			p.buffer, arrays[i] = b, b.array
		}
		parts = append(parts, p)
	}
	if len(parts) == 1 {
		return parts[0], arrays, nil
	}
	t := c.newTensor(resultShape(shapes))
	t.parts = parts
	return t, arrays, nil
}

// operands returns the values as the function's operands, with zero operands for absent ones. The context must be locked.
func (o *operator) operands(values []G.Value) ([]operand, error) {
	if len(values) != o.Arity() {
		return nil, fmt.Errorf("%d operands, want %d", len(values), o.Arity())
	}
	in := make([]operand, len(o.in))
	for i, s := range o.in {
		if !s.present {
			continue
		}
		var err error
		if in[i], err = o.context.operandOf(values[0], s.place, s.shape); err != nil {
			return nil, fmt.Errorf("%s %w", s.name, err)
		}
		values = values[1:]
	}
	return in, nil
}

// operandOf returns a value as an operand. The text of an error continues a sentence that begins with the operand's name.
func (c *Context) operandOf(v G.Value, at place, shape tensor.Shape) (o operand, err error) {
	switch v := v.(type) {
	case *Tensor:
		if at == onDevice && v.context == c && v.shape.Eq(shape) {
			o.weight = v.weight
			o.Array, err = v.array()
			return o, err
		}
	case *Weight:
		if at == onDevice && v.context == c && v.Shape().Eq(shape) {
			o.weight = v
			o.Array, err = v.Array()
			return o, err
		}
	case *marks:
		if at == asStarts && v.shape.Eq(shape) {
			o.starts = v.array
			return o, nil
		}
	case *tensor.Dense:
		if d, ok := v.Data().([]int); ok && at == onHost && v.Shape().Eq(shape) {
			o.ints = d
			return o, nil
		}
	case nil:
		return o, fmt.Errorf("has no value")
	}
	return o, fmt.Errorf("has a value %T of %v %v, want a value of shape %v %s %s", v, v.Dtype(), v.Shape(), shape,
		[]string{"on", "of int on the host, not on", "that Starts has copied to"}[at], c.device.Name())
}

func (o *operator) DiffWRT(int) []bool {
	var with []bool
	for _, s := range o.in {
		if s.present {
			with = append(with, s.differentiable)
		}
	}
	return with
}

// SymDiff adds one operator that computes all gradients, and a view of its result for each operand with a gradient.
func (o *operator) SymDiff(in G.Nodes, output, grad *G.Node) (G.Nodes, error) {
	if _, once := o.f.(overwrites); o.readers.Add(1) > 1 && once {
		return nil, fmt.Errorf("graph: %v: the gradient is computed twice, want once: add the losses and differentiate their sum", o.f)
	}
	packed, err := node.Apply(&gradients{of: o}, append(slices.Clone(in), grad, output)...)
	if err != nil {
		return nil, fmt.Errorf("graph: gradient of %v: %w", o.f, err)
	}
	shapes := o.gradientShapes()
	each := G.Nodes{packed}
	if len(shapes) > 1 {
		if each, err = views(packed, shapes); err != nil {
			return nil, err
		}
	}
	result := make(G.Nodes, len(in))
	for i, with := range o.DiffWRT(len(in)) {
		if with {
			result[i], each = each[0], each[1:]
		}
	}
	return result, nil
}

func (o *operator) gradientShapes() (shapes []tensor.Shape) {
	for _, s := range o.in {
		if s.differentiable {
			shapes = append(shapes, s.shape)
		}
	}
	return shapes
}

var errLisp = fmt.Errorf("graph: the lisp machine does not run on a device: use gorgonia.Grad and a tape machine")

// DoDiff returns an error. Without this method the lisp machine would give zero gradients without an error.
func (o *operator) DoDiff(G.ExecutionContext, G.Nodes, *G.Node) error { return errLisp }

// gradients runs a function backward. Its operands are the operator's operands, the gradient of the operator's result, and the result itself,
// which carries the kept values.
type gradients struct {
	of   *operator
	last *Tensor
}

func (o *gradients) Arity() int { return o.of.Arity() + 2 }

func (o *gradients) Type() hm.Type {
	result := typeOf(tensor.Float32, resultShape(o.of.out))
	return hm.NewFnType(append(o.of.types(), result, result, typeOf(tensor.Float32, o.shape()))...)
}

func (o *gradients) shape() tensor.Shape                            { return resultShape(o.of.gradientShapes()) }
func (o *gradients) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.shape(), nil }
func (o *gradients) ReturnsPtr() bool                               { return true }
func (o *gradients) CallsExtern() bool                              { return false }
func (o *gradients) OverwritesInput() int                           { return -1 }
func (o *gradients) Hashcode() uint32                               { return hashcode(o) }
func (o *gradients) String() string                                 { return "∇" + o.of.String() }
func (o *gradients) DiffWRT(inputs int) []bool                      { return make([]bool, inputs) }

func (o *gradients) WriteHash(h hash.Hash) {
	fmt.Fprint(h, "gradients of ")
	o.of.WriteHash(h)
}

func (o *gradients) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("graph: %v has no second derivative", o.of.f)
}

func (o *gradients) Do(values ...G.Value) (G.Value, error) {
	var t *Tensor
	err := o.of.context.Do(func(s *cuda.Stream) (err error) {
		o.last.drop()
		o.last = nil
		t, err = o.run(s, values)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("graph: gradient of %v: %w", o.of.f, err)
	}
	return t, nil
}

func (o *gradients) run(s *cuda.Stream, values []G.Value) (*Tensor, error) {
	if len(values) != o.Arity() {
		return nil, fmt.Errorf("%d operands, want %d", len(values), o.Arity())
	}
	n := o.of.Arity()
	in, err := o.of.operands(values[:n])
	if err != nil {
		return nil, err
	}
	grad, ok := values[n].(*Tensor)
	output, ok2 := values[n+1].(*Tensor)
	if !ok || !ok2 {
		return nil, fmt.Errorf("the gradient of the result is %T and the result %T, want tensors on a device", values[n], values[n+1])
	}
	each := []*Tensor{grad}
	if len(o.of.out) > 1 {
		if each = grad.parts; each == nil {
			each = make([]*Tensor, len(o.of.out)) // nil stands for zero
		}
	}
	dout := make([]cuda.Array[float32], len(each))
	for i, g := range each {
		if g.zero() && len(each) > 1 {
			continue
		}
		if dout[i], err = g.array(); err != nil {
			return nil, fmt.Errorf("the gradient of the result %w", err)
		}
	}
	k := output.kept.Load()
	if o.of.readers.Load() == 1 {
		k = output.kept.Swap(nil)
	}
	if k == nil {
		return nil, fmt.Errorf("the values that the forward pass kept are gone, want one backward pass for each forward pass")
	}
	if o.of.readers.Load() == 1 {
		defer k.release()
	}
	shapes := o.of.gradientShapes()
	t, arrays, err := o.of.context.results(shapes, nil)
	if err != nil {
		return nil, err
	}
	o.last = t
	into := make([]cuda.Array[float32], len(o.of.in))
	for i, s := range o.of.in {
		if s.differentiable {
			into[i], arrays = arrays[0], arrays[1:]
		}
	}
	err = o.of.f.backward(s, in, dout, into, k.values)
	grad.drop() // no other operator reads it: every gradient on the device has one reader
	return t, err
}
