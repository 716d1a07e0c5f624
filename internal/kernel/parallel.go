package kernel

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Parallel calls task(0) … task(n-1), spread over the processors, and returns when all are done.
//
// Which processor runs a task, and when, is left to chance: a task writes only what no other task reads or writes.
func Parallel(n int, task func(i int)) {
	ParallelWith(n, func() struct{} { return struct{}{} }, func(_ struct{}, i int) { task(i) })
}

// ParallelWith is Parallel for tasks that need a workspace: each processor makes one and hands it from task to task. What a
// task finds in it is left to chance too.
func ParallelWith[W any](n int, workspace func() W, task func(w W, i int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	var next atomic.Int64
	work := func() {
		w := workspace()
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			task(w, i)
		}
	}
	var wait sync.WaitGroup
	for range workers - 1 {
		wait.Go(work)
	}
	work()
	wait.Wait()
}

// ParallelRange cuts [0, n) into pieces of at most size and calls task for each, spread over the processors.
func ParallelRange(n, size int, task func(from, to int)) {
	Parallel((n+size-1)/size, func(i int) { task(i*size, min((i+1)*size, n)) })
}
