package vision

import (
	"fmt"
	"math"
)

// Float is a type of the elements of logits.
type Float interface{ float32 | float64 }

// Labels returns the class of the largest logit for each row of logits (…, classes), the first of equal ones. So the logits of a model of
// segmentation become a map of classes. A row with NaN is an error: it has no largest logit. So are a number of classes below 1, and logits that are
// not whole rows.
func Labels[T Float](logits []T, classes int) ([]int, error) {
	if err := wholeRows(len(logits), classes); err != nil {
		return nil, fmt.Errorf("vision: labels: %w", err)
	}
	labels := make([]int, len(logits)/classes)
	for row := range labels {
		x := logits[row*classes:][:classes]
		best := 0
		for class, v := range x {
			if v != v {
				return nil, fmt.Errorf("vision: labels: logits[%d] is not a number", row*classes+class)
			}
			if v > x[best] {
				best = class
			}
		}
		labels[row] = best
	}
	return labels, nil
}

func wholeRows(n, classes int) error {
	if classes < 1 {
		return fmt.Errorf("classes is %d, want at least 1", classes)
	}
	if n%classes != 0 {
		return fmt.Errorf("logits has %d elements, want a multiple of %d classes", n, classes)
	}
	return nil
}

// TopK returns the share of rows of logits (images, classes) whose target (images) is among the k largest logits. With k = 1 it is the accuracy. Of equal
// logits the first counts as larger. A row whose target's logit is NaN is wrong, and a NaN beside it counts as larger.
//
// Errors: logits that are not a row for each target; no targets; a target that is no class; a k that is not in 1 to classes.
func TopK[T Float](logits []T, classes int, targets []int, k int) (float64, error) {
	err := wholeRows(len(logits), classes)
	switch {
	case err != nil:
	case len(targets) == 0:
		err = fmt.Errorf("targets is empty, want one for each image")
	case len(logits)/classes != len(targets):
		err = fmt.Errorf("logits has %d rows of %d classes, want one for each of %d targets", len(logits)/classes, classes, len(targets))
	case k < 1 || k > classes:
		err = fmt.Errorf("k is %d, want 1 to %d, the classes", k, classes)
	}
	right := 0
	for row, target := range targets {
		if err == nil && (target < 0 || target >= classes) {
			err = fmt.Errorf("targets[%d] is %d, want 0 to %d", row, target, classes-1)
		}
		if err != nil {
			return 0, fmt.Errorf("vision: top k: %w", err)
		}
		x, larger := logits[row*classes:][:classes], 0
		for class, v := range x {
			if !(v < x[target] || v == x[target] && class >= target) {
				larger++
			}
		}
		if larger < k {
			right++
		}
	}
	if err != nil {
		return 0, fmt.Errorf("vision: top k: %w", err)
	}
	return float64(right) / float64(len(targets)), nil
}

func sameCells(predicted, truth []int) error {
	if len(predicted) != len(truth) {
		return fmt.Errorf("predicted has %d cells, want the %d of truth", len(predicted), len(truth))
	}
	return nil
}

// PixelAccuracy returns the share of cells whose predicted class is true. Errors: another number of predicted than of true classes; no cells.
func PixelAccuracy(predicted, truth []int) (float64, error) {
	err := sameCells(predicted, truth)
	if err == nil && len(truth) == 0 {
		err = fmt.Errorf("truth is empty, want at least one cell")
	}
	if err != nil {
		return 0, fmt.Errorf("vision: pixel accuracy: %w", err)
	}
	right := 0
	for i, t := range truth {
		if predicted[i] == t {
			right++
		}
	}
	return float64(right) / float64(len(truth)), nil
}

// overlap counts the cells of a class that are predicted and true, and those that are predicted or true, added.
func overlap(what string, predicted, truth []int, class int) (both, sum int, err error) {
	if err := sameCells(predicted, truth); err != nil {
		return 0, 0, fmt.Errorf("vision: %s: %w", what, err)
	}
	for i, t := range truth {
		p := predicted[i] == class
		if p {
			sum++
		}
		if t == class {
			if sum++; p {
				both++
			}
		}
	}
	return both, sum, nil
}

// Dice returns 2·|P∩T| / (|P| + |T|), where P are the cells whose predicted class is class and T those whose true class it is. If both are empty, it is 1,
// since they agree; if one is, 0. Errors: another number of predicted than of true classes.
func Dice(predicted, truth []int, class int) (float64, error) {
	both, sum, err := overlap("Dice", predicted, truth, class)
	if err != nil || sum == 0 {
		return 1, err
	}
	return 2 * float64(both) / float64(sum), nil
}

// IoU returns |P∩T| / |P∪T|, the intersection over the union. P, T, what empty ones give, and errors are those of Dice.
func IoU(predicted, truth []int, class int) (float64, error) {
	both, sum, err := overlap("IoU", predicted, truth, class)
	if err != nil || sum == 0 {
		return 1, err
	}
	return float64(both) / float64(sum-both), nil
}

// finite reports whether v is a positive finite number.
func finite(v float64) bool { return v > 0 && !math.IsInf(v, 1) }
