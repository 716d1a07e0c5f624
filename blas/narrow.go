package blas

// fewest is the number of rows of weights that the kernels of narrow weights take, or a multiple of it.
const fewest = 4

// narrowFunc is a kernel of narrow weights. Its declaration says what it computes.
type narrowFunc func(units int, x *float32, ldx int, w *byte, ldw int, y *float32, ldy int, groups, add, tail int)

// narrowSet has the kernels of a type for 1, 2 and 4 rows of activations.
type narrowSet struct {
	one, two, four narrowFunc
	unit           int // numbers
	least          int // the kernels leave the numbers after the last multiple of it
}

// mulNarrow is MulRange with kernels.
func (w *Weights) mulNarrow(k *narrowSet, dst []float32, ldDst int, x Prepared, from, to int, add bool) {
	const some = 32 // rows of weights, which stay in the first-level cache for all activations
	for j := from; j < to; {
		n := min(to-j, some)
		if n >= fewest {
			n -= n % fewest
			w.mulRows(k, dst[j:], ldDst, x, 0, x.rows, j, n, add)
		} else {
			// The last rows, with rows before them that are not needed.
			first := min(j, w.outputs-fewest)
			var sums [4 * fewest]float32
			for i := 0; i < x.rows; i += 4 {
				rows := min(4, x.rows-i)
				part := func(r int) (here, there []float32) {
					return sums[r*fewest+j-first:][:n], dst[(i+r)*ldDst+j:][:n]
				}
				for r := range rows {
					here, there := part(r)
					copy(here, there)
				}
				w.mulRows(k, sums[:], fewest, x, i, i+rows, first, fewest, add)
				for r := range rows {
					here, there := part(r)
					copy(there, here)
				}
			}
		}
		j += n
	}
}

// mulRows multiplies n rows of weights from j on, a multiple of fewest, by the activations [from, to). dst begins at output j of activation from.
func (w *Weights) mulRows(k *narrowSet, dst []float32, ldDst int, x Prepared, from, to, j, n int, add bool) {
	row, flag := len(w.data)/w.outputs, 0
	if add {
		flag = 1
	}
	units, tail := w.inputs/k.unit, w.inputs%k.unit
	for i := from; i < to; {
		f, rows, group := k.one, 1, 4
		switch {
		case to-i >= 4:
			f, rows, group = k.four, 4, 2
		case to-i >= 2:
			f, rows = k.two, 2
		}
		at := dst[(i-from)*ldDst:]
		f(units, &x.data[i*x.ld], x.ld, &w.data[j*row], row, &at[0], ldDst, n/group, flag, tail)
		i += rows
	}
	if tail %= k.least; tail == 0 {
		return
	}
	for i := from; i < to; i++ {
		for o := range n {
			dst[(i-from)*ldDst+o] += w.dot(j+o, x.data[i*x.ld:], w.inputs-tail)
		}
	}
}
