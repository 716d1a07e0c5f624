package work

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"
)

// After a goroutine has helped with a job, it looks for the next one in a loop for a short time. In a model's step one job follows the
// other. A new goroutine would have to wake a sleeping processor, which takes 100 µs or more, as long as a small job.
//
// All helpers read one word, so to offer a job to fifteen of them takes one write. A channel would hand the job to one after another.
var (
	_       [cacheLine]byte
	offered atomic.Uint64 // bit i is set while helpers may join offers[i]
	_       [cacheLine - 8]byte
	offers  [64]atomic.Pointer[offer]
	helpers atomic.Int64 // number of helpers
	idle    atomic.Int64 // number of those that look for a job
	limit   atomic.Int64 // number of helpers that are wanted at most: GOMAXPROCS-1 of the last offer
)

// patience is how long a goroutine polls before it stops using its processor. It is longer than the parts of a small model's training step that one
// goroutine does alone: with 100 µs, every fifth job of such a step was done before a new helper had begun.
const patience = 400 * time.Microsecond

// offer is what helpers may join. A helper counts itself in inside, and joins only if the offer is open then. So when an offer has been closed and nobody is
// inside, its owner can use it again.
type offer struct {
	join      func() // helps until nothing is left to take; made once, since a function value allocates
	lost      func() // if it is not nil, it is called when a task has ended the goroutine of a helper
	slot      int    // in offers
	open      atomic.Bool
	announced atomic.Bool // in offered
	inside    atomic.Int64
}

// publish lets wanted helpers join, and starts those that are missing. procs is GOMAXPROCS. Where as many offers are open as there is room for, none joins.
func (o *offer) publish(wanted, procs int) {
	o.slot = 0
	for !offers[o.slot].CompareAndSwap(nil, o) {
		if o.slot++; o.slot == len(offers) {
			return
		}
	}
	o.open.Store(true)
	offered.Or(1 << o.slot)
	o.announced.Store(true) // after the bit: a helper that still has this offer from before would otherwise take back a bit that is not there yet
	if most := int64(procs) - 1; limit.Load() != most {
		limit.Store(most)
	}
	for missing := int64(wanted) - idle.Load(); missing > 0; missing-- {
		if helpers.Add(1) > limit.Load() {
			helpers.Add(-1)
			break
		}
		go helper()
	}
}

// full tells helpers that nothing is left to take.
func (o *offer) full() {
	if o.announced.Swap(false) {
		offered.And(^(uint64(1) << o.slot))
	}
}

// close ends the offer: no helper joins it any more.
func (o *offer) close() {
	o.full()
	if o.open.Swap(false) {
		offers[o.slot].Store(nil)
	}
}

// enter joins the offer if it is still open.
func (o *offer) enter() {
	o.inside.Add(1)
	if o.open.Load() {
		o.join()
	}
	o.inside.Add(-1)
}

// find returns an offer that a helper can join, or nil. Different processors begin to look at different offers.
func find() *offer {
	if set := offered.Load(); set != 0 {
		number := processor() % len(offers)
		return offers[(bits.TrailingZeros64(bits.RotateLeft64(set, -number))+number)%len(offers)].Load()
	}
	return nil
}

func helper() {
	var in *offer
	defer func() {
		if in != nil { // a task has ended the goroutine
			if in.lost != nil {
				in.lost()
			}
			in.inside.Add(-1)
			helpers.Add(-1)
		}
	}()
	for !surplus() {
		var o *offer
		idle.Add(1)
		found := poll(func() bool { o = find(); return o != nil }, patience)
		idle.Add(-1)
		if !found {
			// An offer that came just now has counted on this helper.
			helpers.Add(-1)
			if o = find(); o == nil {
				return
			}
			helpers.Add(1)
		}
		in = o
		o.enter()
		in = nil
	}
}

// surplus reports whether there are more helpers than wanted, and then counts one less.
func surplus() bool {
	for n := helpers.Load(); n > limit.Load(); n = helpers.Load() {
		if helpers.CompareAndSwap(n, n-1) {
			return true
		}
	}
	return false
}

// poll returns whether something happened within some time. It lets other goroutines run now and then, but not often: each time takes a lock that all
// processors share.
func poll(happened func() bool, most time.Duration) bool {
	const spins = 256
	for begin := time.Now(); ; runtime.Gosched() {
		for range spins {
			if happened() {
				return true
			}
			pause()
		}
		if time.Since(begin) > most {
			return false
		}
	}
}
