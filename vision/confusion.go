package vision

import (
	"fmt"
	"math"

	"github.com/gomamba/mamba/internal/size"
)

// Confusion counts how often each class was predicted where each class was true, over any number of images. Make it with NewConfusion.
//
// A metric of a class that was neither predicted nor true is NaN, and a mean over the classes leaves it out. A metric of no cells, of a class that
// does not exist, or of a nil Confusion is NaN.
type Confusion struct {
	classes int
	counts  []int // (true, predicted)
}

// NewConfusion returns an empty confusion matrix. Errors: classes is less than 1, or too large for the machine's memory.
func NewConfusion(classes int) (*Confusion, error) {
	if classes < 1 {
		return nil, fmt.Errorf("vision: confusion: classes is %d, want at least 1", classes)
	}
	if err := size.Of(8, classes, classes).Fits(fmt.Sprintf("the counts of %d classes", classes)); err != nil {
		return nil, fmt.Errorf("vision: confusion: %w", err)
	}
	return &Confusion{classes, make([]int, classes*classes)}, nil
}

// Add counts cells: predicted and truth hold a class for each. Cells whose truth is equal to ignore are left out. Errors, and nothing changes: another
// number of predicted than of true classes; a class that does not exist.
func (c *Confusion) Add(predicted, truth []int, ignore int) error {
	if c == nil || c.counts == nil {
		return fmt.Errorf("vision: confusion: it is missing, want one that NewConfusion returned")
	}
	if err := sameCells(predicted, truth); err != nil {
		return fmt.Errorf("vision: confusion: %w", err)
	}
	for i, t := range truth {
		if t == ignore {
			continue
		}
		if p := predicted[i]; t < 0 || t >= c.classes || p < 0 || p >= c.classes {
			return fmt.Errorf("vision: confusion: predicted[%d] is %d and truth[%d] is %d, want 0 to %d, or a truth of %d, which is ignored",
				i, p, i, t, c.classes-1, ignore)
		}
	}
	for i, t := range truth {
		if t != ignore {
			c.counts[t*c.classes+predicted[i]]++
		}
	}
	return nil
}

// Count returns the number of cells of a true and a predicted class, 0 for classes that do not exist.
func (c *Confusion) Count(truth, predicted int) int {
	if c == nil || truth < 0 || truth >= c.classes || predicted < 0 || predicted >= c.classes {
		return 0
	}
	return c.counts[truth*c.classes+predicted]
}

// sums returns the number of cells of a class that are predicted and true, predicted, and true.
func (c *Confusion) sums(class int) (both, predicted, truth int) {
	if c != nil {
		for other := range c.classes {
			predicted += c.Count(other, class)
			truth += c.Count(class, other)
		}
	}
	return c.Count(class, class), predicted, truth
}

// Accuracy returns the share of cells whose predicted class is true.
func (c *Confusion) Accuracy() float64 {
	right, all := 0, 0
	if c != nil {
		for class := range c.classes {
			both, _, truth := c.sums(class)
			right, all = right+both, all+truth
		}
	}
	return float64(right) / float64(all)
}

// Dice returns 2·|P∩T| / (|P| + |T|), where P are the cells predicted to be of a class and T those that are.
func (c *Confusion) Dice(class int) float64 {
	both, predicted, truth := c.sums(class)
	return 2 * float64(both) / float64(predicted+truth)
}

// IoU returns |P∩T| / |P∪T|, the intersection over the union.
func (c *Confusion) IoU(class int) float64 {
	both, predicted, truth := c.sums(class)
	return float64(both) / float64(predicted+truth-both)
}

// MeanDice returns the mean of Dice over the classes.
func (c *Confusion) MeanDice() float64 { return c.mean((*Confusion).Dice) }

// MeanIoU returns the mean of IoU over the classes.
func (c *Confusion) MeanIoU() float64 { return c.mean((*Confusion).IoU) }

func (c *Confusion) mean(of func(c *Confusion, class int) float64) float64 {
	sum, n := 0., 0
	if c != nil {
		for class := range c.classes {
			if v := of(c, class); !math.IsNaN(v) {
				sum, n = sum+v, n+1
			}
		}
	}
	return sum / float64(n)
}
