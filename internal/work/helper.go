package work

import (
	"runtime"
	"sync/atomic"
	"time"
)

// After a goroutine has helped with a job, it waits in a loop for the next job for a short time. In a model's step one job follows the
// other. A new goroutine would have to wake a sleeping processor, which takes 100 µs or more, as long as a small job.
var (
	// offers holds functions to call. For each there is a helper that will take it.
	offers = make(chan func(), 256)
	// idle is the number of waiting helpers, minus those for which an offer has been announced.
	idle atomic.Int64
)

// patience is how long a goroutine polls before it stops using its processor. It is longer than the parts of a small model's training step that one
// goroutine does alone: with 100 µs, every fifth job of such a step was done before a new helper had begun.
const patience = 400 * time.Microsecond

// help has another goroutine call f. Unlike a go statement with a function value, it allocates nothing.
func help(f func()) {
	if !takeIdle() {
		go helper()
	}
	offers <- f
}

// takeIdle decrements idle and returns true, unless idle is zero.
func takeIdle() bool {
	for n := idle.Load(); n > 0; n = idle.Load() {
		if idle.CompareAndSwap(n, n-1) {
			return true
		}
	}
	return false
}

func helper() {
	for {
		f, ok := poll(offers)
		if !ok {
			if takeIdle() {
				return
			}
			// An offer has been announced and will come now. Another helper may take it, which is then counted in idle instead of
			// this one. So poll again: a goroutine that waited for the offer would wait until the next job.
			continue
		}
		f()
		if idle.Add(1) >= int64(runtime.GOMAXPROCS(0)) && takeIdle() {
			return
		}
	}
}

// poll receives from c. It returns false if nothing arrives within patience.
func poll[T any](c <-chan T) (v T, ok bool) {
	begin := time.Now()
	for i := 1; ; i++ {
		select {
		case v = <-c:
			return v, true
		default:
		}
		pause()
		if i%64 == 0 {
			if time.Since(begin) > patience {
				return v, false
			}
			runtime.Gosched()
		}
	}
}
