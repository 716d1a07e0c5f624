package grad

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
)

// numeric evaluates the function on a tape machine.
type numeric struct {
	*built
	m       G.VM
	values  []G.Value   // of the outputs, as read
	weights [][]float64 // of the outputs' elements in the sum
	step    float64
	loss    float64 // at the inputs' values
}

// newNumeric builds the function, and runs it twice to see that the outputs are the same.
func (c *checker) newNumeric() (*numeric, error) {
	b, err := c.build()
	if err != nil {
		return nil, err
	}
	n := &numeric{built: b, values: make([]G.Value, len(b.outputs)), step: c.step}
	for i, p := range newWeightedSum(b.outputs, nil).operands {
		n.weights = append(n.weights, p.weights)
		G.Read(b.outputs[i], &n.values[i])
	}
	if n.m, err = newMachine(b.g, func() G.VM { return G.NewTapeMachine(b.g) }); err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	first, err := n.run()
	if err == nil {
		err = b.changed()
	}
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	for i, v := range first {
		if k := firstNotFinite(v); k >= 0 {
			return nil, fmt.Errorf("forward: output %d is %v at %v, so there is no gradient to check", i, v[k], index(k, b.outputs[i].Shape()))
		}
		n.loss += dot(n.weights[i], v)
	}
	second, err := n.run()
	if err == nil {
		err = b.changed()
	}
	if err != nil {
		return nil, fmt.Errorf("forward: second run: %w", err)
	}
	for i, v := range first {
		for k, x := range v {
			if y := second[i][k]; x != y {
				return nil, fmt.Errorf("forward: output %d at %v is %v in the first run, and %v in the second", i, index(k, b.outputs[i].Shape()), x, y)
			}
		}
	}
	return n, nil
}

func (n *numeric) run() ([][]float64, error) {
	clear(n.values)
	n.m.Reset()
	if err := n.m.RunAll(); err != nil {
		return nil, err
	}
	outputs := make([][]float64, len(n.values))
	for i, v := range n.values {
		var err error
		if outputs[i], err = elements(v, n.outputs[i].Shape()); err != nil {
			return nil, fmt.Errorf("output %d %w", i, err)
		}
	}
	return outputs, nil
}

// at runs the function with element k of input i set to x.
func (n *numeric) at(i, k int, x float64) ([][]float64, error) {
	switch v := n.built.values[i].(type) {
	case *G.F64:
		was := *v
		*v = G.F64(x)
		defer func() { *v = was }()
	case interface {
		GetF64(int) float64
		SetF64(int, float64)
	}:
		was := v.GetF64(k)
		v.SetF64(k, x)
		defer v.SetF64(k, was)
	}
	return n.run()
}

// difference returns the central difference of the weighted sum of the outputs. It subtracts the outputs first and sums then, so that
// outputs that do not depend on the element add no rounding error.
func (n *numeric) difference(i, k int, x, h float64) (float64, error) {
	low, high := x-h, x+h
	minus, err := n.at(i, k, low)
	if err != nil {
		return 0, err
	}
	plus, err := n.at(i, k, high)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for o, w := range n.weights {
		for e, y := range plus[o] {
			sum += w[e] * (y - minus[o][e])
		}
	}
	return sum / (high - low), nil // not 2h: the ends are rounded
}

// Each step is shrink times smaller than the one before, and there are at most levels steps. The smallest is a thousandth of the first:
// small enough to stay between most kinks, large enough to leave nine digits of the difference.
const (
	shrink = 4
	levels = 6
)

// derivative extrapolates differences to a step of zero by Ridders' method. It stops as soon as the result is good enough, and else
// returns the result with the smallest estimated error. It returns NaN if no two differences are finite.
func (n *numeric) derivative(i, k int, x float64, goodEnough func(float64) bool) (float64, error) {
	best, bestError := math.NaN(), math.Inf(1)
	var last []float64 // estimates from the steps so far, of increasing order
	h := n.step * max(1, math.Abs(x))
	for range levels {
		d, err := n.difference(i, k, x, h)
		if err != nil {
			return 0, err
		}
		h /= shrink
		if !finite(d) { // perhaps the function is defined only closer to x
			last = nil
			continue
		}
		now, factor := []float64{d}, float64(shrink*shrink)
		for j, coarse := range last {
			// The error of a central difference is a series in h². Each order removes one more term.
			now = append(now, now[j]+(now[j]-coarse)/(factor-1))
			factor *= shrink * shrink
			if e := max(math.Abs(now[j+1]-now[j]), math.Abs(now[j+1]-coarse)); e <= bestError {
				best, bestError = now[j+1], e
			}
		}
		last = now
		if len(now) > 1 && goodEnough(best) {
			break
		}
	}
	return best, nil
}
