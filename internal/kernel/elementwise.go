package kernel

// piece is the number of elements of a task of an elementwise kernel: 64 KiB of float32, enough to be worth a hand-over.
const piece = 16384

// Add adds v to sum.
func Add[T Float](sum, v []T) {
	ParallelRange(len(sum), piece, func(from, to int) {
		s, v := sum[from:to], v[from:to]
		for i := range s {
			s[i] += v[i]
		}
	})
}
