package blas

// Sizes of the blocks, in float32. They decide the order of the sums, and depend on nothing but the sizes of a product.
const (
	// depth is the most that a tile sums before it goes back to C: a tile's rows of A of this depth stay in the first cache,
	// and blockColumns columns of B in the second, while a task's rows of A pass by, at least blockRows of them if C has them.
	depth        = 384
	blockColumns = 384
	blockRows    = 256

	// fewRows is up to where B's rows, if they are what is summed over, are read as they lie.
	fewRows = 24
	// directSize is up to where a B that lies as the tiles want it is read as it lies, without packing.
	directSize = 128 * 128

	// taskSize is the number of multiplications that are worth a task: some 40 µs.
	taskSize = 1 << 22
	// serialSize is up to where a product is not worth a second processor.
	serialSize = 1 << 20
	// streamSize is the number of elements of B that are worth a task when they are only read.
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
	// A column is the same product with the matrices in each other's place.
	if p.n == 1 && p.m > 1 && p.ldc == 1 && p.aCol == 1 && (p.bTrans || p.ldb == 1 || p.k == 1) {
		p.m, p.n = 1, p.m
		p.a, p.b, p.ldb, p.aRow, p.bTrans = p.b, p.a, p.aRow, p.k, true
		p.ldc = p.n
	}
	small := p.m*p.n*p.k <= serialSize
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

// dotsApply is whether B's rows are read as they lie, direct whether its columns are.
func (p *product) dotsApply() bool { return p.bTrans && p.aCol == 1 && p.m <= fewRows }

func (p *product) direct() bool {
	return !p.bTrans && (p.m <= fewRows || p.k*p.n <= directSize || p.n <= p.vectors*p.lanes)
}

// dotRows is the number of B's rows that a kernel reads at a time.
const dotRows = 8

// dotColumns computes columns of C in one walk over B's rows.
func (p *product) dotColumns(from, to int) {
	most := len(p.dots) - 1
	groups := parts(p.m, most)
	for j := from; j < to; j += dotRows {
		for g := range groups {
			rows := cut(p.m, groups, g)
			i := rows.from
			p.dots[rows.len()](p.k, &p.a[i*p.aRow], p.aRow, &p.b[j*p.ldb], p.ldb, &p.c[i*p.ldc+j], p.ldc, p.alpha, p.beta, min(dotRows, to-j))
		}
	}
}

// span is a range of whole numbers.
type span struct{ from, to int }

func (s span) len() int { return s.to - s.from }

// parts is how many parts of at most size make n.
func parts(n, size int) int { return (n + size - 1) / size }

// cut returns part i of n things in parts that differ by at most one.
func cut(n, parts, i int) span { return span{i * n / parts, (i + 1) * n / parts} }

// cut is cut for a range.
func (s span) cut(parts, i int) span {
	c := cut(s.len(), parts, i)
	return span{s.from + c.from, s.from + c.to}
}

// panels is the number of panels: columns of B as wide as a tile, cut evenly in whole vectors.
func (p *product) panels() int { return parts(p.width(), p.vectors) }

// width is the number of vectors in a row of C.
func (p *product) width() int { return parts(p.n, p.lanes) }

// panel returns the vectors of a panel.
func (p *product) panel(i int) span { return cut(p.width(), p.panels(), i) }

// packedRows is the distance of columns in packed rows of A.
const packedRows = 8

// block is a part of C.
type block struct{ rows, panels span }

// multiply computes a block. packedB has room to pack a piece of B, or is nil to read B as it lies; packedA has room to pack a
// tile's rows of A, or is nil to read A as it lies.
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

// multiplyPiece adds a piece of the block's sums.
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
		a := p.a[i*p.aRow+piece.from*p.aCol:]
		if packedA != nil {
			if p.aCol == 1 {
				p.packRows(k, &a[0], p.aRow, &packedA[0], rows)
			} else {
				p.packColumns(k, &a[0], p.aCol, &packedA[0], rows)
			}
			a = packedA
		}
		packed := packedB
		for q := x.panels.from; q < x.panels.to; q++ {
			v := p.panel(q)
			j := v.from * p.lanes
			b, ldb := packed, v.len()*p.lanes
			if packed != nil {
				packed = packed[k*ldb:]
			} else {
				ldb = p.ldb
				b = p.b[piece.from*ldb+j:]
			}
			width := min(p.lanes, p.n-(v.to-1)*p.lanes)
			p.tile[rows][v.len()](k, &a[0], aRow, aCol, &b[0], ldb, &p.c[i*p.ldc+j], p.ldc, p.alpha, beta, width)
		}
	}
}

// pack copies panels of B to where the tiles read them one after the other.
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
