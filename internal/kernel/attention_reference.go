package kernel

import "math"

// reference writes a head's y by the definition, query by query. Tests compare the tiles with it. Forward uses it if a key or value is
// not finite: a tile multiplies keys that are not visible with zero, and zero times NaN or infinity is NaN.
func (h *head[T]) reference(y []T) {
	p := make([]T, h.steps)
	for t := range h.Length {
		row, first, to := h.row(y, t), h.first[t], h.before+t+1
		largest := T(math.Inf(-1))
		for s := first; s < to; s++ {
			p[s] = 0
			for j := range h.dim {
				p[s] += h.q[t*h.dim+j] * h.k[s*h.dim+j]
			}
			largest = max(largest, p[s])
		}
		var sum T
		for s := first; s < to; s++ {
			p[s] = exp(p[s] - largest)
			sum += p[s]
		}
		clear(row)
		for s := first; s < to; s++ {
			for j := range h.dim {
				row[j] += p[s] / sum * h.v[s*h.dim+j]
			}
		}
	}
}

// finite reports whether the sum of the squares of all keys and values is finite. If it is, so are the keys and values.
func (h *head[T]) finite() bool {
	sum := squares(h.k) + squares(h.v)
	return sum-sum == 0
}
