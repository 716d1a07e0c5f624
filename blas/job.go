package blas

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
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
		j.tasks = parts(p.n, j.columns)
		return j
	}
	j.direct = !p.bTrans && (p.m <= fewRows || p.k*p.n <= directSize || p.n <= p.vectors*p.lanes)
	j.kSteps = parts(p.k, stepDepth)
	stepK := parts(p.k, j.kSteps)
	panel := p.vectors * p.lanes
	j.stepCount = parts(p.panels(), max(1, stepSize/(panel*stepK)))
	stepPanels := parts(p.panels(), j.stepCount)
	j.steps = j.kSteps * j.stepCount
	j.packTasks = 0
	if !j.direct {
		room := stepPanels * panel * stepK
		j.packTasks = min(stepPanels, max(1, room/streamSize))
		for i := range min(2, j.steps) {
			if len(j.packed[i]) < room {
				j.packed[i] = make([]float32, room)
			}
		}
	}
	// Tasks of as many rows as make good use of the part of B that the second cache holds; if they are few, narrower ones.
	strips := parts(p.m, p.rows)
	leastStrips := 4
	if stepPanels*panel*stepK > cached && stepK > depth {
		leastStrips = 16
	}
	wanted := max(1, p.m*stepPanels*panel*stepK/taskSize)
	most := max(1, strips/leastStrips)
	j.blocks = max(parts(stepPanels*panel, blockColumns), min(parts(min(wanted, 8), most), parts(stepPanels, 2)))
	j.rowBlocks = min(most, parts(wanted, j.blocks))
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
	strips := parts(j.m, j.rows)
	rows := cut(strips, j.rowBlocks, i%j.rowBlocks)
	b.rows = span{rows.from * j.rows, min(rows.to*j.rows, j.m)}
	var packed []float32
	if !j.direct {
		packed = j.packed[s%2][j.offset(panels.from, b.panels.from, k.len()):]
	}
	j.multiply(b, packed, packedA)
	j.multiplies.Add(1)
}

// await returns when a count is reached. What it counts is being done by others at this moment, mostly in less than the time
// that it takes to put a processor to sleep and wake it. If not, another program has their processor, and may want this one.
func await(count *atomic.Int64, n int) {
	for i := 0; count.Load() < int64(n); i++ {
		switch {
		case i > 1000:
			time.Sleep(50 * time.Microsecond)
		case i > 100:
			runtime.Gosched()
		}
	}
}
