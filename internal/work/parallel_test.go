package work

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/benchtest"
)

// Every task runs exactly once before Parallel returns, also if many goroutines call Parallel at the same time, or tasks call it.
func TestParallel(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, processors := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(processors)
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(func() {
				for n := range 40 {
					ran := make([]int, n)
					var inner atomic.Int64
					Parallel(n, func(i int) {
						ran[i]++
						Parallel(i%4, func(int) { inner.Add(1) })
						runtime.Gosched()
					})
					want := 0
					for i, r := range ran {
						if r != 1 {
							t.Errorf("task %d of %d ran %d times", i, n, r)
						}
						want += i % 4
					}
					if inner.Load() != int64(want) {
						t.Errorf("%d inner tasks, want %d", inner.Load(), want)
					}
				}
			})
		}
		wait.Wait()
	}
}

// A call of a task takes no processor that a helper is busy on.
func TestParallelInTasks(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var entered, asked sync.WaitGroup
	entered.Add(2)
	asked.Add(2)
	var left [2]int
	Parallel(2, func(i int) {
		entered.Done()
		entered.Wait()
		left[i] = Processors()
		asked.Done()
		asked.Wait()
	})
	if left != [2]int{1, 1} || Processors() != 2 {
		t.Errorf("%d processors in the tasks, %d after them; want 1 and 2", left, Processors())
	}
}

// A share gives each of its tasks once, from both ends.
func TestShare(t *testing.T) {
	var s share
	s.set(3, 8)
	var got []int
	for i, ok := s.take(true); ok; i, ok = s.take(len(got)%2 == 0) {
		got = append(got, i)
	}
	if want := []int{3, 7, 4, 6, 5}; !slices.Equal(got, want) {
		t.Errorf("tasks %v, want %v", got, want)
	}
}

// A task that panics ends the call. Helpers take none of its tasks after that, and all of the next call's.
func TestParallelPanic(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for helpers.Load() > 0 { // one of the tests before could take the task that panics
		runtime.Gosched()
	}
	for range len(offers) + 6 { // more calls than there is room for at the same time
		var began, ended sync.WaitGroup
		began.Add(1)
		ended.Add(1)
		var waits atomic.Bool
		var later atomic.Int64
		caller := goroutine()
		func() {
			defer func() {
				if got := recover(); got != "bad" {
					t.Errorf("recovered %v, want bad", got)
				}
			}()
			Parallel(4, func(int) {
				switch {
				case goroutine() == caller:
					began.Done()
					panic("bad")
				case !waits.Swap(true): // the helper's first task
					began.Wait()
					ended.Wait()
				default:
					later.Add(1)
				}
			})
		}()
		ended.Done()
		if n, open := later.Load(), offered.Load(); n != 0 || open != 0 {
			t.Fatalf("%d tasks ran after the panic; open offers %b", n, open)
		}
	}
}

// goroutine returns the header of the goroutine's stack trace, which has its number.
func goroutine() string {
	var text [64]byte
	header, _, _ := strings.Cut(string(text[:runtime.Stack(text[:], false)]), "[")
	return header
}

// Each goroutine of a job begins with a share of its own, that of its processor if nobody has it.
func TestOwnShares(t *testing.T) {
	j := job{shares: make([]share, 5)}
	var owned [5]bool
	for range owned {
		n := j.own()
		if owned[n] {
			t.Fatalf("share %d is owned twice", n)
		}
		owned[n] = true
	}
	if n := j.own(); n < 0 || n >= len(owned) {
		t.Errorf("share %d of %d where all are owned", n, len(owned))
	}
}

// Calls inside of each other work, also where there are more of them than helpers can be offered at a time.
func TestParallelDeep(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	var ran atomic.Int64
	var nest func(depth int)
	nest = func(depth int) {
		Parallel(3, func(i int) {
			if ran.Add(1); i == 0 && depth > 1 {
				nest(depth - 1)
			}
		})
	}
	depth := len(offers) + 6
	if nest(depth); ran.Load() != int64(3*depth) {
		t.Errorf("%d tasks, want %d", ran.Load(), 3*depth)
	}
}

func TestParallelRange(t *testing.T) {
	for n := range 30 {
		for size := 1; size < 12; size++ {
			ran := make([]int, n)
			ParallelRange(n, size, func(from, to int) {
				if from%size != 0 || to-from > size || to <= from {
					t.Errorf("piece [%d, %d) of %d by %d", from, to, n, size)
				}
				for i := from; i < to; i++ {
					ran[i]++
				}
			})
			for i, r := range ran {
				if r != 1 {
					t.Errorf("element %d of %d by %d: %d times", i, n, size, r)
				}
			}
		}
	}
}

// Every element of every range is in one piece, also where a range is empty.
func TestParallelRanges(t *testing.T) {
	for size := 1; size < 6; size++ {
		lengths := []int{0, 3, 1, 0, 0, 12, 5, 0}
		var ran [8][12]atomic.Int64
		ParallelRanges(lengths, size, func(k, from, to int) {
			if from%size != 0 || to-from > size || to <= from {
				t.Errorf("piece [%d, %d) of range %d by %d", from, to, k, size)
			}
			for i := from; i < to; i++ {
				ran[k][i].Add(1)
			}
		})
		for k, n := range lengths {
			for i := range ran[k] {
				if got, want := ran[k][i].Load() == 1, i < n; got != want {
					t.Errorf("element %d of range %d by %d: %d times", i, k, size, ran[k][i].Load())
				}
			}
		}
	}
}

// No two tasks use the same workspace at the same time.
func TestParallelWith(t *testing.T) {
	for n := range 40 {
		var made, ran atomic.Int64
		ParallelWith(n, func() *int { made.Add(1); return new(int) }, func(w *int, i int) {
			*w++
			runtime.Gosched()
			ran.Add(int64(*w))
			*w--
		})
		if ran.Load() != int64(n) || made.Load() > int64(min(n, runtime.GOMAXPROCS(0))) {
			t.Errorf("%d tasks: %d ran, %d workspaces", n, ran.Load(), made.Load())
		}
	}
}

// Helpers wait for the next job, take it, and end if none comes.
func TestHelpersGo(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		for range 100 {
			Parallel(4, func(int) { runtime.Gosched() })
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n, looking, open := runtime.NumGoroutine(), idle.Load(), offered.Load()
			if n <= before && looking == 0 && open == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines more than before, %d of them idle, offers %b", n-before, looking, open)
			}
		}
	}
}

func TestParallelMakesNoGarbage(t *testing.T) {
	task := func(int) {}
	if n := testing.AllocsPerRun(1000, func() { Parallel(8, task) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkParallel measures the cost of starting tasks: tasks without work, and tasks of about 2 and 20 microseconds.
func BenchmarkParallel(b *testing.B) {
	x := make([]float32, 1<<20)
	for _, elements := range []int{1, 4096, 32768} {
		for _, n := range []int{1, 2, 8} {
			b.Run(fmt.Sprintf("elements=%d/tasks=%d", elements, n), func(b *testing.B) {
				b.ReportAllocs()
				benchtest.Processors(b)
				for b.Loop() {
					Parallel(n, func(i int) {
						for j := range x[i*131072:][:elements] {
							x[i*131072+j] *= 2
						}
					})
				}
			})
		}
	}
}

// A task that ends its goroutine ends that of the caller, with its deferred functions, on whatever processor it runs. The next calls have all processors again.
func TestGoexitInTask(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	walk := NewWalk(func() *int { return new(int) }, func(_ *int, phase, i int) {
		if runtime.Gosched(); phase == 1 && i == 2 {
			runtime.Goexit()
		}
	}, nil)
	for name, f := range map[string]func(helped bool){
		"parallel": func(helped bool) {
			var caller, done = goroutine(), atomic.Bool{}
			Parallel(4, func(i int) {
				if (goroutine() != caller) == helped {
					done.Store(true)
					runtime.Goexit()
				}
				for begin := time.Now(); !done.Load() && time.Since(begin) < time.Second; { // the other goroutine is to take a task
					runtime.Gosched()
				}
			})
		},
		"in a task": func(bool) {
			Parallel(3, func(i int) { Parallel(3, func(k int) { runtime.Goexit() }) })
		},
		"walk": func(bool) { walk.Run([]int{4, 4, 4}, 4) },
	} {
		for i := range 100 {
			deferred, returned, ended := false, false, make(chan bool)
			go func() {
				defer close(ended)
				defer func() { deferred = true }()
				f(i%2 == 0)
				returned = true
			}()
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatalf("%s: the caller hangs", name)
			}
			if !deferred || returned {
				t.Fatalf("%s: the caller's deferred function ran: %v, the call returned: %v", name, deferred, returned)
			}
		}
	}
	if n := busy.Load(); n != 0 {
		t.Errorf("%d helpers are busy", n)
	}
	var ran atomic.Int64
	Parallel(100, func(int) { ran.Add(1) })
	if ran.Load() != 100 {
		t.Errorf("%d tasks ran, want 100", ran.Load())
	}
	for begin := time.Now(); helpers.Load() > 0 || offered.Load() != 0; runtime.Gosched() {
		if time.Since(begin) > time.Minute {
			t.Fatalf("%d helpers do not end; open offers %b", helpers.Load(), offered.Load())
		}
	}
}
