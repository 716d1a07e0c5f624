package grad

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// Report is the result of a check.
type Report struct {
	Elements int       // the number of elements of the inputs that were compared on each machine
	Worst    []Element // for each machine, the element with the largest difference in units of the tolerance
}

// Element is an element of an input with its two gradients.
type Element struct {
	Machine  Machine
	Input    string
	Index    []int
	Gradient float64 // of the machine
	Numeric  float64 // by finite differences
}

// Absolute returns the difference of the gradients.
func (e Element) Absolute() float64 { return math.Abs(e.Gradient - e.Numeric) }

// Relative returns the difference of the gradients divided by the larger of their magnitudes.
func (e Element) Relative() float64 {
	if e.Gradient == e.Numeric {
		return 0
	}
	return e.Absolute() / max(math.Abs(e.Gradient), math.Abs(e.Numeric))
}

func (e Element) String() string {
	return fmt.Sprintf("%v: %s: at %v the gradient is %v, finite differences give %v", e.Machine, e.Input, e.Index, e.Gradient, e.Numeric)
}

// String returns a line with the number of elements, and a line for each machine.
func (r Report) String() string {
	lines := []string{fmt.Sprintf("%d elements", r.Elements)}
	for _, e := range r.Worst {
		lines = append(lines, fmt.Sprintf("worst on the %v (relative %.2g, absolute %.2g)", e, e.Relative(), e.Absolute()))
	}
	return strings.Join(lines, "\n")
}

// excess returns the difference of the gradients divided by the accepted difference.
func (c *checker) excess(e Element) float64 {
	if !finite(e.Gradient) || !finite(e.Numeric) {
		return math.Inf(1)
	}
	if e.Gradient == e.Numeric {
		return 0 // also if the tolerance for zeros is zero
	}
	return e.Absolute() / c.allowed(e.Gradient, e.Numeric)
}

// chosen returns the indices of the elements to check, of an input with size elements.
func (c *checker) chosen(input, size int) (numbers []int) {
	if !c.sampled || c.sample >= size {
		for k := range size {
			numbers = append(numbers, k)
		}
		return numbers
	}
	r := rand.New(rand.NewPCG(c.seed, uint64(input)))
	numbers = r.Perm(size)[:c.sample]
	slices.Sort(numbers)
	return numbers
}

// compare compares the difference at each element with the gradients of the machines.
func (c *checker) compare(n *numeric, found []*gradients) (Report, []error) {
	var report Report
	var failures []error
	worst := make([]*Element, len(found))
	for _, i := range c.differentiated() {
		in := c.inputs[i]
		values := denseElements(in.Value)
		tallies := make([]tally, len(found))
		for _, k := range c.chosen(i, len(values)) {
			at := index(k, in.Value.Shape())
			d, err := n.derivative(i, k, values[k], func(d float64) bool {
				for _, g := range found {
					// A hundredth of the tolerance, so that the reported error is the gradient's and not the finite difference's.
					if g.of[i] != nil && !(c.excess(Element{Gradient: g.of[i][k], Numeric: d}) < 0.01) {
						return false
					}
				}
				return true
			})
			if err != nil {
				return report, append(failures, fmt.Errorf("forward, with input %s changed at %v: %w", in.Name, at, err))
			}
			report.Elements++
			for m, g := range found {
				e := Element{g.machine, in.Name, at, 0, d}
				if g.of[i] != nil {
					e.Gradient = g.of[i][k]
					if worst[m] == nil || c.excess(e) > c.excess(*worst[m]) {
						worst[m] = &e
					}
				}
				tallies[m].add(c, e)
			}
		}
		for m, g := range found {
			if err := tallies[m].failure(g, i); err != nil {
				failures = append(failures, fmt.Errorf("%v: %s: %w", g.machine, in.Name, err))
			}
		}
	}
	if err := n.changed(); err != nil {
		failures = append(failures, fmt.Errorf("forward: %w", err))
	}
	for _, e := range worst {
		if e != nil {
			report.Worst = append(report.Worst, *e)
		}
	}
	return report, failures
}

// tally counts the elements of one input for one machine.
type tally struct {
	checked, wrong int
	worst          Element
	zero           int // elements with a gradient of zero
}

func (t *tally) add(c *checker, e Element) {
	t.checked++
	if e.Gradient == 0 {
		t.zero++
	}
	if excess := c.excess(e); t.checked == 1 || excess > c.excess(t.worst) {
		t.worst = e
	}
	if c.excess(e) > 1 {
		t.wrong++
	}
}

func (t *tally) failure(found *gradients, input int) error {
	e := t.worst
	switch {
	case found.of[input] == nil && t.wrong == 0:
		return fmt.Errorf("there is no gradient (%s); finite differences give 0 too, so the function does not depend on it: make it Constant",
			found.missing[input])
	case found.of[input] == nil:
		return fmt.Errorf("there is no gradient (%s), but finite differences give %v at %v%s", found.missing[input], e.Numeric, e.Index, found.hint)
	case t.wrong == 0:
		return nil
	case t.zero == t.checked:
		return fmt.Errorf("the gradient is zero in all %d elements checked, but finite differences give %v at %v%s",
			t.checked, e.Numeric, e.Index, found.hint)
	}
	return fmt.Errorf("%d of %d elements checked are wrong, the worst at %v: the gradient is %v, finite differences give %v%s",
		t.wrong, t.checked, e.Index, e.Gradient, e.Numeric, found.hint)
}
