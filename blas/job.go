package blas

import (
	"sync"

	"github.com/gomamba/mamba/internal/kernel"
)

// job is a product that is cut into tasks, which the processors take in order. Of B, a step at a time is packed, by tasks of
// its own; when they are done it meets the rows of A.
//
// An element of C is summed in the same order whatever task it falls into, so neither the cut nor chance changes a result.
type job struct {
	product
	columns int // of a task that reads B's rows as they lie

	// The step: what it covers, and B packed, or nil.
	x      block
	packed []float32

	packTasks    int
	blocks       int // of the step's panels
	rowBlocks    int // of each of them
	dotTask      func(i int)
	packTask     func(i int) // these are made once: a method's value allocates
	multiplyTask func(i int)
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.dotTask, j.packTask, j.multiplyTask = j.dot, j.packPart, j.multiplyPart
	return j
}}

// inTasks computes the product, on this processor alone or on all.
func (p *product) inTasks(alone bool) {
	j := jobs.Get().(*job)
	j.product = *p
	do := kernel.Parallel
	if alone {
		do = func(n int, task func(int)) {
			for i := range n {
				task(i)
			}
		}
	}
	if p.dotsApply() {
		j.columns = max(1, streamSize/p.k/dotRows) * dotRows
		do(parts(p.n, j.columns), j.dotTask)
	} else {
		j.steps(do)
	}
	j.product, j.x, j.packed = product{}, block{}, nil
	jobs.Put(j)
}

func (j *job) dot(i int) { j.dotColumns(i*j.columns, min((i+1)*j.columns, j.n)) }

func (j *job) steps(do func(n int, task func(int))) {
	kSteps := parts(j.k, stepDepth)
	most := parts(j.k, kSteps)
	panel := j.vectors * j.lanes
	columnSteps := parts(j.panels(), max(1, stepSize/(panel*most)))
	var room kernel.Space[float32]
	if !j.direct() {
		room = kernel.Borrow[float32](parts(j.panels(), columnSteps) * panel * most)
		defer room.Return()
	}
	for s := range columnSteps * kSteps {
		j.x = block{
			rows:   span{0, parts(j.m, j.rows)},
			panels: cut(j.panels(), columnSteps, s/kSteps),
			k:      cut(j.k, kSteps, s%kSteps),
		}
		j.packed = room.Data
		panels := j.x.panels.len()
		size := panels * panel * j.x.k.len()
		if j.packed != nil {
			j.packTasks = min(panels, max(1, size/packSize))
			do(j.packTasks, j.packTask)
		}
		// Tasks of as many rows as make good use of the part of B that the second cache holds; if they are few, narrower ones.
		least := 4
		if size > cached && j.x.k.len() > depth {
			least = 16
		}
		wanted := max(1, j.m*size/taskSize)
		mostRows := max(1, j.x.rows.len()/least)
		j.blocks = max(parts(panels*panel, blockColumns), min(parts(min(wanted, 8), mostRows), parts(panels, 2)))
		j.rowBlocks = min(mostRows, parts(wanted, j.blocks))
		do((j.blocks-1)*j.rowBlocks+min(tail*j.rowBlocks, j.x.rows.len()), j.multiplyTask)
	}
}

// offset is where a panel lies in the step's packed B.
func (j *job) offset(panel int) int {
	return (j.panel(panel).from - j.panel(j.x.panels.from).from) * j.lanes * j.x.k.len()
}

func (j *job) packPart(i int) {
	panels := j.x.panels.cut(j.packTasks, i)
	j.pack(panels, j.x.k, j.packed[j.offset(panels.from):])
}

// multiplyPart multiplies a block of panels with a block of rows. Tasks of the same panels follow each other: processors that
// share a cache share what they read of B. Those of the last panels are small, for the processors to finish together.
func (j *job) multiplyPart(i int) {
	q, i, n := i/j.rowBlocks, i%j.rowBlocks, j.rowBlocks
	if q >= j.blocks-1 {
		i, n = i+(q-j.blocks+1)*j.rowBlocks, min(tail*j.rowBlocks, j.x.rows.len())
		q = j.blocks - 1
	}
	b := block{panels: j.x.panels.cut(j.blocks, q), k: j.x.k}
	strips := j.x.rows.cut(n, i)
	b.rows = span{strips.from * j.rows, min(strips.to*j.rows, j.m)}
	packed := j.packed
	if packed != nil {
		packed = packed[j.offset(b.panels.from):]
	}
	var packedA []float32
	if j.panels() > 1 {
		w := kernel.Borrow[float32](depth * packedRows)
		defer w.Return()
		packedA = w.Data
	}
	j.multiply(b, packed, packedA)
}
