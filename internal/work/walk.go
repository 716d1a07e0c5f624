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
// Each goroutine has a number, its place. The tasks of a phase are cut into shares, as many as goroutines take part. A goroutine takes the tasks of its own share first, and then those
// that others have not begun. So it knows what it will read, and a run ends with any number of processors, also if no helper ever starts. A goroutine that has taken a task of a phase spins until the phases before it are done, so between two phases there is neither a channel
// nor a scheduler.
//
// W is what a goroutine keeps from task to task.
type Walk[W any] struct {
	task   func(w *W, phase, i int)
	ahead  func(w *W, phase, place, part int) (more bool)
	first  []int64 // by phase, the number of tasks in the phases before it; then the number of all tasks
	shares int     // that the tasks of a phase are cut into

	// taken has the number of the run in which somebody took a task last, for each task. A phase begins with a cache line of its own, at lines[phase].
	taken []atomic.Uint32
	lines []int
	run   uint32

	_      [cacheLine]byte
	places atomic.Int64 // that are taken
	_      [cacheLine - 8]byte
	done   atomic.Int64 // number of tasks that are done
	_      [cacheLine - 8]byte
	ready  atomic.Int64 // number of phases that are done. Goroutines that wait read this alone, so that they do not slow down those that count.
	_      [cacheLine - 8]byte
	offer
	most   int                 // places
	failed atomic.Pointer[any] // what a task, or ahead, panicked with first, nil for one that ended its goroutine: nobody takes or waits for a task any more

	workspaces sync.Pool
}

// NewWalk returns a walk. task does task i of a phase. ahead, unless it is nil, is called while a task waits for the phases before it, with
// part 0, 1, …, as long as it returns true: it may prefetch what the tasks of the place's share read, a small part at a time. A task must not depend on what
// it finds in its workspace w, which workspace makes.
func NewWalk[W any](workspace func() *W, task func(w *W, phase, i int), ahead func(w *W, phase, place, part int) (more bool)) *Walk[W] {
	w := &Walk[W]{task: task, ahead: ahead}
	w.workspaces.New = func() any { return workspace() }
	w.join = w.help
	return w
}

// Run does all tasks and returns, with at most so many processors. tasks has the number of tasks of each phase, at least 1. One goroutine may call Run at a time. If a task panics, Run panics with the
// same when nobody is in a task any more. A task that ends its goroutine, with runtime.Goexit or t.FailNow, ends that of the caller then. The walk can run again.
func (w *Walk[W]) Run(tasks []int, processors int) {
	const perLine = cacheLine / 4
	widest, line := 0, 0
	w.first, w.lines = append(w.first[:0], 0), w.lines[:0]
	for i, n := range tasks {
		w.first, w.lines = append(w.first, w.first[i]+int64(n)), append(w.lines, line)
		widest, line = max(widest, n), line+(n+perLine-1)/perLine*perLine
	}
	if w.run++; len(w.taken) < line || w.run == 0 {
		w.taken, w.run = make([]atomic.Uint32, line), 1
	}
	w.shares = processors
	w.places.Store(1) // place 0 is the caller's
	w.done.Store(0)
	w.ready.Store(0)
	w.failed.Store(nil)
	if w.most = min(widest, processors); w.most > 1 {
		w.publish(w.most-1, runtime.GOMAXPROCS(0))
	}
	w.together(len(tasks))
	switch failed := w.failed.Load(); {
	case failed == nil:
	case *failed == nil:
		runtime.Goexit()
	default:
		panic(*failed)
	}
}

// together goes through the phases with the helpers. It ends when nobody is in a task any more, also if a task ends this goroutine.
func (w *Walk[W]) together(phases int) {
	w.inside.Add(1)
	defer func() {
		w.inside.Add(-1)
		w.close() // a helper that comes later does not take part
		w.await(&w.inside, func(inside int64) bool { return inside == 0 })
	}()
	w.walk(0)
	w.await(&w.ready, func(ready int64) bool { return ready == int64(phases) || w.failed.Load() != nil })
}

// walk takes tasks until all are taken, or one fails.
func (w *Walk[W]) walk(place int) {
	returned := false
	defer func() {
		if failed := recover(); failed != nil || !returned {
			w.fail(failed)
		}
	}()
	w.takeTasks(place)
	returned = true
}

func (w *Walk[W]) takeTasks(place int) {
	space := w.workspaces.Get().(*W)
	defer w.workspaces.Put(space)
	for phase := int(w.ready.Load()); phase < len(w.lines); phase++ {
		n := int(w.first[phase+1] - w.first[phase])
		taken := w.taken[w.lines[phase]:][:n]
		from, to := Share(n, place, w.shares)
		own := int64(0)
		for i := from; i < to; i++ {
			if w.takes(&taken[i]) {
				if !w.reach(space, phase, place) {
					return
				}
				w.task(space, phase, i)
				own++
			}
		}
		w.count(phase, own)                                                     // together, since all goroutines write the counter
		for i := from + n - 1; i >= to && w.ready.Load() <= int64(phase); i-- { // from the end of another share, which its goroutine gets to last
			if w.takes(&taken[i%n]) {
				if !w.reach(space, phase, place) {
					return
				}
				w.task(space, phase, i%n)
				w.count(phase, 1)
			}
		}
	}
	w.full()
}

// help walks if there is a place.
func (w *Walk[W]) help() {
	place := int(w.places.Add(1)) - 1
	if place >= w.most-1 {
		w.full()
	}
	if place < w.most {
		w.walk(place)
	}
}

// count counts tasks that are done.
func (w *Walk[W]) count(phase int, tasks int64) {
	if tasks > 0 && w.done.Add(tasks) == w.first[phase+1] {
		w.ready.Store(int64(phase) + 1)
	}
}

// Share returns the tasks [from, to) of n tasks of a phase that are the place's own.
func Share(n, place, shares int) (from, to int) {
	return min(place, shares) * n / shares, min(place+1, shares) * n / shares
}

// takes reports whether the goroutine is the first that takes a task in this run.
func (w *Walk[W]) takes(task *atomic.Uint32) bool {
	return task.Load() != w.run && task.Swap(w.run) != w.run
}

// reach returns true when the phases before this one are done, and false when the run has failed.
func (w *Walk[W]) reach(space *W, phase, place int) bool {
	for part := 0; w.ahead != nil && w.ready.Load() < int64(phase) && w.failed.Load() == nil && w.ahead(space, phase, place, part); part++ {
	}
	if w.ready.Load() < int64(phase) {
		w.await(&w.ready, func(ready int64) bool { return ready >= int64(phase) || w.failed.Load() != nil })
	}
	return w.failed.Load() == nil
}

func (w *Walk[W]) fail(with any) { w.failed.CompareAndSwap(nil, &with); w.full() } // a function of its own, so that join allocates nothing

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
