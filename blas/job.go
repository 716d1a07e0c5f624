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

	dotTask, multiplyTask func(i int) // made once: a method's value allocates
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.dotTask, j.multiplyTask = j.dot, j.multiplyBlock
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
		if procs := min(work.Processors(), p.cost()/(serialSize/2)); !alone && j.blocks*j.rowBlocks < procs {
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

func (j *job) dot(i int) { j.dotColumns(i*j.columns, min((i+1)*j.columns, j.n), j.n) }

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
