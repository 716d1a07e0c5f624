package grad

import (
	"errors"
	"fmt"
	"math"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Func is the function whose gradient is checked. It builds outputs from input nodes, in the graph of the inputs. Check calls it several
// times, each time with inputs in a new graph. It must build the same function each time.
//
// The outputs are of float64 and of any shape. Check differentiates a sum of all their elements. Each element is weighted with a fixed
// random number, so that errors in the gradients of different outputs or elements do not cancel.
type Func func(in G.Nodes) (G.Nodes, error)

// Single returns a Func for a function with one output.
func Single(f func(in G.Nodes) (*G.Node, error)) Func {
	if f == nil {
		return nil // Check says so
	}
	return func(in G.Nodes) (G.Nodes, error) {
		n, err := f(in)
		return G.Nodes{n}, err
	}
}

// Input is an input of a function, with the value at which the gradient is checked.
type Input struct {
	Name  string        // unique among the inputs
	Value *tensor.Dense // of float64, finite; Check copies it and never writes to it
	// Constant inputs are not differentiated, and can be of any type, such as indices or flags.
	Constant bool
	// Node is for inputs that the function does not take from its arguments, such as the weights of a layer that it
	// calls. It returns the node of the input in a graph: the same node for every call with that graph. Check binds this
	// node to a copy of Value. If Node is nil, Check makes the node.
	Node func(g *G.ExprGraph) *G.Node
}

// Machine is one of Gorgonia's machines.
type Machine int

// The machines on which gradients are checked.
const (
	Tape Machine = iota // gorgonia.NewTapeMachine, with the gradients of gorgonia.Grad
	Lisp                // gorgonia.NewLispMachine
)

func (m Machine) String() string {
	switch m {
	case Tape:
		return "tape machine"
	case Lisp:
		return "lisp machine"
	}
	return fmt.Sprintf("machine %d", int(m))
}

// Option changes how Check checks.
type Option func(*config)

type config struct {
	sample   int // elements of each input, 0 for all
	sampled  bool
	seed     uint64
	step     float64
	rel, abs float64
	machines []Machine
}

// Sample checks n random elements of each input instead of all. Each element costs at least four forward runs of the function.
func Sample(n int, seed uint64) Option {
	return func(c *config) { c.sample, c.seed, c.sampled = n, seed, true }
}

// Step sets the largest step from an element x, h·max(1, |x|). The default for h is 1e-3. Smaller steps follow, each a quarter of the one
// before, and their differences are extrapolated.
func Step(h float64) Option { return func(c *config) { c.step = h } }

// Tolerance sets the largest difference between two gradients that is accepted: abs + rel·(the larger of their magnitudes). The defaults
// are rel = 1e-6 and abs = 1e-8. Errors smaller than abs are not seen, so choose inputs with gradients well above abs.
func Tolerance(rel, abs float64) Option { return func(c *config) { c.rel, c.abs = rel, abs } }

// Machines sets the machines to check on. The default is both.
func Machines(m ...Machine) Option { return func(c *config) { c.machines = m } }

// Check compares the gradients of f that Gorgonia's machines find with central differences, element by element. It returns the worst
// element of each machine. The differences are in float64 and extrapolated to a step of zero (Ridders, Accurate computation of
// F'(x) and F'(x) F”(x), 1982).
//
// The error is not nil if the check fails. It has a line for each machine and input that is wrong, or for the reason that stopped the
// check:
//   - the gradient differs from the differences (the line has the index of the worst element), or is NaN or infinite;
//   - the input has no gradient, or its gradient is zero everywhere and the differences are not;
//   - the gradient changes when the tape machine runs a second time, when it is read from the node's dual value as solvers
//     do (see gorgonia.BindDualValues), or when a second lisp machine runs on the same graph. Gorgonia's own SoftMax fails
//     with a second lisp machine;
//   - a run overwrites an input, or its outputs differ from those of the run before;
//   - the function cannot be built, differentiated or run.
//
// At a kink of the function, no gradient agrees with the differences. Keep inputs away from kinks by more than a thousandth of the Step.
//
// Check returns a panic in the code that adds gradients to the graph as an error. It cannot recover a panic in an operator's Do or
// DoDiff, since Gorgonia's machines run operators in a goroutine of their own.
func Check(f Func, inputs []Input, opts ...Option) (Report, error) {
	c := &checker{f: f, inputs: inputs, config: config{step: 1e-3, rel: 1e-6, abs: 1e-8, machines: []Machine{Tape, Lisp}}}
	for i, o := range opts {
		if o == nil {
			return Report{}, fmt.Errorf("grad: option %d is nil, want what a function such as Sample returned", i)
		}
		o(&c.config)
	}
	if err := c.validate(); err != nil {
		return Report{}, fmt.Errorf("grad: %w", err)
	}
	report, failures := c.check()
	for i, err := range failures {
		failures[i] = fmt.Errorf("grad: %w", err)
	}
	return report, errors.Join(failures...)
}

// TB has the methods of a test that MustCheck calls. *testing.T and *rapid.T have them.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// MustCheck calls Check, and ends the test if the check fails.
func MustCheck(t TB, f Func, inputs []Input, opts ...Option) Report {
	t.Helper()
	report, err := Check(f, inputs, opts...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return report
}

type checker struct {
	config
	f      Func
	inputs []Input
}

func (c *checker) validate() error {
	switch {
	case c.f == nil:
		return errors.New("the function is nil")
	case c.sampled && c.sample < 1:
		return fmt.Errorf("Sample is %d, want at least 1 element", c.sample)
	case !(c.step > 0) || math.IsInf(c.step, 0):
		return fmt.Errorf("Step is %v, want a positive number", c.step)
	case !(c.rel >= 0 && c.abs >= 0) || c.rel+c.abs == 0 || math.IsInf(c.rel+c.abs, 0):
		return fmt.Errorf("Tolerance is (%v, %v), want numbers that are not negative, and not both zero", c.rel, c.abs)
	case len(c.machines) == 0:
		return errors.New("Machines is empty, want one at least")
	}
	for i, m := range c.machines {
		if m != Tape && m != Lisp {
			return fmt.Errorf("Machines has %v, want Tape or Lisp", m)
		}
		if slices.Contains(c.machines[:i], m) {
			return fmt.Errorf("Machines has the %v twice", m)
		}
	}
	differentiated := 0
	names := map[string]bool{}
	for i, in := range c.inputs {
		switch {
		case in.Name == "":
			return fmt.Errorf("input %d has no name", i)
		case names[in.Name]:
			return fmt.Errorf("two inputs have the name %s; Gorgonia would take them for one", in.Name)
		case in.Value == nil:
			return fmt.Errorf("input %s has no value", in.Name)
		case in.Value.Shape().TotalSize() == 0:
			return fmt.Errorf("input %s has shape %v, which has no elements", in.Name, in.Value.Shape())
		}
		names[in.Name] = true
		if in.Constant {
			continue
		}
		differentiated++
		if in.Value.Dtype() != tensor.Float64 {
			return fmt.Errorf("input %s is of %v; want float64, or Constant set", in.Name, in.Value.Dtype())
		}
		if k := firstNotFinite(denseElements(in.Value)); k >= 0 {
			return fmt.Errorf("input %s is %v at %v, want a finite number", in.Name, denseElements(in.Value)[k], index(k, in.Value.Shape()))
		}
	}
	if differentiated == 0 {
		return errors.New("no input to differentiate by")
	}
	return nil
}

// check runs the whole check, and returns every failure that it can find.
func (c *checker) check() (Report, []error) {
	numeric, err := c.newNumeric()
	if err != nil {
		return Report{}, []error{err}
	}
	defer numeric.m.Close()
	var failures []error
	var all []*gradients
	for _, m := range c.machines {
		found, errs := c.gradients(m)
		failures = append(failures, errs...)
		if found == nil {
			continue
		}
		if found.ran && !c.close(found.loss, numeric.loss) {
			failures = append(failures, fmt.Errorf("%v: the outputs' weighted sum is %v beside the gradients, %v without them",
				m, found.loss, numeric.loss))
		}
		all = append(all, found)
	}
	report, errs := c.compare(numeric, all)
	return report, append(failures, errs...)
}

// allowed returns the accepted difference of two gradients.
func (c *checker) allowed(a, b float64) float64 { return c.abs + c.rel*max(math.Abs(a), math.Abs(b)) }

func (c *checker) close(a, b float64) bool {
	// An infinite gradient would allow any difference.
	return finite(a) && finite(b) && math.Abs(a-b) <= c.allowed(a, b)
}
