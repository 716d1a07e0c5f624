package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// SegmentationWeights are the weights of the two losses in SegmentationLoss. A loss of weight 0 is not computed.
type SegmentationWeights struct{ CrossEntropy, Dice float64 }

// SegmentationLoss returns a weighted sum of cross-entropy and Dice loss, a scalar. The logits are (batch, grid…, classes), the targets (batch, grid…)
// of int. Of one class it is BinaryCrossEntropy and the binary form of Dice, with targets 0 and 1; of several, CrossEntropy and the other form.
// Cells whose target is equal to ignore count nowhere.
//
// Errors: those of the losses; a weight that is negative or not finite; two weights of 0.
func SegmentationLoss(logits, targets *G.Node, ignore int, weights SegmentationWeights) (*G.Node, error) {
	return segmentationOf(logits, targets, ignore, weights, false)
}

// segmentationOf is SegmentationLoss. With nearest, the targets may be of another grid.
func segmentationOf(logits, targets *G.Node, ignore int, w SegmentationWeights, nearest bool) (*G.Node, error) {
	c := newChecker("segmentation loss", "logits", logits)
	s, _, classes := c.rows("logits", logits, "classes")
	for _, w := range []struct {
		name string
		of   float64
	}{{"weights.CrossEntropy", w.CrossEntropy}, {"weights.Dice", w.Dice}} {
		if !(w.of >= 0) || math.IsInf(w.of, 1) {
			c.errorf("%s is %v, want a finite number that is not negative", w.name, w.of)
		}
	}
	if w == (SegmentationWeights{}) {
		c.errorf("both weights are 0, want one that is not")
	}
	if nearest { // the losses then check the grid only
		c.targets(targets, s[:len(s)-1], true)
	}
	if c.err != nil {
		return nil, c.err
	}
	entropy := crossEntropyOf
	if classes == 1 {
		entropy = binaryOf
	}
	return c.weighted([]term{
		{w.CrossEntropy, func() (*G.Node, error) { return entropy(logits, targets, ignore, nearest) }},
		{w.Dice, func() (*G.Node, error) { return diceOf(logits, targets, ignore, nearest) }},
	})
}

// DeepSupervision returns the weighted sum of SegmentationLoss over the outputs of a model at several resolutions, a scalar. Each output is (batch, grid…,
// classes) with a grid of its own size. The targets (batch, grid…) are resized to each: a cell takes the nearest target, as InterpolateNearest
// has it. An output of weight 0 is left out. Without weights, output i has 1/2^i divided by their sum, as in nnU-Net.
//
// Errors: those of SegmentationLoss, with the number of the output; no outputs; another number of weights than of outputs; a weight that is negative or
// not finite; weights that are all 0.
//
// Source: Lee et al., "Deeply-Supervised Nets"; Isensee et al., "nnU-Net".
func DeepSupervision(outputs G.Nodes, targets *G.Node, ignore int, weights []float64, loss SegmentationWeights) (*G.Node, error) {
	if len(outputs) == 0 {
		return nil, fmt.Errorf("op: deep supervision: outputs is empty, want at least one node")
	}
	c := newChecker("deep supervision", "outputs[0]", outputs[0])
	if weights == nil {
		sum := 2 - math.Ldexp(1, 1-len(outputs))
		for i := range outputs {
			weights = append(weights, math.Ldexp(1, -i)/sum)
		}
	}
	if len(weights) != len(outputs) {
		c.errorf("weights has %d numbers, want one for each of %d outputs", len(weights), len(outputs))
		return nil, c.err
	}
	var terms []term
	for i, w := range weights {
		if !(w >= 0) || math.IsInf(w, 1) {
			c.errorf("weights[%d] is %v, want a finite number that is not negative", i, w)
		}
		terms = append(terms, term{w, func() (*G.Node, error) {
			n, err := segmentationOf(outputs[i], targets, ignore, loss, true)
			if err != nil {
				return nil, fmt.Errorf("output %d: %w", i, err)
			}
			return n, nil
		}})
	}
	return c.weighted(terms)
}

// term is a loss with a weight.
type term struct {
	weight float64
	loss   func() (*G.Node, error)
}

// weighted returns the sum of the losses times their weights, without those of weight 0.
func (c *checker) weighted(terms []term) (sum *G.Node, err error) {
	for _, t := range terms {
		if c.err != nil || t.weight == 0 {
			continue
		}
		n, err := t.loss()
		if err == nil && t.weight != 1 {
			n, err = G.Mul(n, scalar(c.dt, t.weight))
		}
		if err == nil && sum != nil {
			n, err = G.Add(sum, n)
		}
		if err != nil {
			return nil, err
		}
		sum = n
	}
	if c.err == nil && sum == nil {
		c.errorf("all weights are 0, want one that is not")
	}
	return sum, c.err
}

// scalar returns a constant of the type of the other operands.
func scalar(dt tensor.Dtype, v float64) *G.Node {
	if dt == tensor.Float32 {
		return G.NewConstant(float32(v))
	}
	return G.NewConstant(v)
}
