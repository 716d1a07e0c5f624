package kernel

import "math"

// reference writes a head's y by the definition, query by query. It is what the tiles are tested against; and it takes their
// place where a key or value is no number, since a tile multiplies with zero what is not seen.
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

// finite reports whether all keys and values are; those whose squares are not are taken for others.
func (h *head[T]) finite() bool {
	sum := squares(h.k) + squares(h.v)
	return sum-sum == 0
}
