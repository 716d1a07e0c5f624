// Package operator makes Gorgonia operators of functions. A function has a shape rule, a computation on the host and, where there is one, a
// computation on a device; this package has what all of them share: several results in one value, gradients, values that are kept for the
// backward pass, places, and values on a device. Package op has the functions.
package operator

import (
	"fmt"
	"hash"
	"hash/fnv"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/size"
)

// slot describes an operand of an operator.
type slot struct {
	name           string
	kind           Kind
	shape          tensor.Shape
	dt             tensor.Dtype
	present        bool
	differentiable bool // present, and Numbers
	passed         bool
}

// frame is what the operators of this package share: Gorgonia's questions about types and shapes, which an operator that is made for certain
// operands answers without them.
type frame struct {
	name  string // with all that distinguishes the operator from others, except places, types and shapes
	place Place  // of the result
	in    []slot
	dt    tensor.Dtype // of the result
	to    tensor.Shape // of the result
}

func (f *frame) types() (types []hm.Type) {
	for _, s := range f.in {
		if s.present {
			types = append(types, typeOf(s.dt, s.shape))
		}
	}
	return types
}

func (f *frame) Arity() (n int) {
	for _, s := range f.in {
		if s.present {
			n++
		}
	}
	return n
}

func (f *frame) Type() hm.Type                                  { return hm.NewFnType(append(f.types(), typeOf(f.dt, f.to))...) }
func (f *frame) InferShape(...G.DimSizer) (tensor.Shape, error) { return f.to.Clone(), nil }
func (f *frame) ReturnsPtr() bool                               { return !f.to.IsScalar() }
func (f *frame) OverwritesInput() int                           { return -1 }
func (f *frame) String() string                                 { return f.name }
func (f *frame) Place() Place                                   { return f.place }

func (f *frame) WriteHash(h hash.Hash) {
	fmt.Fprintf(h, "mamba %s %p %v %v%v", f.name, f.place.context, f.place.precision, f.dt, f.to)
	for _, s := range f.in {
		if s.present { // printing the zero Dtype panics
			fmt.Fprintf(h, " %v%v", s.dt, s.shape)
		} else {
			fmt.Fprint(h, " absent")
		}
	}
}

func (f *frame) Hashcode() uint32 {
	h := fnv.New32a()
	f.WriteHash(h)
	return h.Sum32()
}

// Operator runs a function forward. Several results are packed into one value, since an operator of Gorgonia has one result: on the host into
// a vector, one after another; on a device into a Tensor with parts.
type Operator struct {
	frame
	op       string // the name without parameters, for messages
	out      []tensor.Shape
	body     body
	function any          // that the body runs
	readers  atomic.Int32 // number of gradients operators that read the kept values
	grads    []tensor.Shape
	shared   bool // see Share
	reuses   bool // see ReuseResults
}

// body is what differs between the places and the types of numbers.
type body interface {
	// forward returns the packed results.
	forward(o *Operator, prealloc G.Value, values []G.Value) (G.Value, error)
	// backward returns the packed gradients. The values are those of the operands, then the gradient of the packed results, and, if
	// needsResult, the packed results themselves.
	backward(o *Operator, prealloc G.Value, values []G.Value) (G.Value, error)
	// accumulate adds the gradients to those of the inputs, for the lisp machine.
	accumulate(o *Operator, inputs G.Nodes, output *G.Node) error
	// needsResult reports whether the backward pass reads the packed results, which carry the kept values.
	needsResult() bool
	// preallocates reports whether the backward pass writes into a given value.
	preallocates() bool
	// fresh returns a body for another operator of the same function.
	fresh() body
}

var (
	_ G.SDOp            = (*Operator)(nil)
	_ G.ADOp            = (*Operator)(nil)
	_ G.UsePreallocDoer = (*Operator)(nil)
)

// Replace returns the operator to add to a graph instead of o, which is an *Operator or a *Gradients. Package cudamachine sets it.
var Replace = func(o G.Op) G.Op { return o }

// New returns the operator of a definition, and its operands with those copied that have to be on a device.
func New(d Definition) (*Operator, G.Nodes, error) {
	o := &Operator{frame: frame{name: d.Name + parameters(d.Float32), dt: d.Dtype}, op: d.Name, out: d.Out}
	first := -1
	for i, in := range d.In {
		if in.Node == nil || in.Kind != Numbers {
			continue
		}
		switch p := PlaceOf(in.Node); {
		case first < 0:
			o.place, first = p, i
		case p != o.place:
			return nil, nil, fmt.Errorf("%s is on %v, want %v like %s", in.Name, p, o.place, d.In[first].Name)
		}
	}
	if err := o.setBody(d, first); err != nil {
		return nil, nil, err
	}
	var children G.Nodes
	for _, in := range d.In {
		s := slot{name: in.Name, kind: in.Kind}
		if n := in.Node; n != nil {
			if err := countable(n.Shape()); err != nil {
				return nil, nil, fmt.Errorf("%s %w", in.Name, err)
			}
			if at := PlaceOf(n); in.Kind != Numbers && !at.OnHost() {
				if _, ok := n.Op().(*raise); !ok || at.context != o.place.context {
					return nil, nil, fmt.Errorf("%s is on %v, want a node on the host, which is copied to a device by itself", in.Name, at)
				}
			} else if in.Kind != Numbers && !o.place.OnHost() {
				var err error
				if n, err = o.place.context.raise(n, in.Kind); err != nil {
					return nil, nil, fmt.Errorf("%s: %w", in.Name, err)
				}
			}
			s.shape, s.dt, s.present = n.Shape(), n.Dtype(), true
			s.differentiable, s.passed = in.Kind == Numbers, in.Passed
			children = append(children, n)
		}
		o.in = append(o.in, s)
	}
	for _, s := range o.in {
		if o.computed(s) {
			o.grads = append(o.grads, s.shape)
		}
	}
	o.to = resultShape(o.out)
	return o, children, nil
}

// parameters returns the fields of a function, as "{rows:6, channels:4}".
func parameters(f any) string {
	s := fmt.Sprintf("%#v", f) // not %v: a parameter with a method String could hide others
	return s[strings.IndexByte(s, '{'):]
}

// setBody chooses the function by place and type, and checks the sizes of the results.
func (o *Operator) setBody(d Definition, first int) error {
	if o.place.OnHost() {
		var need size.Bytes
		for _, s := range o.out {
			need = need.Plus(size.Of(o.dt.Size(), s...))
		}
		o.body, o.function = &host[float32]{f: d.Float32}, d.Float32
		if o.dt == tensor.Float64 {
			o.body, o.function = &host[float64]{f: d.Float64}, d.Float64
		}
		return need.Fits(fmt.Sprintf("the results %v", o.out))
	}
	f, ok := d.Float32.(OnDevice)
	if !ok {
		return fmt.Errorf("it has no function on a device, and %s is on %v; Download it first", d.In[first].Name, o.place)
	}
	if l, ok := d.Float32.(Limited); ok {
		if err := l.Fits(o.place.precision); err != nil {
			return err
		}
	}
	for i, s := range o.out {
		if s.IsScalar() {
			o.out = slices.Clone(o.out)
			o.out[i] = tensor.Shape{1}
		}
		if err := countable(s); err != nil {
			return fmt.Errorf("a result %w", err)
		}
	}
	o.body, o.function = (&device{f: f}).fresh(), f
	return nil
}

func apply(d Definition) (G.Nodes, error) {
	o, children, err := New(d)
	if err != nil {
		return nil, err
	}
	n, err := node.Apply(Replace(o), children...)
	if err != nil {
		return nil, err
	}
	switch {
	case len(d.Out) == 1 && d.Out[0].IsScalar() && !o.place.OnHost():
		n, err = node.Apply(o.place.newTransfer(false, tensor.Shape{1}, tensor.ScalarShape()), n)
		return G.Nodes{n}, err
	case len(d.Out) == 1 && (!o.body.needsResult() || !o.place.OnHost()):
		return G.Nodes{n}, nil
	}
	return o.views(n, o.out)
}

// Of returns the operator that a Gorgonia operator is or is made of, nil if there is none.
func Of(o G.Op) *Operator {
	switch o := o.(type) {
	case *Operator:
		return o
	case interface{ Made() *Operator }:
		return o.Made()
	}
	return nil
}

// Share allows the operator to be applied several times in a graph. ReuseResults then does nothing. On a device the operator does not free its last
// result when it runs again; the garbage collector does.
func (o *Operator) Share() { o.shared = true }

// Function returns the function of the operator.
func (o *Operator) Function() any { return o.function }

// Slots returns the shapes and kinds of all operands and whether the backward pass computes their gradients: a nil shape for absent operands.
func (o *Operator) Slots() (shapes []tensor.Shape, kinds []Kind, computed []bool) {
	for _, s := range o.in {
		shapes, kinds, computed = append(shapes, s.shape), append(kinds, s.kind), append(computed, o.computed(s))
	}
	return shapes, kinds, computed
}

// Results returns the shapes of the results.
func (o *Operator) Results() []tensor.Shape { return o.out }

// resultShape returns the shape of packed values: their own if there is one, else a vector's.
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

var runs atomic.Uint64

// Runs returns how many operators have begun to run in this process: a sign that a long run of a graph makes progress.
func Runs() uint64 { return runs.Load() }

// Do runs the operator and returns a new value.
func (o *Operator) Do(values ...G.Value) (G.Value, error) { return o.UsePreallocDo(nil, values...) }

// UsePreallocDo runs the operator. On the host it writes the result into prealloc if that has the right type, shape and layout.
func (o *Operator) UsePreallocDo(prealloc G.Value, values ...G.Value) (v G.Value, err error) {
	runs.Add(1)
	if err = o.count(values, o.Arity()); err == nil {
		v, err = o.body.forward(o, prealloc, values)
	}
	if err != nil {
		return nil, o.wrong(err)
	}
	return v, nil
}

func (o *Operator) wrong(err error) error { return fmt.Errorf("op: %s: %w", o.op, err) }

func (o *Operator) count(values []G.Value, want int) error {
	if len(values) != want {
		return fmt.Errorf("%d operands, want %d", len(values), want)
	}
	return nil
}

// nodes returns an error if the nodes are not those of all operands, the result and its gradient.
func (o *Operator) nodes(all G.Nodes) error {
	for i, n := range all {
		if n == nil || n.Graph() == nil {
			return fmt.Errorf("node %d of the operands, the result and its gradient is missing", i)
		}
	}
	if got, want := len(all)-2, o.Arity(); got != want {
		return fmt.Errorf("%d operands, want %d", got, want)
	}
	return nil
}

// check calls the function's check of integers.
func (o *Operator) check(ints [][]int) error {
	c, ok := o.function.(Checker)
	if !ok {
		return nil
	}
	shapes := make([]tensor.Shape, len(o.in))
	for i, s := range o.in {
		shapes[i] = s.shape
	}
	return c.Check(shapes, ints)
}

// CallsExtern reports whether the tape machine should preallocate the result. The machine does so if ReturnsPtr is true as well.
func (o *Operator) CallsExtern() bool { return o.ReturnsPtr() && o.place.OnHost() && !o.reuses }

func (o *Operator) String() string {
	if o.place.OnHost() {
		return o.name
	}
	return o.name + " on a device"
}

// DiffWRT reports for each operand that is present whether it has a gradient.
func (o *Operator) DiffWRT(int) []bool {
	var with []bool
	for _, s := range o.in {
		if s.present {
			with = append(with, s.differentiable)
		}
	}
	return with
}

// computed reports whether the operator of the gradients has a gradient for an operand. On the host a passed gradient is the gradient of the
// result itself. On a device every gradient has one reader, so each operand gets a value of its own that shares the memory.
func (o *Operator) computed(s slot) bool {
	return s.differentiable && !(s.passed && o.place.OnHost())
}

// reads reports whether the operator of the gradients reads the numbers of the operands on a device.
func (o *Operator) reads() bool {
	_, linear := o.function.(Linear)
	return !linear && o.computes()
}

// computes reports whether the operator of the gradients computes one on a device, where it otherwise passes all of them on.
func (o *Operator) computes() bool {
	return slices.ContainsFunc(o.in, func(s slot) bool { return s.differentiable && !s.passed })
}

// gradientShapes returns the shapes of the gradients that the operator of the gradients computes.
func (o *Operator) gradientShapes() []tensor.Shape { return o.grads }

// SymDiff adds one operator that computes all gradients into one value, and a view of it for each operand with a gradient.
func (o *Operator) SymDiff(in G.Nodes, output, grad *G.Node) (G.Nodes, error) {
	if err := o.nodes(append(slices.Clone(in), output, grad)); err != nil {
		return nil, o.wrong(err)
	}
	var each G.Nodes
	if shapes := o.gradientShapes(); len(shapes) > 0 {
		children := append(slices.Clone(in), grad)
		if o.body.needsResult() {
			children = append(children, output)
			o.readers.Add(1)
		}
		packed, err := node.Apply(Replace(o.gradients()), children...)
		if err != nil {
			return nil, fmt.Errorf("op: gradient of %s: %w", o.op, err)
		}
		if each = (G.Nodes{packed}); len(shapes) > 1 {
			if each, err = o.views(packed, shapes); err != nil {
				return nil, err
			}
		}
	}
	var result G.Nodes
	for _, s := range o.in {
		switch {
		case !s.present:
		case o.computed(s):
			result, each = append(result, each[0]), each[1:]
		case s.differentiable:
			result = append(result, grad)
		default:
			result = append(result, nil)
		}
	}
	return result, nil
}

// DoDiff adds the operator's gradients to the gradients of its inputs. Only the lisp machine calls it.
func (o *Operator) DoDiff(_ G.ExecutionContext, inputs G.Nodes, output *G.Node) error {
	if err := o.nodes(append(slices.Clone(inputs), output, output)); err != nil {
		return o.wrong(err)
	}
	if err := o.body.accumulate(o, inputs, output); err != nil {
		return fmt.Errorf("op: gradient of %s: %w", o.op, err)
	}
	return nil
}

// ReuseResults makes the operators of a graph that run on the host write their results and their gradients into the memory of the last run, unless these
// are more than most bytes in all. It reports whether they are not.
func ReuseResults(g *G.ExprGraph, most int) (few bool) {
	var all []*Operator
	var bytes size.Bytes
	for _, n := range g.AllNodes() {
		o := Of(n.Op())
		if o != nil {
			all = append(all, o)
		}
		if _, ok := n.Op().(*Gradients); ok || o != nil {
			bytes = bytes.Plus(size.Of(n.Dtype().Size(), n.Shape()...))
		}
	}
	for _, o := range all {
		o.reuses = !o.shared && o.place.OnHost() && bytes <= size.Bytes(most)
	}
	for _, n := range g.AllNodes() {
		v, ok := n.Op().(*view)
		if !ok {
			continue
		}
		switch o := node.Operands(n)[0].Op().(type) {
		case *Operator:
			v.reuses = o.reuses
		case *Gradients:
			v.reuses = o.of.reuses
		}
	}
	return bytes <= size.Bytes(most)
}

// Gradients runs a function backward. Its operands are the operator's operands, the gradient of the operator's result, and, if the function
// keeps values, the result itself. It takes the kept values from that result, and reads none of the result's elements.
type Gradients struct {
	frame
	of     *Operator
	body   body
	before func() // see Before
}

var (
	_ G.SDOp            = (*Gradients)(nil)
	_ G.UsePreallocDoer = (*Gradients)(nil)
)

func (o *Operator) gradients() *Gradients {
	g := &Gradients{frame: o.frame, of: o, body: o.body.fresh()}
	result := slot{shape: o.to, dt: o.dt, present: true}
	g.name, g.to, g.in = "∇"+o.name, resultShape(o.gradientShapes()), append(slices.Clone(o.in), result)
	if g.body.needsResult() {
		g.in = append(g.in, result)
	}
	return g
}

// Of returns the operator.
func (o *Gradients) Of() *Operator { return o.of }

// Before makes the operator call f each time before it runs. A tape machine has then added the gradients of all earlier nodes to those of the weights
// (gorgonia.BindDualValues).
func (o *Gradients) Before(f func()) { o.before = f }

// Shapes returns the shapes of the gradients.
func (o *Gradients) Shapes() []tensor.Shape { return o.of.gradientShapes() }

func (o *Gradients) Do(values ...G.Value) (G.Value, error) { return o.UsePreallocDo(nil, values...) }

func (o *Gradients) UsePreallocDo(prealloc G.Value, values ...G.Value) (v G.Value, err error) {
	runs.Add(1)
	if o.before != nil {
		o.before()
	}
	if err = o.of.count(values, o.Arity()); err == nil {
		v, err = o.body.backward(o.of, prealloc, values)
	}
	if err != nil {
		return nil, fmt.Errorf("op: gradient of %s: %w", o.of.op, err)
	}
	return v, nil
}

func (o *Gradients) CallsExtern() bool { return o.body.preallocates() && !o.of.reuses }
func (o *Gradients) String() string    { return "∇" + o.of.String() }

// DiffWRT returns false for all operands, since there are no second derivatives. If it returned nil, Gorgonia would refuse to
// differentiate a second loss in the same graph.
func (o *Gradients) DiffWRT(inputs int) []bool { return make([]bool, inputs) }

func (o *Gradients) SymDiff(G.Nodes, *G.Node, *G.Node) (G.Nodes, error) {
	return nil, fmt.Errorf("op: %s has no second derivative", o.of.op)
}
