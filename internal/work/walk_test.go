package work

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// Every task runs exactly once, after all tasks of the phases before it, with any number of processors, also with more than the machine has, and
// while other goroutines keep the processors busy.
func TestWalk(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, processors := range []int{1, 2, 7} {
		runtime.GOMAXPROCS(processors)
		for _, others := range []int{0, processors} {
			var stop atomic.Bool
			var wait sync.WaitGroup
			for range others {
				wait.Go(func() {
					for !stop.Load() {
						Parallel(3, func(int) {})
					}
				})
			}
			tasks := []int{3, 1, 8, 2, 1}
			ran := make([][]int, len(tasks)) // how often each task ran: written by one goroutine, and read after the phase
			for i, n := range tasks {
				ran[i] = make([]int, n)
			}
			w := NewWalk(func() *int { return new(int) }, func(own *int, phase, i int) {
				*own++ // a race if another goroutine had it
				ran[phase][i]++
				if phase > 0 {
					for j, n := range ran[phase-1] {
						if n != ran[phase][i] {
							t.Errorf("task %d of phase %d ran when task %d of the phase before had not", i, phase, j)
						}
					}
				}
			}, func(own *int, phase, place, part int) bool {
				*own++
				return part < 3
			})
			const runs = 30
			for range runs {
				w.Run(tasks, processors)
			}
			for phase := range ran {
				for i, n := range ran[phase] {
					if n != runs {
						t.Errorf("%d processors: task %d of phase %d ran %d times, want %d", processors, i, phase, n, runs)
					}
				}
			}
			stop.Store(true)
			wait.Wait()
		}
	}
}

// A task that panics stops the walk: Run panics with the same, and the walk runs again.
func TestWalkPanic(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(4)
	tasks := []int{4, 4, 4}
	for bad := range 12 {
		var fails atomic.Bool
		var ran atomic.Int64
		var w *Walk[int]
		w = NewWalk(func() *int { return new(int) }, func(_ *int, phase, i int) {
			if ran.Add(1); fails.Load() && 4*phase+i == bad {
				for phase < 2 && w.inside.Load() < 2 { // somebody else is to wait for this phase
					runtime.Gosched()
				}
				panic(bad)
			}
		}, func(*int, int, int, int) bool { return true })
		for range 20 {
			fails.Store(true)
			func() {
				defer func() {
					if got := recover(); got != bad {
						t.Errorf("Run panicked with %v, want %d", got, bad)
					}
				}()
				w.Run(tasks, 4)
			}()
			fails.Store(false)
			ran.Store(0)
			if w.Run(tasks, 4); ran.Load() != 12 {
				t.Errorf("after the panic %d tasks ran, want 12", ran.Load())
			}
		}
	}
}
