package work

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Walk is a job in phases that several goroutines go through together, for work whose phases are as short as waking a goroutine takes.
// Every task of a phase is done before a task of the next phase begins.
//
// Tasks are taken in order. A goroutine that has taken a task of a phase spins until the phases before it are done, so between two phases there
// is neither a channel nor a scheduler. No goroutine is waited for that has not begun a task. So a run ends with any number of processors, also if
// no helper ever starts.
//
// W is what a goroutine keeps from task to task.
type Walk[W any] struct {
	task  func(w *W, phase, i int)
	ahead func(w *W, phase, i, part int) (more bool)
	first []int64 // by phase, the number of tasks in the phases before it; then the number of all tasks

	_      [cacheLine]byte
	next   atomic.Int64 // the first task that nobody has taken
	_      [cacheLine - 8]byte
	done   atomic.Int64 // number of tasks that are done
	_      [cacheLine - 8]byte
	inside atomic.Int64        // goroutines that may take a task
	open   atomic.Bool         // a run takes helpers
	failed atomic.Pointer[any] // what a task, or ahead, panicked with first: nobody takes or waits for a task any more

	workspaces sync.Pool
	help       func() // made once, since a function value allocates
}

// NewWalk returns a walk. task does task i of a phase. ahead, unless it is nil, is called while a task waits for the phases before it, with
// part 0, 1, …, as long as it returns true: it may prefetch what the task reads, a small part at a time. A task must not depend on what it finds in its workspace w, which workspace makes.
func NewWalk[W any](workspace func() *W, task func(w *W, phase, i int), ahead func(w *W, phase, i, part int) (more bool)) *Walk[W] {
	w := &Walk[W]{task: task, ahead: ahead}
	w.workspaces.New = func() any { return workspace() }
	w.help = func() {
		w.join()
		helping.Add(-1)
	}
	return w
}

// Run does all tasks and returns. tasks has the number of tasks of each phase. One goroutine may call Run at a time. If a task panics, Run panics with the
// same when nobody is in a task any more. The walk can run again.
func (w *Walk[W]) Run(tasks []int) {
	widest := 0
	w.first = append(w.first[:0], 0)
	for i, n := range tasks {
		w.first = append(w.first, w.first[i]+int64(n))
		widest = max(widest, n)
	}
	w.next.Store(0)
	w.done.Store(0)
	w.failed.Store(nil)
	w.open.Store(true)
	processors := runtime.GOMAXPROCS(0)
	for range min(widest, processors) - 1 {
		if helping.Load() >= int64(2*processors) {
			break
		}
		helping.Add(1)
		help(w.help)
	}
	w.join()
	w.await(&w.done, func(done int64) bool { return done == w.first[len(tasks)] || w.failed.Load() != nil })
	w.open.Store(false) // a helper that comes later leaves at once, or takes part in the next run
	w.await(&w.inside, func(inside int64) bool { return inside == 0 })
	if failed := w.failed.Load(); failed != nil {
		panic(*failed)
	}
}

// join takes tasks until all are taken, or one panics.
func (w *Walk[W]) join() {
	w.inside.Add(1)
	defer func() {
		if failed := recover(); failed != nil {
			w.fail(failed)
		}
		w.inside.Add(-1)
	}()
	if !w.open.Load() {
		return
	}
	space := w.workspaces.Get().(*W)
	defer w.workspaces.Put(space)
	phase := 0
	for last := len(w.first) - 1; ; {
		i := w.next.Add(1) - 1
		if i >= w.first[last] || w.failed.Load() != nil {
			return
		}
		for i >= w.first[phase+1] {
			phase++
		}
		if before := w.first[phase]; w.done.Load() < before {
			for part := 0; w.ahead != nil && w.done.Load() < before && w.failed.Load() == nil && w.ahead(space, phase, int(i-before), part); part++ {
			}
			if w.await(&w.done, func(done int64) bool { return done >= before || w.failed.Load() != nil }); w.failed.Load() != nil {
				return
			}
		}
		w.task(space, phase, int(i-w.first[phase]))
		w.done.Add(1)
	}
}

func (w *Walk[W]) fail(with any) { w.failed.CompareAndSwap(nil, &with) } // a function of its own, so that join allocates nothing

// spins is the number of times that a goroutine looks at a counter before it lets other goroutines run: 10 to 40 µs.
const spins = 1 << 10

// await returns when the counter has a value that is enough. It spins for a short time, then lets other goroutines run, and after patience/4 other
// processes too, for a machine that has fewer processors than goroutines that spin.
func (w *Walk[W]) await(counter *atomic.Int64, enough func(int64) bool) {
	for range spins {
		if enough(counter.Load()) {
			return
		}
		pause()
	}
	for begin := time.Now(); !enough(counter.Load()); {
		if runtime.Gosched(); time.Since(begin) > patience/4 {
			time.Sleep(patience / 16)
		}
	}
}
