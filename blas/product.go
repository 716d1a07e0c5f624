package blas

// Sizes of the blocks, in float32. They determine the order of the sums, so they depend on the sizes of a product alone.
const (
	// depth is the largest k that a tile sums before it adds to C. A tile's rows of A of this depth fit into the first-level cache.
	// blockColumns columns of B of this depth fit into the second-level cache, and a task uses them for at least blockRows rows of A,
	// if C has that many.
	depth        = 384
	blockColumns = 384
	blockRows    = 256

	// fewRows is the largest number of rows of A for which a transposed B is read without packing.
	fewRows = 24
	// directSize is the largest size of an untransposed B that is read without packing.
	directSize = 128 * 128

	// taskSize is the number of multiplications of a task: about 40 µs.
	taskSize = 1 << 22
	// serialSize is the largest cost of a product that one processor computes alone, and half of it the least for each of several.
	serialSize = 1 << 19
	// streamSize is the number of elements of B of a task that reads B without packing.
	streamSize = 1 << 16
)

// product is C = alpha·A·B + beta·C.
type product struct {
	*kernels
	m, n, k     int
	alpha, beta float32
	a           []float32
	aRow, aCol  int // distances between rows and columns; one of them is 1
	b           []float32
	ldb         int
	bTrans      bool
	c           []float32
	ldc         int
}

func (p *product) run() {
	// A product with one column is the transpose of one with one row.
	if p.n == 1 && p.m > 1 && p.ldc == 1 && p.aCol == 1 && (p.bTrans || p.ldb == 1 || p.k == 1) {
		p.m, p.n = 1, p.m
		p.a, p.b, p.ldb, p.aRow, p.bTrans = p.b, p.a, p.aRow, p.k, true
		p.ldc = p.n
	}
	small := p.cost() <= serialSize
	switch {
	case p.dotsApply():
		if p.n*p.k < 2*streamSize {
			p.dotColumns(0, p.n)
			return
		}
		small = false
	case p.direct():
		if small && p.k <= depth {
			p.multiply(block{rows: span{0, p.m}, panels: span{0, p.panels()}}, nil, nil)
			return
		}
	}
	p.inTasks(small)
}

// cost returns the time of a product in multiplications. A tile multiplies whole vectors. To read and write an element of C takes about as long as
// perElement multiplications.
func (p *product) cost() int {
	const perElement = 8
	return p.m * p.width() * p.lanes * (p.k + perElement)
}

// dotsApply reports whether the rows of a transposed B are read without packing.
func (p *product) dotsApply() bool { return p.bTrans && p.aCol == 1 && p.m <= fewRows }

// direct reports whether an untransposed B is read without packing.
func (p *product) direct() bool {
	return !p.bTrans && (p.m <= fewRows || p.k*p.n <= directSize || p.n <= p.vectors*p.lanes)
}

// dotRows is the number of B's rows that a kernel reads at a time.
const dotRows = 4

// dotColumns computes the columns [from, to) of C. It reads the rows of B once, in dotRows streams: each is a part of them, from its first row to its
// last. The processor prefetches long streams itself, beside the prefetches of the kernel.
func (p *product) dotColumns(from, to int) {
	stream := streamRows(to - from)
	for j := range stream {
		p.dot(from+j, stream, parts(to-from-j, stream)) // the last streams may be shorter
	}
}

// streamRows returns the number of rows of a stream of a product that reads some rows.
func streamRows(rows int) int { return parts(rows, dotRows) }

// dot computes some columns of C, step apart, from column j on.
func (p *product) dot(j, step, columns int) {
	groups := parts(p.m, len(p.dots)-1)
	for g := range groups {
		rows := cut(p.m, groups, g)
		i := rows.from
		p.dots[rows.len()](p.k, &p.a[i*p.aRow], p.aRow, &p.b[j*p.ldb], step*p.ldb, &p.c[i*p.ldc+j], p.ldc, step, p.alpha, p.beta, columns)
	}
}

// span is the range [from, to).
type span struct{ from, to int }

func (s span) len() int { return s.to - s.from }

// parts returns the number of parts of at most size elements that n elements make.
func parts(n, size int) int { return (n + size - 1) / size }

// cut returns part i of n elements, cut into parts whose lengths differ by at most one.
func cut(n, parts, i int) span { return span{i * n / parts, (i + 1) * n / parts} }

// cut returns part i of the range.
func (s span) cut(parts, i int) span {
	c := cut(s.len(), parts, i)
	return span{s.from + c.from, s.from + c.to}
}

// panels returns the number of panels that the columns are cut into. A panel is at most as wide as a tile, in whole vectors.
func (p *product) panels() int { return parts(p.width(), p.vectors) }

// width returns the number of vectors in a row of C.
func (p *product) width() int { return parts(p.n, p.lanes) }

// panel returns the vectors of a panel.
func (p *product) panel(i int) span { return cut(p.width(), p.panels(), i) }

// packedRows is the stride between the columns of packed rows of A.
const packedRows = 8

// block is a part of C.
type block struct{ rows, panels span }

// packsA reports whether A is packed, a tile's rows at a time: if it is transposed and several tiles read them. The rows of an A that is not transposed are
// read where they lie: a tile reads eight of them side by side, and to pack them takes longer than it saves.
func (p *product) packsA() bool { return p.aCol != 1 && p.panels() > 1 }

// multiply computes a block of C. packedB is memory for a packed piece of B, or nil to read B without packing. packedA is the same for a
// tile's rows of A.
func (p *product) multiply(x block, packedB, packedA []float32) {
	pieces := parts(p.k, depth)
	for i := range pieces {
		k := cut(p.k, pieces, i)
		if packedB != nil {
			p.pack(x.panels, k, packedB)
		}
		p.multiplyPiece(x, k, packedB, packedA)
	}
}

// multiplyPiece adds the sums over a piece of k to a block of C. packedB has the piece of B, or is nil. packedA is memory as for multiply.
func (p *product) multiplyPiece(x block, piece span, packedB, packedA []float32) {
	k, beta := piece.len(), p.beta
	if piece.from > 0 {
		beta = 1
	}
	aRow, aCol := p.aRow, p.aCol
	if packedA != nil {
		aRow, aCol = 1, packedRows
	}
	for i := x.rows.from; i < x.rows.to; i += p.rows {
		rows := min(p.rows, x.rows.to-i)
		a := packedA
		if a != nil {
			p.packColumns(k, &p.a[i+piece.from*p.aCol], p.aCol, &a[0], rows)
		} else {
			a = p.a[i*p.aRow+piece.from*p.aCol:]
		}
		b := packedB
		for q := x.panels.from; q < x.panels.to; q++ {
			v := p.panel(q)
			j := v.from * p.lanes
			panel, ldb := b, v.len()*p.lanes
			if b != nil {
				b = b[k*ldb:]
			} else {
				ldb = p.ldb
				panel = p.b[piece.from*ldb+j:]
			}
			width := min(p.lanes, p.n-(v.to-1)*p.lanes)
			p.tile[rows][v.len()](k, &a[0], aRow, aCol, &panel[0], ldb, &p.c[i*p.ldc+j], p.ldc, p.alpha, beta, width)
		}
	}
}

// pack copies panels of B to to, in the order in which the tiles read them.
func (p *product) pack(panels, k span, to []float32) {
	for q := panels.from; q < panels.to; q++ {
		v := p.panel(q)
		j, ld := v.from*p.lanes, v.len()*p.lanes
		if p.bTrans {
			for i := range v.len() {
				j := j + i*p.lanes
				p.transpose(k.len(), &p.b[j*p.ldb+k.from], p.ldb, min(p.lanes, p.n-j), &to[i*p.lanes], ld)
			}
		} else {
			width := min(p.lanes, p.n-(v.to-1)*p.lanes)
			p.copyRows[v.len()](k.len(), &p.b[k.from*p.ldb+j], p.ldb, &to[0], ld, width)
		}
		to = to[k.len()*ld:]
	}
}
