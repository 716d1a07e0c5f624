package cuda

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A training step queues the same work again and again, and queuing a small kernel takes longer than the kernel runs. So a stream compares the
// work that it is given with earlier work. If the work between two copies to or from the host has come twice, the stream records it as CUDA
// graphs. From then on it holds back work that begins like a graph, and launches the graph when all of its work has come. If something else
// comes instead, or the work is needed, the stream queues what it has held back piece by piece.
//
// So the device always does what it was given, in the same order. Work is the same only if all of its arguments are the same bit for bit, the
// addresses of its arrays too. That is why a pool reuses the free block with the lowest address (memory.go).

// task is a piece of work that can be queued again.
type task struct {
	function *function
	words    []uint64 // of a kernel: its grid and its arguments
}

// function is a kernel of a module, or one of the other pieces of work below.
type function struct {
	name   string
	handle uintptr
	sizes  []int // of the arguments, in bytes
	firsts int   // the number of the first words of the arguments that can be addresses; 0 if all can
	mu     sync.Mutex
	shared uintptr // the most shared memory that a launch has asked for, if above the usual
}

// The pieces of work that are not kernels, with their words. Nothing else may be queued by a call of a library: it would overtake tasks that are
// held back. Stream.do, for copies from and to the host and events, queues those first.
var (
	fill     = &function{name: "a fill"}               // address, value, bytes
	copying  = &function{name: "a copy"}               // to, from, bytes
	product  = &function{name: "a product of cuBLAS"}  // the arguments of cublasGemmEx; alpha and beta instead of their addresses
	products = &function{name: "products of cuBLAS"}   // those of cublasGemmStridedBatchedEx, in the same way
	fourier  = &function{name: "a transform of cuFFT"} // plan, working memory, rows, sign
)

// early reports whether a task can begin before the one before it has ended.
func (f *function) early(words []uint64) bool {
	return f.sizes != nil && launchMode(words[5]) == overlapping
}

// last notes the last task.
func (s *Stream) last(f *function, words []uint64) {
	s.early, s.kernel = f.early(words), f != fill && f != copying
}

func (t task) is(f *function, words []uint64) bool {
	return t.function == f && slices.Equal(t.words, words)
}

// hash adds a task to a hash of tasks.
func hash(h uint64, f *function, words []uint64) uint64 {
	const odd = 0x9e3779b97f4a7c15
	h = (h ^ uint64(uintptr(unsafe.Pointer(f)))) * odd
	for _, w := range words {
		h = (h ^ h>>29 ^ w) * odd
	}
	return h
}

const (
	firstTasks   = 2       // tasks in the first graph of a segment; the device begins when they have come
	wholeTasks   = 16      // a segment of fewer tasks is one graph
	mostTasks    = 64      // tasks in a later graph; each graph has twice as many as the one before it
	leastTasks   = 3       // a shorter segment is not recorded
	mostRecorded = 1 << 15 // tasks in all graphs of a stream
	mostSeen     = 1 << 10 // segments that are remembered, and tasks in a segment
)

// graph is a recorded sequence of tasks.
type graph struct {
	tasks  []task
	handle uintptr
}

// replay is what a stream knows of earlier work.
type replay struct {
	graphs   map[uint64][]*graph // by the hash of their first task
	recorded int                 // tasks in all graphs
	seen     map[uint64]bool     // hashes of segments that have come: whether they are to be recorded when they come again
	segment  []task              // the tasks that were queued one by one since the segment began or since its last graph
	fit      []*graph            // graphs that begin with the tasks held back
	held     int                 // tasks held back
}

// Launches says how the work of a device was queued.
type Launches struct {
	Single   int64  // kernels, products, fills and copies on the device that were queued one by one
	Replayed int64  // those that were queued as parts of recorded graphs
	Graphs   int64  // recorded graphs
	Apart    string // why decoding steps of several blocks were not queued as one launch, although the kernels support them; empty if none were
	Ahead    int64  // those of Replayed that were queued before the program asked for them
	Behind   string // why the work that follows an upload was not queued before the program asked for it, the last time; empty if there was no reason
	Why      string // why three or more pieces that belong together were queued one by one, the last time; empty if none were
}

// launches counts what Launches returns.
type launches struct {
	single, replayed, graphs, ahead atomic.Int64
	apart, why, behind              atomic.Pointer[string]
}

// Launches returns how the work of all streams was queued since Open. Work that comes a third time is queued as CUDA graphs of up to 64 pieces,
// which takes the processor less time. The results are the same bit for bit. With $MAMBA_GRAPHS=off, which Open reads, all work is queued one by
// one.
func (d *Device) Launches() (l Launches) {
	if d == nil {
		return l
	}
	l = Launches{Single: d.launches.single.Load(), Replayed: d.launches.replayed.Load(), Graphs: d.launches.graphs.Load(), Ahead: d.launches.ahead.Load()}
	if behind := d.launches.behind.Load(); behind != nil {
		l.Behind = *behind
	}
	if why := d.launches.why.Load(); why != nil {
		l.Why = *why
	}
	if apart := d.launches.apart.Load(); apart != nil {
		l.Apart = *apart
	}
	return l
}

// queue queues a task, or holds it back as a part of a graph. It does not keep words.
func (s *Stream) queue(f *function, words []uint64) error {
	s.last(f, words)
	if s.pool.capture != nil {
		return s.issue(f, words)
	}
	if s.device.single {
		s.device.launches.single.Add(1)
		return s.issue(f, words)
	}
	if queued, err := s.came(f, words); queued || err != nil {
		return err
	}
	r := &s.replay
	if r.held > 0 && !r.narrow(f, words) {
		if err := s.flush(f.name); err != nil {
			return err
		}
	}
	if r.held == 0 {
		r.fit = append(r.fit[:0], r.graphs[hash(0, f, words)]...)
		if !r.narrow(f, words) {
			r.segment = append(r.segment, task{f, slices.Clone(words)})
			s.device.launches.single.Add(1)
			if err := s.issue(f, words); err != nil || len(r.segment) < mostSeen {
				return err
			}
			return s.learn()
		}
	}
	r.held++
	for _, g := range r.fit {
		if len(g.tasks) == r.held {
			return s.replayGraph(g)
		}
	}
	return nil
}

// replayGraph launches a graph, whose tasks are held back. If that fails, for example because the device has no memory for it, it queues them one
// by one.
func (s *Stream) replayGraph(g *graph) error {
	s.replay.held = 0
	if err := s.device.do(cuGraphLaunch, g.handle, s.handle); err != nil {
		s.because("a graph could not be launched: %v", err)
		return s.issueAll(g.tasks)
	}
	s.device.launches.replayed.Add(int64(len(g.tasks)))
	return s.learn()
}

// issueAll queues tasks that were held back one by one.
func (s *Stream) issueAll(tasks []task) error {
	s.device.launches.single.Add(int64(len(tasks)))
	for _, t := range tasks {
		if err := s.issue(t.function, t.words); err != nil {
			return err
		}
		s.replay.segment = append(s.replay.segment, t)
	}
	return nil
}

// narrow reports whether a graph continues with the task after those held back. If so, it forgets the graphs that do not.
func (r *replay) narrow(f *function, words []uint64) bool {
	n := 0
	for i, g := range r.fit {
		if g.tasks[r.held].is(f, words) {
			r.fit[n], r.fit[i] = g, r.fit[n]
			n++
		}
	}
	if n > 0 {
		r.fit = r.fit[:n]
	}
	return n > 0
}

// flush queues the tasks that are held back. next is what came instead of the task that was expected.
func (s *Stream) flush(next string) error {
	r := &s.replay
	if r.held == 0 {
		return nil
	}
	tasks := r.fit[0].tasks
	s.because("%s came where %s was expected, or with other arguments", next, tasks[r.held].function.name)
	tasks, r.held = tasks[:r.held], 0
	return s.issueAll(tasks)
}

// cut ends a segment: it queues what is held back, and records the segment if it has come before. It must run before work that is no task. next
// is the name of that work.
func (s *Stream) cut(next string) error {
	if s == nil || s.device == nil || s.pool.capture != nil {
		return nil
	}
	if err := s.flush(next); err != nil {
		return err
	}
	return s.learn()
}

// learn records the tasks of the segment if they have come before, and begins a new segment. A segment that cannot be recorded is queued one by
// one for ever.
func (s *Stream) learn() error {
	r := &s.replay
	tasks := r.segment
	r.segment = r.segment[:0]
	if len(tasks) < leastTasks {
		return nil
	}
	var h uint64
	for _, t := range tasks {
		h = hash(h, t.function, t.words)
	}
	if possible, again := r.seen[h]; !again {
		if r.seen == nil || len(r.seen) >= mostSeen {
			r.seen = map[uint64]bool{}
		}
		r.seen[h] = true
		s.because("%d pieces of work from %s to %s came for the first time", len(tasks), tasks[0].function.name, tasks[len(tasks)-1].function.name)
		return nil
	} else if !possible {
		return nil
	}
	if r.recorded+len(tasks) > mostRecorded {
		if err := s.forget(); err != nil {
			return err
		}
		r.seen = map[uint64]bool{h: true}
	}
	for some := range divided(slices.Clone(tasks)) {
		if err := s.record(some); err != nil {
			s.because("it could not be recorded: %v", err)
			break // the tasks are queued already
		}
	}
	r.seen[h] = false // if the graphs cannot be launched, more of them would not help
	return nil
}

// divided returns tasks in parts for graphs.
func divided(tasks []task) iter.Seq[[]task] {
	return func(yield func([]task) bool) {
		whole := len(tasks) < wholeTasks
		for n := firstTasks; len(tasks) > 0; n = min(2*n, mostTasks) {
			if n = min(n, len(tasks)); whole || len(tasks)-n < firstTasks {
				n = len(tasks)
			}
			if !yield(tasks[:n:n]) {
				return
			}
			tasks = tasks[n:]
		}
	}
}

// record records tasks as a graph, and does not run them.
func (s *Stream) record(tasks []task) error {
	r, g := &s.replay, &graph{tasks: tasks}
	return s.graphOf(tasks, &g.handle, func() {
		if r.graphs == nil {
			r.graphs = map[uint64][]*graph{}
		}
		first := hash(0, tasks[0].function, tasks[0].words)
		r.graphs[first] = append(r.graphs[first], g)
		r.recorded += len(tasks)
	})
}

// graphOf sets handle to that of a graph of tasks, and calls keep, which keeps it for Close.
func (s *Stream) graphOf(tasks []task, handle *uintptr, keep func()) error {
	s.records.Lock()
	defer s.records.Unlock()
	issue := func() error {
		for _, t := range tasks {
			if err := s.issue(t.function, t.words); err != nil {
				return err
			}
		}
		return nil
	}
	return s.instantiate(handle, issue, func(f func() error) error {
		return s.device.whileOpen(func() error {
			err := f()
			if err == nil {
				keep()
				s.device.launches.graphs.Add(1)
			}
			return err
		})
	})
}

// forget frees all graphs.
func (s *Stream) forget() error {
	return s.device.whileOpen(func() error {
		err := s.replay.release(s.device)
		s.replay = replay{}
		return err
	})
}

// release frees the graphs. It changes nothing else, since Close of a device can call it while a goroutine queues work.
func (r *replay) release(d *Device) error {
	var errs []error
	for _, graphs := range r.graphs {
		for _, g := range graphs {
			errs = append(errs, d.call(cuGraphExecDestroy, g.handle))
		}
	}
	return errors.Join(errs...)
}

// because sets the reason that Launches returns.
func (s *Stream) because(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	s.device.launches.why.Store(&why)
}

// issue queues a task at once.
func (s *Stream) issue(f *function, w []uint64) error {
	d, a := s.device, func(i int) uintptr { return uintptr(w[i]) }
	switch f {
	case fill:
		return d.do(cuMemsetD8Async, a(0), a(1), a(2), s.handle)
	case copying:
		return d.do(cuMemcpyDtoDAsync, a(0), a(1), a(2), s.handle)
	case product:
		return cublas.do(d, cublasGemmEx, a(0), a(1), a(2), a(3), a(4), a(5), uintptr(unsafe.Pointer(&w[6])), a(7), a(8), a(9), a(10), a(11), a(12),
			uintptr(unsafe.Pointer(&w[13])), a(14), a(15), a(16), a(17), a(18))
	case products:
		return cublas.do(d, cublasGemmStridedBatchedEx, a(0), a(1), a(2), a(3), a(4), a(5), uintptr(unsafe.Pointer(&w[6])), a(7), a(8), a(9), a(10),
			a(11), a(12), a(13), a(14), uintptr(unsafe.Pointer(&w[15])), a(16), a(17), a(18), a(19), a(20), a(21), a(22))
	case fourier:
		if err := cufft.do(d, cufftSetWorkArea, a(0), a(1)); err != nil {
			return err
		}
		return cufft.do(d, cufftExecZ2Z, a(0), a(2), a(2), a(3))
	default:
		return s.launch(f, w)
	}
}
