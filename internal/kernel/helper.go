package kernel

import (
	"runtime"
	"sync/atomic"
	"time"
)

// A goroutine that has helped a job stays a little and looks for the next one. To start another means to wake a sleeping
// processor, which takes 100 µs and more, as long as a small job; and in a model's step one job follows the other.
var (
	// offers are functions to call, each with a helper that is to take it.
	offers = make(chan func(), 256)
	// idle is the number of helpers that look for an offer, less those that there is one for.
	idle atomic.Int64
)

// patience is how long somebody looks for what is about to come before he lets his processor go.
const patience = 100 * time.Microsecond

// help has another goroutine call f. Unlike a go statement with a function's value, it allocates nothing.
func help(f func()) {
	if !takeIdle() {
		go helper()
	}
	offers <- f
}

// takeIdle takes one from idle unless it is zero.
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
			f = <-offers // it is for one of those who look
		}
		f()
		if idle.Add(1) >= int64(runtime.GOMAXPROCS(0)) && takeIdle() {
			return
		}
	}
}

// poll receives, if something is sent soon.
func poll[T any](c <-chan T) (v T, ok bool) {
	begin := time.Now()
	for i := 1; ; i++ {
		select {
		case v = <-c:
			return v, true
		default:
		}
		if i%64 == 0 {
			if time.Since(begin) > patience {
				return v, false
			}
			runtime.Gosched()
		}
	}
}
