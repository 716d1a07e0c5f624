package blas

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// job is a product cut into tasks, handed out in order to whoever is free. B is taken in steps, each packed by some tasks
// and multiplied by others, while the next is packed already; a task waits for earlier ones only, so somebody always works.
//
// An element of C is summed in the same order whatever task it falls into, so neither the cut nor chance changes a result.
type job struct {
	product
	tasks int

	dots    bool // the tasks are dotColumns
	columns int  // of such a task

	direct        bool // B is read as it lies, not packed
	kSteps, steps int
	stepCount     int // steps over columns
	packTasks     int // of a step
	blocks        int // of a step's panels
	rowBlocks     int
	room          int // of one step's packed B
	packed        [2][]float32

	next                  atomic.Int64
	packsDone, multiplies atomic.Int64
	helpers               sync.WaitGroup
	help                  func() // made once: a go statement with anything else allocates
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.help = func() {
		j.work()
		j.helpers.Done()
	}
	return j
}}

// scratch holds a worker's rows of A.
type scratch [depth * packedRows]float32

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func newJob(p *product) *job {
	j := jobs.Get().(*job)
	j.product = *p
	j.next.Store(0)
	j.packsDone.Store(0)
	j.multiplies.Store(0)
	j.dots = p.bTrans && p.aCol == 1 && p.m <= fewRows
	if j.dots {
		j.columns = max(1, streamSize/p.k/dotRows) * dotRows
		j.tasks = (p.n + j.columns - 1) / j.columns
		return j
	}
	j.direct = !p.bTrans && (p.m <= fewRows || p.k*p.n <= directSize || p.n <= p.vectors*p.lanes)
	panels := p.panels()
	j.kSteps = (p.k + depth - 1) / depth
	j.stepCount = (p.n + stepColumns - 1) / stepColumns
	j.steps = j.kSteps * j.stepCount
	stepPanels := (panels + j.stepCount - 1) / j.stepCount
	stepK := (p.k + j.kSteps - 1) / j.kSteps
	j.room = stepPanels * p.vectors * p.lanes * stepK
	j.packTasks = 0
	if !j.direct {
		j.packTasks = min(stepPanels, max(1, j.room/streamSize))
		for i := range min(2, j.steps) {
			if cap(j.packed[i]) < j.room {
				j.packed[i] = make([]float32, j.room)
			}
		}
	}
	columns := stepPanels * p.vectors * p.lanes
	j.blocks = (columns + blockColumns - 1) / blockColumns
	perRow := stepK * (columns / j.blocks)
	j.rowBlocks = max(1, min(p.m*perRow/taskSize, p.m/p.rows))
	j.tasks = j.packTasks + j.steps*(j.packTasks+j.blocks*j.rowBlocks)
	return j
}

// run does the tasks and gives the job back.
func (j *job) run(alone bool) {
	if !alone {
		for range min(runtime.GOMAXPROCS(0), j.tasks) - 1 {
			j.helpers.Add(1)
			go j.help()
		}
	}
	j.work()
	j.helpers.Wait()
	j.product = product{}
	jobs.Put(j)
}

func (j *job) work() {
	var s *scratch
	var packedA []float32
	if !j.dots && j.panels() > 1 {
		s = scratches.Get().(*scratch)
		packedA = s[:]
	}
	for i := int(j.next.Add(1)) - 1; i < j.tasks; i = int(j.next.Add(1)) - 1 {
		switch {
		case j.dots:
			j.dotColumns(i*j.columns, min((i+1)*j.columns, j.n))
		case i < j.packTasks:
			j.packTask(0, i)
		default:
			i -= j.packTasks
			perStep := j.packTasks + j.blocks*j.rowBlocks
			step, i := i/perStep, i%perStep
			if i >= j.packTasks {
				j.multiplyTask(step, i-j.packTasks, packedA)
			} else if step+1 < j.steps {
				j.packTask(step+1, i)
			}
		}
	}
	if s != nil {
		scratches.Put(s)
	}
}

// step returns what a step covers.
func (j *job) step(s int) (panels, k span) {
	return cut(j.panels(), j.stepCount, s/j.kSteps), cut(j.k, j.kSteps, s%j.kSteps)
}

// within is cut for a part of a range.
func (s span) cut(parts, i int) span {
	c := cut(s.len(), parts, i)
	return span{s.from + c.from, s.from + c.to}
}

// offset is where a panel lies in a step's packed B.
func (j *job) offset(first, panel, k int) int {
	if panel == first {
		return 0
	}
	return (j.panel(panel).from - j.panel(first).from) * j.lanes * k
}

func (j *job) packTask(s, i int) {
	// The other buffer's step may still be in use, but not this one's last.
	await(&j.packsDone, s*j.packTasks)
	await(&j.multiplies, (s-1)*j.blocks*j.rowBlocks)
	panels, k := j.step(s)
	mine := panels.cut(j.packTasks, i)
	j.pack(mine, k, j.packed[s%2][j.offset(panels.from, mine.from, k.len()):])
	j.packsDone.Add(1)
}

func (j *job) multiplyTask(s, i int, packedA []float32) {
	await(&j.packsDone, (s+1)*j.packTasks)
	await(&j.multiplies, s*j.blocks*j.rowBlocks)
	panels, k := j.step(s)
	// Tasks of the same panels follow each other: processors that share a cache share what they read of B.
	b := block{panels: panels.cut(j.blocks, i/j.rowBlocks), k: k}
	strips := (j.m + j.rows - 1) / j.rows
	rows := cut(strips, j.rowBlocks, i%j.rowBlocks)
	b.rows = span{rows.from * j.rows, min(rows.to*j.rows, j.m)}
	var packed []float32
	if !j.direct {
		packed = j.packed[s%2][j.offset(panels.from, b.panels.from, k.len()):]
	}
	j.multiply(b, packed, packedA)
	j.multiplies.Add(1)
}

// await returns when a count is reached. What it counts is being done by others at this moment, in less than the time that
// it takes to put a processor to sleep and wake it.
func await(count *atomic.Int64, n int) {
	for i := 0; count.Load() < int64(n); i++ {
		if i > 100 {
			runtime.Gosched()
		}
	}
}
