package work

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Parallel calls task(0) … task(n-1), spread over the processors, and returns when all are done. With one task or one processor it calls
// them in order in the calling goroutine.
//
// The tasks run in any order, on any processor. So a task must write only memory that no other task reads or writes. Each processor begins with a part of the
// tasks that it has by its number, and then helps others. So task i of one job and task i of the next, with as many tasks, run on the same processor if they
// can, and find there in its own cache what they have in common. A goroutine would not do in place of the processor: it changes it when it waits.
//
// The first part is taken from its first task on, the others from their last. Of two processors, the last tasks are so those in the middle.
//
// A task may call Parallel. The call then takes only processors that no helper is busy on.
//
// A task that ends its goroutine, with runtime.Goexit or t.FailNow, ends the goroutine that has called Parallel.
func Parallel(n int, task func(i int)) {
	procs := runtime.GOMAXPROCS(0)
	wanted := min(n, free(procs)) - 1
	if wanted < 1 {
		for i := range n {
			task(i)
		}
		return
	}
	j, ok := jobs.Get().(*job)
	if !ok {
		j = newJob()
	}
	j.task, j.shares = task, j.shares[:0]
	if most := min(n, procs); cap(j.shares) < most {
		j.shares = make([]share, most)
	} else {
		j.shares = j.shares[:most]
	}
	for i := range j.shares {
		j.shares[i].set(i*n/len(j.shares), (i+1)*n/len(j.shares))
		j.shares[i].owned.Store(false)
	}
	j.left.Store(int64(n))
	j.sleeps.Store(false)
	j.publish(wanted, procs)
	defer j.end()
	if done := j.work(false); j.left.Add(-done) > 0 && !poll(j.done, patience) {
		j.sleeps.Store(true)
		for !j.done() {
			<-j.finished
		}
	}
	if j.left.Load() < 0 {
		runtime.Goexit()
	}
}

// Alone reports whether a job of n tasks runs in the calling goroutine alone. Who asks first can call the tasks itself, and need not make a function for Parallel, which
// takes memory: a pass over a block of a small model has dozens of small jobs, each in a task of the pass.
func Alone(n int) bool { return n <= 1 || Processors() == 1 }

// Processors returns the number of processors that a call of Parallel takes now, with the caller's: GOMAXPROCS without those that helpers are busy on. In a task
// of a helper that counts the helper itself as busy, so it is one less than are free when the caller of the job has no more tasks.
func Processors() int { return free(runtime.GOMAXPROCS(0)) }

func free(procs int) int { return max(1, procs-int(busy.Load())) }

// job is a call of Parallel. The call waits for its tasks, not for the goroutines that help it.
type job struct {
	offer
	task     func(i int)
	shares   []share
	left     atomic.Int64 // number of tasks that are not done; below 0 after a task has ended the goroutine of a helper
	sleeps   atomic.Bool  // the caller waits for finished
	finished chan struct{}
	done     func() bool
}

var (
	// jobs holds jobs without users, so that a call allocates nothing.
	jobs sync.Pool
	// busy is the number of helpers in a task.
	busy atomic.Int64
)

func newJob() *job {
	j := &job{finished: make(chan struct{}, 1)}
	j.join = func() {
		if done := j.work(true); done > 0 && j.left.Add(-done) == 0 {
			j.wake()
		}
	}
	j.lost = func() {
		busy.Add(-1)
		j.left.Add(-1 << 40) // more than all tasks, and so little that it does not overflow if each helper does so
		j.wake()
	}
	j.done = func() bool { return j.left.Load() <= 0 }
	return j
}

// wake wakes the caller if it sleeps.
func (j *job) wake() {
	if j.sleeps.Load() {
		select {
		case j.finished <- struct{}{}:
		default: // it has one already, which the caller did not wait for
		}
	}
}

// end ends the call, also if a task has panicked here. Nobody takes a task after that.
func (j *job) end() {
	for i := range j.shares {
		j.shares[i].set(0, 0)
	}
	j.close()
	for range 1 << 10 {
		if j.inside.Load() == 0 {
			j.task = nil
			jobs.Put(j)
			return
		}
		pause()
	} // a helper that looks at the job has no processor now: the job is left to it
}

// work runs tasks until all are taken, and returns the number of tasks that it ran.
func (j *job) work(helps bool) (done int64) {
	own := j.own()
	for p := range j.shares {
		for s := &j.shares[(own+p)%len(j.shares)]; ; done++ {
			i, ok := s.take(own == 0)
			if !ok {
				break
			}
			if done == 0 && helps {
				busy.Add(1)
			}
			j.task(i)
		}
	}
	j.full()
	if helps && done > 0 {
		busy.Add(-1) // before the job can end, so that the next one finds the processor free
	}
	return done
}

// own returns the number of the processor's own share, or of the next that no other goroutine has.
func (j *job) own() int {
	wanted := processor() % len(j.shares)
	for p := range j.shares {
		if n := (wanted + p) % len(j.shares); !j.shares[n].owned.Load() && !j.shares[n].owned.Swap(true) {
			return n
		}
	}
	return wanted
}

// share is the tasks [from, to) that nobody has taken, from in the upper half of the word.
type share struct {
	atomic.Uint64
	owned atomic.Bool // a goroutine begins with it
	_     [cacheLine - 12]byte
}

func (s *share) set(from, to int) { s.Store(uint64(from)<<32 | uint64(to)) }

// take takes the first or the last task.
func (s *share) take(first bool) (i int, ok bool) {
	for {
		old := s.Load()
		from, to := old>>32, old&(1<<32-1)
		if from >= to {
			return 0, false
		}
		i, rest := to-1, old-1
		if first {
			i, rest = from, old+1<<32
		}
		if s.CompareAndSwap(old, rest) {
			return int(i), true
		}
	}
}

// ParallelWith is Parallel for tasks that need a workspace. Each goroutine makes one workspace and passes it to all its tasks. A task must
// not depend on the contents that it finds there.
func ParallelWith[W any](n int, workspace func() W, task func(w W, i int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		if n > 0 {
			w := workspace()
			for i := range n {
				task(w, i)
			}
		}
		return
	}
	var next atomic.Int64
	Parallel(workers, func(int) {
		i := int(next.Add(1)) - 1
		if i >= n {
			return
		}
		for w := workspace(); i < n; i = int(next.Add(1)) - 1 {
			task(w, i)
		}
	})
}

// ParallelRanges is ParallelRange for several ranges, [0, lengths[k]) for each k, in one job.
func ParallelRanges(lengths []int, size int, task func(k, from, to int)) {
	pieces := 0
	for _, n := range lengths {
		pieces += (n + size - 1) / size
	}
	Parallel(pieces, func(i int) {
		k := 0
		for ; i >= (lengths[k]+size-1)/size; k++ {
			i -= (lengths[k] + size - 1) / size
		}
		task(k, i*size, min((i+1)*size, lengths[k]))
	})
}

// ParallelRange cuts [0, n) into pieces of at most size and calls task for each, spread over the processors.
func ParallelRange(n, size int, task func(from, to int)) {
	if n <= size {
		if n > 0 {
			task(0, n)
		}
		return
	}
	Parallel((n+size-1)/size, func(i int) { task(i*size, min((i+1)*size, n)) })
}
