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

	some    int       // pieces of k that are packed at a time
	depths  span      // the pieces of k that are multiplied now
	chunks  int       // tasks that pack a panel of a piece of k
	packedB []float32 // packed for all tasks, or nil

	dotTask, multiplyTask, packTask, togetherTask func(i int) // made once: a method's value allocates
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.dotTask, j.multiplyTask, j.packTask, j.togetherTask = j.multiplyColumns, j.multiplyBlock, j.packPart, j.multiplyTogether
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

// many is the number of processors from which they pack B together, where its blocks are few for so many. With blocks of their own, they would pack each
// number of B several times, and the product would take as long as its slowest processor. Of two processors, each packs for itself: to read what the other
// has written takes longer than to pack twice.
const many = 12

// together packs B, then cuts C into small blocks, about twelve for each processor: a processor that is slower than the others then computes fewer of them.
// With a large k, it does so for some of k at a time. A is packed by each task, or not at all if its rows lie in the order of k: to pack it together, all
// processors would write what others have in their caches, which takes as long as a fifth of the products.
func (j *job) together(procs int) {
	const (
		wide  = 1 << 18 // numbers of B that the tasks of a block of columns read: they stay in the second-level cache
		most  = 4       // panels of a block
		tasks = 12      // of each processor
		room  = 1 << 22 // numbers of B that are packed at a time, unless one piece of k has more
	)
	pieces, columns := parts(j.k, depth), j.width()*j.lanes
	j.some = min(pieces, max(1, room/(columns*depth)))
	j.blocks = parts(j.panels(), max(2, min(wide/(j.vectors*j.lanes*min(j.k, j.some*depth)), most)))
	j.rowBlocks = min(j.strips, parts(tasks*procs, j.blocks))
	if !j.direct() {
		space := work.Borrow[float32](columns * min(j.k, j.some*depth))
		defer space.Return()
		j.packedB = space.Data
	}
	for from := 0; from < pieces; from += j.some {
		j.depths = span{from, min(from+j.some, pieces)}
		if j.packedB != nil {
			j.chunks = parts(2*procs, j.depths.len()*j.panels())
			work.Parallel(j.panels()*j.depths.len()*j.chunks, j.packTask)
		}
		work.Parallel(j.blocks*j.rowBlocks, j.togetherTask)
	}
	j.packedB = nil
}

// panelsOf returns the packed panels of B of a piece of k, from panel i on, nil if B is not packed.
func (j *job) panelsOf(k span, i int) []float32 {
	if j.packedB == nil {
		return nil
	}
	before := k.from - cut(j.k, parts(j.k, depth), j.depths.from).from
	return j.packedB[(before*j.width()+k.len()*j.panel(i).from)*j.lanes:]
}

func (j *job) packPart(i int) {
	n := j.depths.len() * j.chunks
	panel, part := i/n, i%n
	k := cut(j.k, parts(j.k, depth), j.depths.from+part/j.chunks)
	some := k.cut(j.chunks, part%j.chunks)
	if some.len() > 0 {
		j.pack(span{panel, panel + 1}, some, j.panelsOf(k, panel)[(some.from-k.from)*j.panel(panel).len()*j.lanes:])
	}
}

func (j *job) multiplyTogether(i int) {
	strips := cut(j.strips, j.rowBlocks, i%j.rowBlocks)
	x := block{rows: span{strips.from * j.rows, min(strips.to*j.rows, j.m)}, panels: cut(j.panels(), j.blocks, i/j.rowBlocks)}
	var packedA []float32
	if j.packsA() {
		w := work.Borrow[float32](depth * packedRows)
		defer w.Return()
		packedA = w.Data
	}
	for piece := j.depths.from; piece < j.depths.to; piece++ {
		k := cut(j.k, parts(j.k, depth), piece)
		j.multiplyPiece(x, k, j.panelsOf(k, x.panels.from), packedA)
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
	if j.packsA() {
		packedA = w.Data[:roomA]
	}
	if !j.direct() {
		packedB = w.Data[roomA:]
	}
	j.multiply(x, packedB, packedA)
}
