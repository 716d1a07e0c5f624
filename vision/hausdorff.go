package vision

import (
	"fmt"
	"math"
	"slices"
)

// Hausdorff95 returns the 95th percentile of the distances between the surfaces of the predicted and the true cells of a class. It ignores a twentieth of
// the distances, so a single stray cell does not decide it. grid holds the sizes of one to three axes, as (height, width) or (depth, height, width), and
// spacing the distance between neighbours along each; nil means 1. The result has the unit of spacing.
//
// The surface of a set of cells are those with a neighbour outside, along an axis; outside of the grid is outside. The distances are those of each
// surface's cells from the nearest cell of the other surface, both ways together, between centres. Percentiles between two distances are interpolated.
// (medpy's hd95 has these definitions.)
//
// If both sets are empty, the result is 0, since they agree. If one is empty, it is +Inf.
//
// Errors: another number of cells than the grid has; a grid that has not 1 to 3 axes of at least 1; another number of spacings than of axes; a spacing that
// is not a positive finite number.
func Hausdorff95(predicted, truth []int, class int, grid []int, spacing []float64) (float64, error) {
	s, err := newSpace(grid, spacing)
	if err == nil {
		err = sameCells(predicted, truth)
	}
	if err == nil && len(truth) != s.cells() {
		err = fmt.Errorf("truth has %d cells, want those of the grid %v", len(truth), grid)
	}
	if err != nil {
		return 0, fmt.Errorf("vision: Hausdorff: %w", err)
	}
	a, b := s.surface(predicted, class), s.surface(truth, class)
	switch {
	case len(a)+len(b) == 0:
		return 0, nil
	case len(a)*len(b) == 0:
		return math.Inf(1), nil
	}
	// Both ways need distances within the box of both surfaces only.
	box := s.box(a, b)
	distances := append(box.distances(a, b), box.distances(b, a)...)
	slices.Sort(distances)
	at := 0.95 * float64(len(distances)-1)
	low := int(at)
	high := min(low+1, len(distances)-1)
	return distances[low] + (at-float64(low))*(distances[high]-distances[low]), nil
}

// space is a box of cells. Its axes are depth, height, width.
type space struct {
	origin, size [3]int
	spacing      [3]float64
}

type cell [3]int

func newSpace(grid []int, spacing []float64) (*space, error) {
	if len(grid) < 1 || len(grid) > 3 {
		return nil, fmt.Errorf("grid has %d axes, want 1 to 3", len(grid))
	}
	if spacing != nil && len(spacing) != len(grid) {
		return nil, fmt.Errorf("spacing has %d numbers, want one for each of %d axes", len(spacing), len(grid))
	}
	s := &space{size: [3]int{1, 1, 1}, spacing: [3]float64{1, 1, 1}}
	n := 1
	for i, size := range grid {
		if size < 1 || size > math.MaxInt/n {
			return nil, fmt.Errorf("grid[%d] is %d, want at least 1 and not more than fit into memory", i, size)
		}
		n *= size
		s.size[3-len(grid)+i] = size
		if spacing != nil {
			if s.spacing[3-len(grid)+i] = spacing[i]; !finite(spacing[i]) {
				return nil, fmt.Errorf("spacing[%d] is %v, want a positive finite number", i, spacing[i])
			}
		}
	}
	return s, nil
}

func (s *space) cells() int { return s.size[0] * s.size[1] * s.size[2] }

// index returns the position of a cell in a slice of the box.
func (s *space) index(c cell) int {
	return ((c[0]-s.origin[0])*s.size[1]+c[1]-s.origin[1])*s.size[2] + c[2] - s.origin[2]
}

// surface returns the cells of a class that have a neighbour of another class or at the edge of the grid. Axes of size 1 have no neighbours, but if all
// are of size 1 the cell is a surface.
func (s *space) surface(labels []int, class int) (cells []cell) {
	steps := [3]int{s.size[1] * s.size[2], s.size[2], 1}
	for i, label := range labels {
		if label != class {
			continue
		}
		c := cell{i / steps[0], i / steps[1] % s.size[1], i % s.size[2]}
		for axis, step := range steps {
			if s.size[axis] == 1 && s.cells() > 1 {
				continue
			}
			if c[axis] == 0 || c[axis] == s.size[axis]-1 || labels[i-step] != class || labels[i+step] != class {
				cells = append(cells, c)
				break
			}
		}
	}
	return cells
}

// box returns the smallest box with all cells.
func (s *space) box(a, b []cell) *space {
	low, high := a[0], a[0]
	for _, cells := range [][]cell{a, b} {
		for _, c := range cells {
			for axis, v := range c {
				low[axis], high[axis] = min(low[axis], v), max(high[axis], v)
			}
		}
	}
	to := &space{origin: low, spacing: s.spacing}
	for axis := range to.size {
		to.size[axis] = high[axis] - low[axis] + 1
	}
	return to
}

// distances returns the distance of each cell of from to the nearest of to.
func (s *space) distances(from, to []cell) []float64 {
	squares := make([]float64, s.cells())
	for i := range squares {
		squares[i] = math.Inf(1)
	}
	for _, c := range to {
		squares[s.index(c)] = 0
	}
	s.transform(squares)
	all := make([]float64, len(from))
	for i, c := range from {
		all[i] = math.Sqrt(squares[s.index(c)])
	}
	return all
}

// transform replaces each element f(p) by the minimum over q of f(q) + |p-q|², axis by axis: of 0 in a set and +Inf elsewhere, the squared distances
// from the set.
//
// Source: Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions".
func (s *space) transform(f []float64) {
	longest := max(s.size[0], s.size[1], s.size[2])
	line := make([]float64, longest)
	e := envelope{make([]int, longest), make([]float64, longest)}
	for axis, step := range [3]int{s.size[1] * s.size[2], s.size[2], 1} {
		n := s.size[axis]
		for first := range f {
			if n == 1 || first/step%n != 0 {
				continue
			}
			for i := range n {
				line[i] = f[first+i*step]
			}
			e.minimum(f[first:], step, line[:n], s.spacing[axis])
		}
	}
}

// envelope is the lower envelope of parabolas of equal width: their vertices from left to right, and where each begins to be the lowest.
type envelope struct {
	vertex []int
	begin  []float64
}

// minimum writes to[i·step] = the minimum over j of line[j] + (spacing·(i-j))².
func (e envelope) minimum(to []float64, step int, line []float64, spacing float64) {
	n := 0 // number of parabolas
	for j, height := range line {
		if math.IsInf(height, 1) {
			continue
		}
		x := spacing * float64(j)
		begin := math.Inf(-1)
		for ; n > 0; n-- {
			v := e.vertex[n-1]
			at := spacing * float64(v)
			begin = ((height - line[v]) + (x*x - at*at)) / (2 * (x - at)) // where the two parabolas meet
			if begin > e.begin[n-1] {
				break
			}
			begin = math.Inf(-1)
		}
		e.vertex[n], e.begin[n] = j, begin
		n++
	}
	if n == 0 {
		return // all are infinite, and stay so
	}
	k := 0
	for i := range line {
		x := spacing * float64(i)
		for k+1 < n && e.begin[k+1] < x {
			k++
		}
		d := spacing * float64(i-e.vertex[k])
		to[i*step] = line[e.vertex[k]] + d*d
	}
}
