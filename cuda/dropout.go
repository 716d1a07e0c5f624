package cuda

import (
	"fmt"
	"math"
)

// Dropout sets each element to 0 with probability Rate, and multiplies the others with 1/(1-Rate). Each elements in a row share a draw. A draw
// is a function of Seed, step, Layer and position alone, and the same as the host's. op.Dropout defines it.
type Dropout struct {
	Rate  float64 // at least 0 and below 1
	Seed  uint64
	Layer uint32
	Each  int // at least 1
}

// Apply queues y from x and step[0]; a negative step drops nothing. The gradient of x comes from the gradient of y in the same way. y may be x.
func (p Dropout) Apply(s *Stream, x Array[float32], step Array[int32], y Array[float32]) error {
	if !(p.Rate >= 0 && p.Rate < 1) {
		return fmt.Errorf("cuda: dropout: Rate is %v, want at least 0 and below 1", p.Rate)
	}
	if err := firstError(
		atLeast(1, "dropout", "Each", p.Each), present("dropout", "x", x), expect("dropout", "step", step.n, 1, "y", y.n, x.n), s.usable(),
	); err != nil {
		return err
	}
	least := uint32(min(math.Round(p.Rate*(1<<32)), math.MaxUint32))
	return s.run("dropout", "dropout", blocksOf((x.n+3)/4, 256), x.address, y.address, step.address, x.n, p.Each, int(p.Seed), int32(p.Layer),
		int32(least), float32(1/(1-p.Rate)))
}
