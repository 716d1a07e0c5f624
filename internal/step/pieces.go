package step

import (
	"slices"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/work"
)

// Piece is a piece of a sequence: at least one token to read, and the state of each block before them.
type Piece struct {
	Tokens  []int
	Context [][]float32 // by block: (width-1, channels), from the oldest to the newest
	Scan    [][]float32 // by block: (channels, state)
}

// ReadPieces reads pieces of several sequences, and overwrites their states with those after the pieces. Batch is not used, nor are Norm and
// Head: it computes no logits.
//
// The pieces share the matrix products, which take most of the time. A product sums in another order for at most MostRows rows. So those of
// shorter pieces are computed apart from the others, and each piece has the bits that it has alone.
func (c *Config) ReadPieces(pieces []Piece) {
	pieces = slices.Clone(pieces)
	slices.SortStableFunc(pieces, func(a, b Piece) int { return len(a.Tokens) - len(b.Tokens) })
	r := reading{Config: c, pieces: pieces}
	for _, p := range pieces {
		r.rows += len(p.Tokens)
		if len(p.Tokens) <= MostRows {
			r.few = r.rows
		}
	}
	var l work.Layout[float32]
	defer l.Return()
	var x, normed, vz, u, rbc, delta, scanned, a, final, context []float32
	l.Lay(func(l *work.Layout[float32]) {
		x, normed, vz, u = l.Array(r.rows*c.Model), l.Array(r.rows*c.Model), l.Array(r.rows*2*c.Channels), l.Array(r.rows*c.Channels)
		rbc, delta, scanned = l.Array(r.rows*c.columns()), l.Array(r.rows*c.Channels), l.Array(r.rows*c.Channels)
		a, final, context = l.Array(c.Channels*c.State), l.Array(c.Channels*c.State), l.Array(c.Channels*(c.Width-1))
	})
	row := 0
	for _, p := range pieces {
		for _, token := range p.Tokens {
			c.Embedding.Row(token, x[row*c.Model:][:c.Model])
			row++
		}
	}
	for i := range c.Blocks {
		w := &c.Blocks[i]
		(&kernel.RMSNorm[float32]{Channels: c.Model, Eps: c.Eps, X: x, Weight: w.Norm}).Forward(normed)
		r.mul(vz, w.InProj, normed, c.Model, w.InBias, false)
		r.each(func(p *Piece, from, length int) {
			conv := kernel.Conv[float32]{
				Batch: 1, Length: length, Channels: c.Channels, Width: c.Width,
				X: vz[from*2*c.Channels:], XStride: 2 * c.Channels, Weight: w.Conv, Bias: w.ConvBias, Context: p.Context[i], SiLU: true,
			}
			conv.Forward(u[from*c.Channels:], context)
			copy(p.Context[i], context)
		})
		r.mul(rbc, w.XProj, u, c.Channels, nil, false)
		r.mul(delta, w.DtProj, rbc, c.columns(), nil, false)
		kernel.NegExp(a, w.ALog)
		r.each(func(p *Piece, from, length int) {
			bc := rbc[from*c.columns()+c.Rank:]
			scan := kernel.Scan[float32]{
				Batch: 1, Length: length, Channels: c.Channels, State: c.State,
				U: u[from*c.Channels:], Delta: delta[from*c.Channels:], A: a,
				B: kernel.Projection[float32]{Data: bc, Groups: 1, Stride: c.columns()},
				C: kernel.Projection[float32]{Data: bc[c.State:], Groups: 1, Stride: c.columns()},
				D: w.D, Z: vz[from*2*c.Channels+c.Channels:], ZStride: 2 * c.Channels, DeltaBias: w.DtBias, Initial: p.Scan[i], Softplus: true,
			}
			scan.Forward(scanned[from*c.Channels:], final)
			copy(p.Scan[i], final)
		})
		if i < len(c.Blocks)-1 { // nobody reads the last block's result
			r.mul(x, w.OutProj, scanned, c.Channels, w.OutBias, true)
		}
	}
}

// reading is a run of ReadPieces.
type reading struct {
	*Config
	pieces []Piece // the shorter ones first
	rows   int     // of all pieces
	few    int     // of the pieces of at most MostRows rows, which come first
}

// each calls f with each piece, its first row and its length.
func (r *reading) each(f func(p *Piece, from, length int)) {
	from := 0
	for i := range r.pieces {
		n := len(r.pieces[i].Tokens)
		f(&r.pieces[i], from, n)
		from += n
	}
}

// mul computes y = x·wᵀ + bias, or adds it to y. The rows of x are ldx apart.
func (r *reading) mul(y []float32, w *blas.Weights, x []float32, ldx int, bias []float32, add bool) {
	n := w.Outputs()
	if bias != nil {
		for row := range r.rows {
			if to := y[row*n : (row+1)*n]; add {
				kernel.AddTo(to, bias)
			} else {
				copy(to, bias)
			}
		}
		add = true
	}
	for from := 0; from < r.few; from += MostRows {
		w.Mul(y[from*n:], n, x[from*ldx:], ldx, min(MostRows, r.few-from), add)
	}
	w.Mul(y[r.few*n:], n, x[r.few*ldx:], ldx, r.rows-r.few, add)
}
