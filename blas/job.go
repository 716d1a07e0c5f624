package blas

import (
	"math"
	"sync"
	"sync/atomic"

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

	workers  int        // that compute blocks
	depths   span       // the pieces of k that are multiplied now
	progress []progress // of the blocks
	packedB  []float32  // room for each block's columns of B, or nil
	room     int

	dotTask, multiplyTask, apartTask func(i int) // made once: a method's value allocates
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.dotTask, j.multiplyTask, j.apartTask = j.multiplyColumns, j.multiplyBlock, j.worker
	return j
}}

// inTasks computes the product in tasks: on this goroutine if alone, otherwise on all processors.
func (p *product) inTasks(alone bool) {
	j := jobs.Get().(*job)
	j.product = *p
	var tasks, apart int // apart is the number of processors that compute blocks of their own
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
		if procs := min(work.Processors(), p.cost()/(serialSize/2)); !alone && procs > 1 && j.blocks*j.rowBlocks < 4*procs {
			apart = procs
		}
		// The last tasks are small, for the processors to finish together: those between what the first processor of work.Parallel takes and what the others take.
		blocks := j.blocks * j.rowBlocks
		small := (blocks + 2) / 4
		j.cut.from = max(0, min(blocks/work.Processors()-small/2, blocks-small))
		j.cut.to = j.cut.from + small
		j.pieces = min(4, j.strips/j.rowBlocks)
		tasks = blocks + small*(j.pieces-1)
	}
	switch {
	case alone:
		for i := range tasks {
			task(i)
		}
	case apart > 0:
		j.apart(apart)
	default:
		work.Parallel(tasks, task)
	}
	j.product = product{}
	jobs.Put(j)
}

// progress says how far a block of a product of many processors is.
type progress struct {
	begun, packed atomic.Bool  // somebody packs the block's columns of B; has packed them
	strips        atomic.Int64 // that somebody has taken
	_             [64 - 16]byte
}

// apart computes the product with one block for each of many processors. A processor packs the columns of B of its block and then takes strips of its rows,
// many at first and few at the end. Who has no more helps others with theirs: the processors of a server do not get the same speed, since other virtual machines use
// the other halves of their cores.
//
// So no processor waits for another, and none writes what others have in their caches, but at the end. To pack B together took four times as long: all
// had read it in the product before.
//
// With a large k, apart does so for some of k at a time.
func (j *job) apart(procs int) {
	const (
		packing = 12      // rows of A that a number of B is multiplied by in the time that packing it takes
		room    = 1 << 18 // numbers of B that are packed for a block at a time: they stay in the second-level cache
	)
	reading := 1 // the same for a number of A
	if j.packsA() {
		reading = 4
	}
	least := math.MaxInt
	for columns := 1; columns <= min(procs, j.panels()); columns++ {
		rows := min(parts(procs, columns), j.strips)
		if time := packing*rows*j.n + reading*columns*j.m; time < least {
			least, j.blocks, j.rowBlocks = time, columns, rows
		}
	}
	n := j.blocks * j.rowBlocks
	if cap(j.progress) < n {
		j.progress = make([]progress, n)
	}
	j.progress = j.progress[:n]

	pieces, columns := parts(j.k, depth), parts(j.panels(), j.blocks)*j.vectors*j.lanes
	some := min(pieces, max(1, room/(columns*depth)))
	if !j.direct() {
		j.room = columns * min(j.k, some*depth)
		space := work.Borrow[float32](n * j.room)
		defer space.Return()
		j.packedB = space.Data
	}
	j.workers = procs
	for from := 0; from < pieces; from += some {
		j.depths = span{from, min(from+some, pieces)}
		for i := range j.progress {
			p := &j.progress[i]
			p.begun.Store(false)
			p.packed.Store(false)
			p.strips.Store(0)
		}
		work.Parallel(procs, j.apartTask)
	}
	j.packedB = nil
}

// worker computes blocks, beginning with its own, as far as nobody else does.
func (j *job) worker(i int) {
	var packedA []float32
	if j.packsA() {
		w := work.Borrow[float32](depth * packedRows)
		defer w.Return()
		packedA = w.Data
	}
	n := len(j.progress)
	for next := range n {
		at := (i*n/j.workers + next) % n
		p := &j.progress[at]
		strips, panels := cut(j.strips, j.rowBlocks, at%j.rowBlocks), cut(j.panels(), j.blocks, at/j.rowBlocks)
		if j.packedB != nil && !p.packed.Load() {
			if p.begun.Swap(true) {
				continue // who packs takes the strips
			}
			for piece := j.depths.from; piece < j.depths.to; piece++ {
				k, packedB := j.packedPiece(at, panels, piece)
				j.pack(panels, k, packedB)
			}
			p.packed.Store(true)
		}
		for taken := p.strips.Load(); taken < int64(strips.len()); taken = p.strips.Load() {
			some := max(1, (int64(strips.len())-taken)/4)
			if !p.strips.CompareAndSwap(taken, taken+some) {
				continue
			}
			from := strips.from + int(taken)
			x := block{rows: span{from * j.rows, min((from+int(some))*j.rows, j.m)}, panels: panels}
			for piece := j.depths.from; piece < j.depths.to; piece++ {
				k, packedB := j.packedPiece(at, panels, piece)
				j.multiplyPiece(x, k, packedB, packedA)
			}
		}
	}
}

// packedPiece returns a piece of k and the memory for it in the packed columns of a block, nil if B is not packed.
func (j *job) packedPiece(at int, panels span, piece int) (k span, packedB []float32) {
	pieces := parts(j.k, depth)
	k = cut(j.k, pieces, piece)
	if j.packedB != nil {
		before, vectors := k.from-cut(j.k, pieces, j.depths.from).from, j.panel(panels.to-1).to-j.panel(panels.from).from
		packedB = j.packedB[at*j.room+before*vectors*j.lanes:]
	}
	return k, packedB
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
