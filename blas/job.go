package blas

import (
	"math"
	"sync"

	"github.com/gomamba/mamba/internal/work"
)

// job is a product that is cut into tasks. The processors take the tasks in order.
//
// The order in which an element of C is summed does not depend on its task. So the result does not depend on the cut or on timing.
type job struct {
	product
	columns int // of a task that reads B's rows as they lie

	strips            int // rows of tiles
	blocks, rowBlocks int // that C is cut into, of columns and of rows
	pieces            int // tasks of each block of cut, which the processors get to last; the other blocks are one task each
	cut               span

	depths           span      // the pieces of k that are multiplied now
	packedA, packedB []float32 // packed for all tasks, or nil
	packsA, packsB   int       // tasks that pack a piece of k: a strip of A each, a panel of B each

	dotTask, multiplyTask, packTask, togetherTask func(i int) // made once: a method's value allocates
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.dotTask, j.multiplyTask, j.packTask, j.togetherTask = j.multiplyColumns, j.multiplyBlock, j.packPiece, j.multiplyTogether
	return j
}}

// inTasks computes the product in tasks: on this goroutine if alone, otherwise on all processors.
func (p *product) inTasks(alone bool) {
	j := jobs.Get().(*job)
	j.product = *p
	var tasks int
	task := j.multiplyTask
	if p.dotsApply() {
		j.columns = max(1, streamSize/p.k/dotRows) * dotRows
		tasks, task = parts(p.n, j.columns), j.dotTask
	} else {
		// A task packs its part of B for itself, so it has as many rows as are worth that.
		j.strips = parts(p.m, p.rows)
		wanted := max(1, p.m*p.n*p.k/taskSize)
		most := max(1, p.m/blockRows)
		j.blocks = max(parts(p.n, blockColumns), min(parts(min(wanted, 8), most), parts(p.panels(), 2)))
		j.rowBlocks = min(most, parts(wanted, j.blocks))
		switch procs := min(work.Processors(), p.cost()/(serialSize/2)); {
		case alone:
		case procs >= many && j.blocks*j.rowBlocks < 4*procs:
			j.together(procs)
			j.product = product{}
			jobs.Put(j)
			return
		case j.blocks*j.rowBlocks < procs:
			j.cutFor(procs)
		}
		// The last tasks are small, for the processors to finish together: those between what the caller of work.Parallel takes and what its helpers take.
		blocks := j.blocks * j.rowBlocks
		small := (blocks + 2) / 4
		j.cut.from = max(0, min(blocks/work.Processors()-small/2, blocks-small))
		j.cut.to = j.cut.from + small
		j.pieces = min(4, j.strips/j.rowBlocks)
		tasks = blocks + small*(j.pieces-1)
	}
	if alone {
		for i := range tasks {
			task(i)
		}
	} else {
		work.Parallel(tasks, task)
	}
	j.product = product{}
	jobs.Put(j)
}

// cutFor cuts C for more processors than the cut by sizes has blocks for: into the blocks that take the least time, as many times one block as each
// processor computes. A block's time is that of its products and of packing: its columns of B, and its rows of A.
func (j *job) cutFor(procs int) {
	const packing = 12 // products that take as long as packing a number
	least := math.Inf(1)
	fewest, most := parts(j.n, blockColumns), 2*procs // more blocks than most would only pack more
	for columns := fewest; columns <= max(fewest, min(j.panels(), most)); columns++ {
		for rows := 1; rows <= max(1, min(j.strips/2, most)); rows++ {
			time := float64(parts(rows*columns, procs)) * (float64(j.m)/float64(rows) + packing) * (float64(j.n)/float64(columns) + packing)
			if time < least {
				least, j.blocks, j.rowBlocks = time, columns, rows
			}
		}
	}
}

// many is the number of processors from which they pack a product's operands together, where its blocks are few for so many. With blocks of their own,
// they would pack each number several times, and the product would take as long as its slowest processor. Of two processors, each packs for itself: to read
// what the other has written takes longer than to pack twice.
const many = 12 // with 4 a block took a tenth longer so, with 8 as long as without

// together packs A and B, then cuts C into small blocks, three or more for each processor. With a large k, it does so for some of k at a time.
func (j *job) together(procs int) {
	const loading = 4 // products that take as long as reading a packed number from another processor's cache
	least := math.Inf(1)
	fewest, most := parts(j.n, blockColumns), 4*procs
	for columns := fewest; columns <= max(fewest, min(j.panels(), most)); columns++ {
		for rows := 1; rows <= min(j.strips, most); rows++ {
			n := rows * columns
			if n < 3*procs && (columns < j.panels() || rows < min(j.strips, most)) {
				continue
			}
			height, width := parts(j.strips, rows)*j.rows, parts(j.panels(), columns)*j.vectors*j.lanes
			if time := float64(parts(n, procs) * (height + loading) * (width + loading)); time < least {
				least, j.blocks, j.rowBlocks = time, columns, rows
			}
		}
	}
	j.packsA, j.packsB = 0, 0
	if j.panels() > 1 {
		j.packsA = j.strips
	}
	if !j.direct() {
		j.packsB = j.panels()
	}
	const room = 1 << 22 // float32: packed at a time, unless one piece of k has more
	sizeA, sizeB := j.packsA*packedRows*depth, j.packsB*j.vectors*j.lanes*depth
	pieces := parts(j.k, depth)
	some := min(pieces, max(1, room/max(1, sizeA+sizeB)))
	space := work.Borrow[float32](some * (sizeA + sizeB))
	defer space.Return()
	j.packedA, j.packedB = space.Data[:some*sizeA], space.Data[some*sizeA:]
	for from := 0; from < pieces; from += some {
		j.depths = span{from, min(from+some, pieces)}
		if n := j.packsA + j.packsB; n > 0 {
			work.Parallel(j.depths.len()*n, j.packTask)
		}
		work.Parallel(j.blocks*j.rowBlocks, j.togetherTask)
	}
	j.packedA, j.packedB = nil, nil
}

// stripsOf returns the packed strips of A of a piece of k, from strip i on, nil if A is not packed.
func (j *job) stripsOf(piece, i int) []float32 {
	if j.packsA == 0 {
		return nil
	}
	return j.packedA[((piece-j.depths.from)*j.packsA*depth+i*cut(j.k, parts(j.k, depth), piece).len())*packedRows:]
}

// panelsOf returns the packed panels of B of a piece of k, from panel i on, nil if B is not packed.
func (j *job) panelsOf(piece, i int) []float32 {
	if j.packsB == 0 {
		return nil
	}
	return j.packedB[((piece-j.depths.from)*j.packsB*depth*j.vectors+j.panel(i).from*cut(j.k, parts(j.k, depth), piece).len())*j.lanes:]
}

func (j *job) packPiece(i int) {
	n := j.packsA + j.packsB
	piece := j.depths.from + i/n
	k := cut(j.k, parts(j.k, depth), piece)
	if i %= n; i < j.packsB {
		j.pack(span{i, i + 1}, k, j.panelsOf(piece, i))
		return
	}
	i -= j.packsB
	j.packStrip(span{i * j.rows, min((i+1)*j.rows, j.m)}, k, j.stripsOf(piece, i))
}

func (j *job) multiplyTogether(i int) {
	strips := cut(j.strips, j.rowBlocks, i%j.rowBlocks)
	x := block{rows: span{strips.from * j.rows, min(strips.to*j.rows, j.m)}, panels: cut(j.panels(), j.blocks, i/j.rowBlocks)}
	for piece := j.depths.from; piece < j.depths.to; piece++ {
		j.multiplyPiece(x, cut(j.k, parts(j.k, depth), piece), j.panelsOf(piece, x.panels.from), j.stripsOf(piece, strips.from), true)
	}
}

func (j *job) multiplyColumns(i int) { j.dotColumns(i*j.columns, min((i+1)*j.columns, j.n)) }

func (j *job) multiplyBlock(i int) {
	piece, pieces := 0, 1
	switch small := i - j.cut.from; {
	case small >= j.cut.len()*j.pieces:
		i -= j.cut.len() * (j.pieces - 1)
	case small >= 0:
		i, piece, pieces = j.cut.from+small/j.pieces, small%j.pieces, j.pieces
	}
	strips := cut(j.strips, j.rowBlocks, i%j.rowBlocks).cut(pieces, piece)
	x := block{
		rows:   span{strips.from * j.rows, min(strips.to*j.rows, j.m)},
		panels: cut(j.panels(), j.blocks, i/j.rowBlocks),
	}
	const roomA = depth * packedRows
	w := work.Borrow[float32](roomA + depth*blockColumns)
	defer w.Return()
	var packedA, packedB []float32
	if j.panels() > 1 {
		packedA = w.Data[:roomA]
	}
	if !j.direct() {
		packedB = w.Data[roomA:]
	}
	j.multiply(x, packedB, packedA)
}
