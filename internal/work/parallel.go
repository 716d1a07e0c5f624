package work

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Parallel calls task(0) … task(n-1), spread over the processors, and returns when all are done. With one task or one processor it calls
// them in order in the calling goroutine.
//
// The tasks run in any order, on any processor. So a task must write only memory that no other task reads or writes. The caller takes the first tasks,
// the helpers the last: where task i of one job reads what task i of the job before has written, on two processors most of it is in the processor's own
// cache.
//
// A task may call Parallel. The call then takes only processors that no helper is busy on.
func Parallel(n int, task func(i int)) {
	helpers := min(n, Processors()) - 1
	if helpers < 1 {
		for i := range n {
			task(i)
		}
		return
	}
	j, ok := jobs.Get().(*job)
	if !ok {
		j = newJob()
	}
	j.task, j.n = task, int64(n)
	j.taken.Store(0)
	j.first.Store(0)
	j.last.Store(int64(n))
	j.left.Store(int64(n) + 1) // the 1 is for the caller
	j.users.Store(int64(helpers) + 1)
	for most := int64(2 * runtime.GOMAXPROCS(0)); helpers > 0; helpers-- {
		if helping.Load() >= most {
			j.users.Add(-1)
			continue
		}
		helping.Add(1)
		help(j.help)
	}
	done := j.work(true) + 1
	if j.left.Add(-done) > 0 {
		if _, ok := poll(j.finished); !ok {
			<-j.finished
		}
	}
	j.leave()
}

// Processors returns the number of processors that a call of Parallel takes now, with the caller's: GOMAXPROCS without those that helpers are busy on. In a task
// of a helper that counts the helper itself as busy, so it is one less than are free when the caller of the job has no more tasks.
func Processors() int { return max(1, runtime.GOMAXPROCS(0)-int(busy.Load())) }

// job is a call of Parallel. The call waits for its tasks, not for the goroutines that help it. A helper that starts after all tasks are
// taken finds nothing to do, and nobody waits for it.
type job struct {
	task     func(i int)
	n        int64
	taken    atomic.Int64 // number of tasks that somebody has taken or is about to take
	first    atomic.Int64 // the first task that nobody has taken
	last     atomic.Int64 // the task after the last that nobody has taken
	left     atomic.Int64 // number of tasks that are not done, plus 1 until the caller has no more tasks to run
	users    atomic.Int64 // number of goroutines that use the job: the caller and its helpers; the last one returns it to jobs
	finished chan struct{}
	help     func() // made once, since a function value allocates
}

var (
	// jobs holds jobs without users, so that a call allocates nothing.
	jobs sync.Pool
	// helping is the number of goroutines that help a job or will do so. It limits their number: small jobs in sequence would start more
	// and more helpers, since a small job is done before its first helper starts.
	helping atomic.Int64
	// busy is the number of helpers in a task.
	busy atomic.Int64
)

func newJob() *job {
	j := &job{finished: make(chan struct{}, 1)}
	j.help = func() {
		if done := j.work(false); done > 0 && j.left.Add(-done) == 0 {
			j.finished <- struct{}{}
		}
		j.leave()
		helping.Add(-1)
	}
	return j
}

// work runs tasks until all are taken, the first or the last of those that are left, and returns the number of tasks that it ran.
func (j *job) work(first bool) (done int64) {
	for ; j.taken.Add(1) <= j.n; done++ {
		if first {
			j.task(int(j.first.Add(1) - 1))
			continue
		}
		if done == 0 {
			busy.Add(1)
		}
		j.task(int(j.last.Add(-1)))
	}
	if !first && done > 0 {
		busy.Add(-1) // before the job can end, so that the next one finds the processor free
	}
	return done
}

func (j *job) leave() {
	if j.users.Add(-1) == 0 {
		j.task = nil
		jobs.Put(j)
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
