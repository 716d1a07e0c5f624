package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// maxGrid is the largest number of axes of a grid that is resized.
const maxGrid = 3

// targets checks the targets, whose shape is that of the cells, (batch, …). With nearest, they may be of another grid.
func (c *checker) targets(n *G.Node, cells tensor.Shape, nearest bool) targetGrid {
	axes := [...]string{"(batch)", "(batch, length)", "(batch, …)"}
	want := cells.Clone()
	if nearest {
		clear(want[1:])
		if len(cells) > maxGrid+1 {
			c.errorf("logits has a grid of %d axes, want 1 to %d", len(cells)-1, maxGrid)
		}
	}
	c.ints("targets", n, axes[min(len(cells), 3)-1], want...)
	if c.err != nil || !nearest {
		return targetGrid{}
	}
	return targetGrid{cells[0], gridOf(n.Shape()), gridOf(cells)}
}

// gridOf returns the sizes of the grid of (batch, grid…). Unused axes are 1.
func gridOf(cells tensor.Shape) [maxGrid]int {
	g := [maxGrid]int{1, 1, 1}
	copy(g[maxGrid+1-len(cells):], cells[1:])
	return g
}

// targetGrid resizes targets (batch, from) to (batch, to). Cell i of n reads the target of cell i·m/n of m, rounded down, as PyTorch's nearest does.
type targetGrid struct {
	batch    int
	from, to [maxGrid]int
}

func (g targetGrid) nearest(targets []int) []int {
	if g.from == g.to {
		return targets
	}
	to := make([]int, 0, g.batch*g.to[0]*g.to[1]*g.to[2])
	for b := range g.batch {
		for z := range g.to[0] {
			for y := range g.to[1] {
				row := ((b*g.from[0]+z*g.from[0]/g.to[0])*g.from[1] + y*g.from[1]/g.to[1]) * g.from[2]
				for x := range g.to[2] {
					to = append(to, targets[row+x*g.from[2]/g.to[2]])
				}
			}
		}
	}
	return to
}

// nearestOn calls f with the resized targets on a device.
func (g targetGrid) nearestOn(s *cuda.Stream, targets cuda.Array[int32], f func(cuda.Array[int32]) error) error {
	if g.from == g.to {
		return f(targets)
	}
	to, err := cuda.NewArray[int32](s, g.batch*g.to[0]*g.to[1]*g.to[2])
	if err != nil {
		return err
	}
	defer to.Free()
	if err := cuda.NearestTargets(s, g.batch, g.from, g.to, targets, to); err != nil {
		return err
	}
	return f(to)
}

// cellLoss is a loss of logits (batch, …, classes) and targets (batch, …).
type cellLoss[T kernel.Float] struct {
	images, cells, classes, ignore int
	grid                           targetGrid
}

// newCellLoss checks the operands. Of one class, the targets may have a last axis of 1 like the logits.
func (c *checker) newCellLoss(logits, targets *G.Node, ignore int, nearest bool) cellLoss[float32] {
	s, rows, classes := c.rows("logits", logits, "classes")
	cells := s[:len(s)-1]
	f := cellLoss[float32]{images: s[0], cells: rows / s[0], classes: classes, ignore: ignore}
	if targets != nil && classes == 1 && s.Eq(targets.Shape()) {
		c.ints("targets", targets, "the shape of logits", s...)
		return f
	}
	f.grid = c.targets(targets, cells, nearest)
	return f
}

func (f cellLoss[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	return checkTargets(shapes[1], ints[1], max(f.classes, 2), f.ignore, "the classes")
}
