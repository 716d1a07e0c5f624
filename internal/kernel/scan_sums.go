package kernel

import "github.com/gomamba/mamba/internal/work"

// stripSums holds a strip's sums over time. The sums within a tile are in T, the sums over tiles in float64, so that the error does not grow
// with the length.
type stripSums[T Float] struct {
	a, b, c, d, bias                []T       // sums of the current tile; a, b and c (state, lanes), d and bias (lanes)
	aAll, bAll, cAll, dAll, biasAll []float64 // sums of all finished tiles, in the same shapes
}

// lay takes the arrays for the sums of a tile from a layout. layTotals does the same for the sums of all tiles, and reset sets all to zero.
func (s *stripSums[T]) lay(scan *Scan[T], l *work.Layout[T]) {
	size := scan.State * lanes
	s.a, s.d, s.bias = l.Array(size), l.Array(lanes), l.Array(lanes)
	s.b, s.c = l.ArrayIf(scan.B.Groups == 0, size), l.ArrayIf(scan.C.Groups == 0, size)
}

func (s *stripSums[T]) layTotals(scan *Scan[T], l *work.Layout[float64]) {
	size := scan.State * lanes
	s.aAll, s.dAll, s.biasAll = l.Array(size), l.Array(lanes), l.Array(lanes)
	s.bAll, s.cAll = l.ArrayIf(scan.B.Groups == 0, size), l.ArrayIf(scan.C.Groups == 0, size)
}

func (s *stripSums[T]) reset() {
	for _, tile := range [][]T{s.a, s.b, s.c, s.d, s.bias} {
		clear(tile)
	}
	for _, all := range [][]float64{s.aAll, s.bAll, s.cAll, s.dAll, s.biasAll} {
		clear(all)
	}
}

// flush adds the current tile's sums to those of all tiles, and sets the tile's sums to zero.
func (s *stripSums[T]) flush() {
	for _, p := range []struct {
		tile []T
		all  []float64
	}{{s.a, s.aAll}, {s.b, s.bAll}, {s.c, s.cAll}, {s.d, s.dAll}, {s.bias, s.biasAll}} {
		add64(p.all, p.tile)
		clear(p.tile)
	}
}

// paramParts holds the parts of the gradients that are sums over batch and time: one part for each row of the batch and each chunk. A single part is the
// gradient itself.
type paramParts[T Float] struct {
	layout  work.Layout[float64]
	count   int
	grad    *ScanGrad[T]
	a, b, c []float64 // (part, channels, state); b and c only if they are constant
	d, bias []float64 // (part, channels)
}

func newParamParts[T Float](s *Scan[T], grad *ScanGrad[T], chunks int) *paramParts[T] {
	p := &s.param
	*p = paramParts[T]{count: s.Batch * chunks, grad: grad}
	if p.count == 1 {
		return p
	}
	size := p.count * s.Channels
	p.layout.Lay(func(l *work.Layout[float64]) {
		p.a = l.Array(size * s.State)
		p.b, p.c = l.ArrayIf(s.B.Groups == 0, size*s.State), l.ArrayIf(s.C.Groups == 0, size*s.State)
		p.d, p.bias = l.ArrayIf(s.D != nil, size), l.ArrayIf(s.DeltaBias != nil, size)
	})
	return p
}

// take copies the sums of a strip to its place in a part.
func (p *paramParts[T]) take(s *Scan[T], part int, st *strip[T], sums *stripSums[T]) {
	first, state := part*s.Channels+st.first, s.State
	if p.count == 1 {
		takeStrip(p.grad.A, sums.aAll, st, first, state)
		if s.B.Groups == 0 {
			takeStrip(p.grad.B, sums.bAll, st, first, state)
		}
		if s.C.Groups == 0 {
			takeStrip(p.grad.C, sums.cAll, st, first, state)
		}
		if s.D != nil {
			takeStrip(p.grad.D, sums.dAll, st, first, 1)
		}
		if s.DeltaBias != nil {
			takeStrip(p.grad.DeltaBias, sums.biasAll, st, first, 1)
		}
		return
	}
	takeStrip(p.a, sums.aAll, st, first, state)
	takeStrip(p.b, sums.bAll, st, first, state)
	takeStrip(p.c, sums.cAll, st, first, state)
	takeStrip(p.d, sums.dAll, st, first, 1)
	takeStrip(p.bias, sums.biasAll, st, first, 1)
}

// takeStrip transposes a strip's sums (state, lanes) to the rows of to (channels, state) from first on. It does nothing if to is nil.
func takeStrip[F, T Float](to []F, sums []float64, st *strip[T], first, state int) {
	if to == nil {
		return
	}
	if state == lanes && st.width == lanes { // the usual number of states, without bounds to check
		in, out := (*[lanes * lanes]float64)(sums), (*[lanes * lanes]F)(to[first*state:])
		for n := range lanes {
			for l := range lanes {
				out[l*lanes+n] = F(in[n*lanes+l])
			}
		}
		return
	}
	for l := range st.width {
		row := to[(first+l)*state:][:state]
		for n := range row {
			row[n] = F(sums[n*lanes+l])
		}
	}
}

// sum adds the parts in order and writes the gradients.
func (p *paramParts[T]) sum() {
	sumBatches(p.count, p.a, p.grad.A)
	sumBatches(p.count, p.b, p.grad.B)
	sumBatches(p.count, p.c, p.grad.C)
	sumBatches(p.count, p.d, p.grad.D)
	sumBatches(p.count, p.bias, p.grad.DeltaBias)
}

// sumBatches does nothing if there are no parts.
func sumBatches[T Float](batch int, part []float64, grad []T) {
	if part == nil {
		return
	}
	for i := range grad {
		var sum float64
		for b := range batch {
			sum += part[b*len(grad)+i]
		}
		grad[i] = T(sum)
	}
}
