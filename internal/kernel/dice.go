package kernel

import (
	"github.com/gomamba/mamba/internal/work"
)

// Dice is a loss of segmentation: 1 minus a mean of overlaps between probabilities p and targets t. Cells whose target is Ignore count nowhere.
//
//   - Of one class: p = sigmoid(logit), t is 0 or 1. Each image has the overlap (2Σpt + 1) / (Σp + Σt + 1).
//   - Of several classes: p = softmax(logits), t is 1 for the target's class. Each class has the overlap
//     (2Σpt + 1e-5) / (Σp² + Σt² + 1e-5), over all images.
//
// The caller has checked the targets. Sums are in float64, in an order that the number of processors does not change.
type Dice[T Float] struct {
	Images, Cells, Classes int
	Logits                 []T   // (images, cells, classes)
	Targets                []int // (images, cells)
	Ignore                 int
}

// overlap is an overlap as a function of the sums, (2·both + smooth) / (own + smooth).
type overlap struct{ value, both, own float64 } // with its derivatives by 2·both and, negative, by own

// binary reports whether each image has an overlap, instead of each class.
func (d *Dice[T]) binary() bool { return d.Classes == 1 }

// groups returns the number of parts of the rows that have sums of their own, and the number of rows of each.
func (d *Dice[T]) groups() (groups, rows int) {
	if d.binary() {
		return d.Images, d.Cells
	}
	return 1, d.Images * d.Cells
}

// probabilities writes p and returns it.
func (d *Dice[T]) probabilities(p []T, row int) []T {
	x := d.Logits[row*d.Classes:][:d.Classes]
	if d.binary() {
		p[0] = sigmoid(x[0])
		return p
	}
	sum := expSumTo(p, x, largest(x))
	scaleOf(p, p, T(1/sum))
	return p
}

// overlaps returns the overlaps, (groups, classes).
func (d *Dice[T]) overlaps() []overlap {
	groups, rows := d.groups()
	each := max(piece/d.Classes, 1)
	parts := (rows + each - 1) / each
	n := 2 * d.Classes
	sums := work.Borrow[float64](groups * parts * n)
	defer sums.Return()
	work.Parallel(groups*parts, func(i int) {
		s := sums.Data[i*n:][:n]
		clear(s)
		p := work.Borrow[T](d.Classes)
		defer p.Return()
		first := i / parts * rows
		for row := first + i%parts*each; row < first+min((i%parts+1)*each, rows); row++ {
			target := d.Targets[row]
			if target == d.Ignore {
				continue
			}
			for c, p := range d.probabilities(p.Data, row) {
				if d.binary() {
					s[1] += float64(p)
				} else {
					s[2*c+1] += float64(p) * float64(p)
				}
			}
			switch {
			case !d.binary():
				s[2*target] += float64(p.Data[target])
				s[2*target+1]++
			case target == 1:
				s[0] += float64(p.Data[0])
				s[1]++
			}
		}
	})
	smooth := 1e-5
	if d.binary() {
		smooth = 1
	}
	all := make([]overlap, groups*d.Classes)
	for i := range all {
		var both, own float64
		for part := range parts {
			s := sums.Data[(i/d.Classes*parts+part)*n+i%d.Classes*2:]
			both += s[0]
			own += s[1]
		}
		below := own + smooth
		all[i] = overlap{(2*both + smooth) / below, 1 / below, (2*both + smooth) / (below * below)}
	}
	return all
}

// Forward returns the loss.
func (d *Dice[T]) Forward() T {
	all := d.overlaps()
	var sum float64
	for _, o := range all {
		sum += o.value
	}
	return T(1 - sum/float64(len(all)))
}

// Backward writes the gradient of the logits. Ignored cells get zeros.
func (d *Dice[T]) Backward(dloss T, dlogits []T) {
	all := d.overlaps()
	scale := float64(dloss) / float64(len(all))
	work.ParallelRange(d.Images*d.Cells, max(piece/d.Classes, 1), func(from, to int) {
		for row := from; row < to; row++ {
			dx, target := dlogits[row*d.Classes:][:d.Classes], d.Targets[row]
			if target == d.Ignore {
				clear(dx)
				continue
			}
			if d.binary() {
				o, x := all[row/d.Cells], d.Logits[row]
				dx[0] = T(scale * (o.own - 2*float64(target)*o.both) * float64(sigmoid(x)) * float64(sigmoid(-x)))
				continue
			}
			// With g the gradient of p, that of the logits is p(g - Σpg).
			p := d.probabilities(dx, row)
			g := func(c int) float64 {
				g := 2 * float64(p[c]) * all[c].own
				if c == target {
					g -= 2 * all[c].both
				}
				return g
			}
			var dot float64
			for c := range p {
				dot += float64(p[c]) * g(c)
			}
			for c := range p {
				dx[c] = T(scale * float64(p[c]) * (g(c) - dot))
			}
		}
	})
}
