package op

import (
	"fmt"
	"hash"
	"hash/fnv"
	"slices"
	"sync/atomic"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
)

// function defines one operator of this package: its name, its operands' gradients, and its computations. The types operator, gradients,
// view and scatter turn a function into Gorgonia's operators. A function has a fixed list of operands, of which optional ones may be
// absent, and one or more results.
//
// A function must not keep a reference to a value, since a machine may overwrite any value before the backward pass runs.
type function interface {
	// String returns the operator's name with every parameter that changes its result. Gorgonia merges operators that have the same
	// name, shapes and operands.
	String() string
	// differentiable reports for each operand whether it has a gradient.
	differentiable() []bool
	// forward writes every element of every result.
	forward(in, out []operand)
	// backward computes the gradients from the operands and the results' gradients dout. It writes every element of every gradient.
	backward(in, dout, grad []operand)
}

// valueChecker is a function that refuses some values of its operands, such as an index out of range.
type valueChecker interface {
	function
	// check returns an error that names the operand and the element. It is called before forward and backward.
	check(in []operand) error
}

// operands holds the nodes of a function's operands, nil for absent ones, and their names in errors.
type operands struct {
	names []string
	nodes G.Nodes
}

// apply adds f to the graph of its operands and returns a node for each of its results.
func apply(f function, in operands, dt tensor.Dtype, results ...tensor.Shape) (G.Nodes, error) {
	o := &operator{f: f, names: in.names, dt: dt, out: results}
	if err := fits(dt, results); err != nil {
		return nil, fmt.Errorf("op: %v: %w", f, err)
	}
	var children G.Nodes
	for _, n := range in.nodes {
		if n == nil {
			o.in = append(o.in, slot{})
			continue
		}
		o.in = append(o.in, slot{shape: n.Shape(), dt: n.Dtype(), present: true})
		children = append(children, n)
	}
	for i, differentiable := range f.differentiable() {
		o.in[i].differentiable = differentiable && o.in[i].present
	}
	n, err := node.Apply(place(o), children...)
	if err != nil {
		return nil, fmt.Errorf("op: %v: %w", f, err)
	}
	if len(results) == 1 && o.keeps() == 0 {
		return G.Nodes{n}, nil
	}
	return views(n, results)
}

func apply1(f function, in operands, dt tensor.Dtype, result tensor.Shape) (*G.Node, error) {
	nodes, err := apply(f, in, dt, result)
	if err != nil {
		return nil, err
	}
	return nodes[0], nil
}

// slot describes an operand of a function.
type slot struct {
	shape          tensor.Shape
	dt             tensor.Dtype
	present        bool
	differentiable bool // present, and with a gradient
}

// operator runs a function forward. Several results are packed into one vector, one after another, since an operator of Gorgonia has one
// result.
type operator struct {
	f     function
	names []string
	dt    tensor.Dtype
	in    []slot
	out   []tensor.Shape

	readers atomic.Int32 // number of gradients operators that read the values that a keeper keeps

	own  bool    // the result is written into last
	last G.Value // the result of the last run, if own
}

var (
	_ G.SDOp            = (*operator)(nil)
	_ G.ADOp            = (*operator)(nil)
	_ G.UsePreallocDoer = (*operator)(nil)
)

// resultShape returns the shape of the packed results: their own if there is one, else a vector's.
func resultShape(shapes []tensor.Shape) tensor.Shape {
	if len(shapes) == 1 {
		return shapes[0].Clone()
	}
	return tensor.Shape{totalSize(shapes)}
}

func totalSize(shapes []tensor.Shape) (n int) {
	for _, s := range shapes {
		n += s.TotalSize()
	}
	return n
}

func typeOf(dt tensor.Dtype, s tensor.Shape) hm.Type {
	if s.IsScalar() {
		return dt
	}
	return G.TensorType{Dims: s.Dims(), Of: dt}
}

// Arity returns the number of operands that are present.
func (o *operator) Arity() (n int) {
	for _, s := range o.in {
		if s.present {
			n++
		}
	}
	return n
}

// Type returns the concrete types of the operands and the result, since an operator is made for certain operands.
func (o *operator) Type() hm.Type {
	var types []hm.Type
	for _, s := range o.in {
		if s.present {
			types = append(types, typeOf(s.dt, s.shape))
		}
	}
	return hm.NewFnType(append(types, typeOf(o.dt, resultShape(o.out)))...)
}

// InferShape returns the shape of the packed results.
func (o *operator) InferShape(...G.DimSizer) (tensor.Shape, error) { return resultShape(o.out), nil }

// Do runs the operator and returns a new value.
func (o *operator) Do(values ...G.Value) (G.Value, error) { return o.UsePreallocDo(nil, values...) }

// UsePreallocDo runs the operator. It writes the result into prealloc if that has the right type, shape and layout.
func (o *operator) UsePreallocDo(prealloc G.Value, values ...G.Value) (G.Value, error) {
	in, err := o.operands(values)
	if err != nil {
		return nil, err
	}
	if o.own {
		prealloc = o.last
	}
	result, flat := resultFor(prealloc, o.dt, resultShape(o.out))
	if o.readers.Load() > 0 {
		kept := borrow(o.dt, o.keeps())
		o.f.(keeper).forwardKeeping(in, unpack(flat, o.out), kept.operand)
		return newKeeping(result(), kept), nil
	}
	o.f.forward(in, unpack(flat, o.out))
	v := result()
	if o.own {
		o.last = v
	}
	return v, nil
}

// operands checks the values and returns them as operands, with zero operands for absent ones.
func (o *operator) operands(values []G.Value) ([]operand, error) {
	if len(values) != o.Arity() {
		return nil, fmt.Errorf("op: %v: %d operands, want %d", o.f, len(values), o.Arity())
	}
	in := make([]operand, len(o.in))
	for i, s := range o.in {
		if !s.present {
			continue
		}
		var err error
		if in[i], err = operandOf(values[0], s.dt, s.shape); err != nil {
			return nil, fmt.Errorf("op: %v: %s %w", o.f, o.names[i], err)
		}
		values = values[1:]
	}
	if f, ok := o.f.(valueChecker); ok {
		if err := f.check(in); err != nil {
			return nil, fmt.Errorf("op: %v: %w", o.f, err)
		}
	}
	return in, nil
}

// ReturnsPtr reports whether the result is a tensor, not a scalar: the tape machine can preallocate it.
func (o *operator) ReturnsPtr() bool { return !resultShape(o.out).IsScalar() }

// CallsExtern reports whether the tape machine should preallocate the result. The machine does so if ReturnsPtr is true as well.
func (o *operator) CallsExtern() bool { return o.ReturnsPtr() && !o.own }

// OverwritesInput returns -1: no operand is overwritten.
func (o *operator) OverwritesInput() int { return -1 }

// WriteHash writes all that distinguishes the operator from others: function, types and shapes.
func (o *operator) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba %v %v", o.f, o.dt)
	for _, s := range o.in {
		if s.present { // printing the zero Dtype panics
			fmt.Fprintf(h, " %v%v", s.dt, s.shape)
		} else {
			fmt.Fprint(h, " absent")
		}
	}
	fmt.Fprintf(h, " %v", o.out)
}

// Hashcode returns the hash of what WriteHash writes.
func (o *operator) Hashcode() uint32 { return hashcode(o) }

func (o *operator) String() string { return o.f.String() }

func hashcode(o G.Op) uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

// DiffWRT reports for each operand that is present whether it has a gradient.
func (o *operator) DiffWRT(int) []bool {
	var with []bool
	for _, s := range o.in {
		if s.present {
			with = append(with, s.differentiable)
		}
	}
	return with
}

// SymDiff adds one operator that computes all gradients into one vector, and a view of the vector for each operand with a gradient.
func (o *operator) SymDiff(in G.Nodes, output, grad *G.Node) (G.Nodes, error) {
	children := append(slices.Clone(in), grad)
	if o.keeps() > 0 {
		children = append(children, output)
		o.readers.Add(1)
	}
	packed, err := node.Apply(placeGradients(&gradients{o}), children...)
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %v: %w", o.f, err)
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

// backward computes the gradients and packs them into flat. The operand kept, the values from the forward pass, may be absent.
func (o *operator) backward(in []operand, grad, kept, flat operand) {
	each := unpack(flat, o.gradientShapes())
	into := make([]operand, len(o.in))
	for i, s := range o.in {
		if s.differentiable {
			into[i], each = each[0], each[1:]
		}
	}
	dout := unpack(grad, o.out)
	if k, ok := o.f.(keeper); ok && kept.data != nil {
		k.backwardKept(in, dout, into, kept)
		return
	}
	o.f.backward(in, dout, into)
}

// DoDiff adds the operator's gradients to the gradients of its inputs. Only the lisp machine calls it.
func (o *operator) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	values := make([]G.Value, len(inputs))
	for i, n := range inputs {
		values[i] = n.Value()
	}
	in, err := o.operands(values)
	if err != nil {
		return err
	}
	grad, err := gradientOf(output, o.dt, resultShape(o.out))
	if err != nil {
		return fmt.Errorf("op: gradient of %v: result %w", o.f, err)
	}
	flat := borrow(o.dt, totalSize(o.gradientShapes()))
	defer flat.giveBack()
	o.backward(in, grad, keptBy(output.Value()).operand, flat.operand)
	each := unpack(flat.operand, o.gradientShapes())
	for i, with := range o.DiffWRT(len(inputs)) {
		if !with {
			continue
		}
		if err := addToGradient(inputs[i], each[0]); err != nil {
			return fmt.Errorf("op: gradient of %v: operand %d %w", o.f, i, err)
		}
		each = each[1:]
	}
	return nil
}

// gradients runs a function backward. Its operands are the operator's operands, the gradient of the operator's result, and for a keeper the
// result itself. It takes the kept values from that result, and reads none of the result's elements.
type gradients struct{ of *operator }

var (
	_ G.SDOp            = (*gradients)(nil)
	_ G.UsePreallocDoer = (*gradients)(nil)
)

func (o *gradients) Arity() int { return o.of.Arity() + len(o.results()) }

// results returns the types of the operands that follow the operator's operands.
func (o *gradients) results() []hm.Type {
	result := typeOf(o.of.dt, resultShape(o.of.out))
	if o.of.keeps() > 0 {
		return []hm.Type{result, result}
	}
	return []hm.Type{result}
}

func (o *gradients) Type() hm.Type {
	var types []hm.Type
	for _, s := range o.of.in {
		if s.present {
			types = append(types, typeOf(s.dt, s.shape))
		}
	}
	types = append(types, o.results()...)
	return hm.NewFnType(append(types, typeOf(o.of.dt, o.shape()))...)
}

func (o *gradients) shape() tensor.Shape { return resultShape(o.of.gradientShapes()) }

func (o *gradients) InferShape(...G.DimSizer) (tensor.Shape, error) { return o.shape(), nil }

func (o *gradients) Do(values ...G.Value) (G.Value, error) { return o.UsePreallocDo(nil, values...) }

func (o *gradients) UsePreallocDo(prealloc G.Value, values ...G.Value) (G.Value, error) {
	if len(values) != o.Arity() {
		return nil, fmt.Errorf("op: gradient of %v: %d operands, want %d", o.of.f, len(values), o.Arity())
	}
	n := o.of.Arity()
	in, err := o.of.operands(values[:n])
	if err != nil {
		return nil, err
	}
	grad, err := operandOf(values[n], o.of.dt, resultShape(o.of.out))
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %v: result %w", o.of.f, err)
	}
	var kept loan
	if n+1 < len(values) {
		if kept = keptBy(values[n+1]); o.of.readers.Load() == 1 {
			kept = takeKept(values[n+1])
			defer kept.giveBack()
		}
	}
	result, flat := resultFor(prealloc, o.of.dt, o.shape())
	o.of.backward(in, grad, kept.operand, flat)
	return result(), nil
}

func (o *gradients) ReturnsPtr() bool     { return true }
func (o *gradients) CallsExtern() bool    { return true }
func (o *gradients) OverwritesInput() int { return -1 }

func (o *gradients) WriteHash(h hash.Hash) {
	fmt.Fprint(h, "gradients of ")
	o.of.WriteHash(h)
}

func (o *gradients) Hashcode() uint32 { return hashcode(o) }
func (o *gradients) String() string   { return "∇" + o.of.String() }

// DiffWRT returns false for all operands, since there are no second derivatives. If it returned nil, Gorgonia would refuse to
// differentiate a second loss in the same graph.
func (o *gradients) DiffWRT(inputs int) []bool { return make([]bool, inputs) }

func (o *gradients) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %v has no second derivative", o.of.f)
}
