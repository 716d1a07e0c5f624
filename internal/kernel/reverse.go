package kernel

import "github.com/gomamba/mamba/internal/work"

// Reverse writes each sequence of x (batch, length, channels) to y in reverse order over time. A sequence begins at step 0, and where start
// (batch, length) is true; start may be nil. Reverse is its own inverse, and so its own derivative.
func Reverse[T Float](y, x []T, batch, length, channels int, start []bool) {
	work.Parallel(batch, func(b int) {
		for from := 0; from < length; {
			to := from + 1
			for to < length && (start == nil || !start[b*length+to]) {
				to++
			}
			for t := from; t < to; t++ {
				copy(y[(b*length+t)*channels:][:channels], x[(b*length+from+to-1-t)*channels:])
			}
			from = to
		}
	})
}
