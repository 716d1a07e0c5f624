package kernel

import "github.com/gomamba/mamba/internal/work"

// Pad copies a grid of three axes into another one, whose cell 0 is cell -Before of the first: From and To are their sizes. Cells of the second that the
// first does not have are zero. The pad with From and To exchanged and Before negated is its derivative.
type Pad struct {
	Batch, Channels int
	From, To        [3]int
	Before          [3]int // may be negative
}

// Reverse returns the pad that is the derivative.
func (p Pad) Reverse() Pad {
	p.From, p.To = p.To, p.From
	for i := range p.Before {
		p.Before[i] = -p.Before[i]
	}
	return p
}

// PadCells writes y (batch, to…, channels) from x (batch, from…, channels).
func PadCells[T Float](p *Pad, y, x []T) {
	row := p.To[2] * p.Channels
	first, last := max(p.Before[2], 0), min(p.Before[2]+p.From[2], p.To[2]) // the cells of a row that x has
	work.ParallelRange(p.Batch*p.To[0]*p.To[1], max(piece/row, 1), func(from, to int) {
		for r := from; r < to; r++ {
			b, i, j := r/(p.To[0]*p.To[1]), r/p.To[1]%p.To[0]-p.Before[0], r%p.To[1]-p.Before[1]
			y := y[r*row : (r+1)*row]
			if i < 0 || i >= p.From[0] || j < 0 || j >= p.From[1] || first >= last {
				clear(y)
				continue
			}
			at := (((b*p.From[0]+i)*p.From[1]+j)*p.From[2] + first - p.Before[2]) * p.Channels
			clear(y[:first*p.Channels])
			clear(y[last*p.Channels:])
			copy(y[first*p.Channels:last*p.Channels], x[at:])
		}
	})
}
