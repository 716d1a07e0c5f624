package kernel

import (
	"math"
	"math/bits"

	"github.com/gomamba/mamba/internal/work"
)

// Dropout sets each element to 0 with probability Rate, and multiplies the others with 1/(1-Rate) (Srivastava et al., "Dropout: A Simple Way to Prevent
// Neural Networks from Overfitting"). With Each above 1, neighbouring elements share a draw: with the elements of a sequence, it drops whole
// sequences of a batch (Huang et al., "Deep Networks with Stochastic Depth").
//
// The draw of an element is a function of Seed, Step, Layer and position alone, by the counter-based generator Philox4x32-10. So neither the
// order nor the number of draws matters, the backward pass draws the same again, and a GPU draws the same.
type Dropout struct {
	Rate  float64 // at least 0 and below 1
	Seed  uint64
	Layer uint32
	Step  int // a negative step drops nothing: y = x
	Each  int // elements that share a draw, at least 1
}

// Drop writes y from x. The gradient of x comes from the gradient of y in the same way, so Drop computes that too.
func Drop[T Float](p Dropout, y, x []T) {
	if p.Step < 0 || p.Rate == 0 {
		copy(y, x)
		return
	}
	scale, least := T(1/(1-p.Rate)), p.Threshold()
	work.ParallelRange(len(x), piece, func(from, to int) {
		var words [4]uint32
		block := -1
		for i := from; i < to; i++ {
			at := i / p.Each
			if at/4 != block {
				block = at / 4
				words = Philox([4]uint32{uint32(block), uint32(int64(block) >> 32), p.Layer, uint32(p.Step)}, [2]uint32{uint32(p.Seed), uint32(p.Seed >> 32)})
			}
			if words[at%4] < least {
				y[i] = 0 // also if x is not finite
			} else {
				y[i] = x[i] * scale
			}
		}
	})
}

// Threshold returns Rate in units of 2^-32. An element is dropped if its draw is below.
func (p Dropout) Threshold() uint32 { return uint32(min(math.Round(p.Rate*(1<<32)), math.MaxUint32)) }

// Philox returns the four words of a counter and a key by Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3").
func Philox(counter [4]uint32, key [2]uint32) [4]uint32 {
	for range 10 {
		high0, low0 := bits.Mul32(0xd2511f53, counter[0])
		high1, low1 := bits.Mul32(0xcd9e8d57, counter[2])
		counter = [4]uint32{high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0}
		key[0] += 0x9e3779b9
		key[1] += 0xbb67ae85
	}
	return counter
}
