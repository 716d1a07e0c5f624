package dist

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// mpi is the Engine over an MPI library. One goroutine makes all calls of the library, on a thread of its own: so MPI_THREAD_FUNNELED is enough, which every
// library has. All messages are non-blocking, so that no call of the library waits for another rank.
type mpi struct {
	lib        *mpiLibrary
	rank, size int
	jobs       chan *job
	ended      chan struct{} // closed when the goroutine has ended
	failed     error         // why; set before ended is closed

	watch  atomic.Pointer[watch]
	beside atomic.Bool // the rank computes meanwhile, and needs the processor
}

// watch is an argument of Engine.Watch.
type watch struct {
	limit    time.Duration
	progress func() (uint64, string)
}

// job is a call of Move, or of Close if last is true.
type job struct {
	tag      Tag
	messages []Message
	last     bool

	requests []request // nil until the goroutine has started it
	open     int       // number of requests that are not done
	done     chan error
}

// request is a message, or a piece of one, under way.
type request struct {
	handle uint64 // an MPI_Request, which has 4 or 8 bytes
	done   int32  // written by MPI_Test
	open   bool
	Message
}

// mostBytes is the largest number of bytes of an MPI call, whose count is an int of 32 bits.
var mostBytes = 1 << 30 // a variable for tests

var joined sync.Mutex // locked for good by the first startMPI

// startMPI loads the library, and starts it in this process.
func startMPI(ctx context.Context, l launch) (*mpi, error) {
	lib, err := loadMPI(l)
	if err != nil {
		return nil, err
	}
	if !joined.TryLock() {
		return nil, fmt.Errorf("dist: join: this process has joined a group already; MPI can be started once in a process")
	}
	m := &mpi{lib: lib, jobs: make(chan *job), ended: make(chan struct{})}
	started := make(chan error, 1)
	go m.run(started)
	if l.rank == 0 {
		defer time.AfterFunc(patience, func() {
			fmt.Fprintf(os.Stderr, "dist: rank 0 of %d, started by %s, waits in MPI until all have joined\n", l.size, l.by)
		}).Stop()
	}
	select {
	case err = <-started:
	case <-ctx.Done():
		return nil, fmt.Errorf("dist: join: %d ranks of %s have not met: %w", l.size, l.by, context.Cause(ctx))
	}
	if err == nil && m.size != l.size {
		err = fmt.Errorf("the launcher (%s) has started %d processes, and this library sees %d: it belongs to another launcher; name the launcher's own library in $MAMBA_MPI, "+
			"or start with the mpirun of this library (under Slurm: srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH)", l.by, l.size, m.size)
	}
	if err != nil {
		return nil, fmt.Errorf("dist: join: %s: %w", lib.file, err)
	}
	return m, nil
}

func (m *mpi) Rank() int { return m.rank }
func (m *mpi) Size() int { return m.size }

func (m *mpi) Watch(limit time.Duration, progress func() (uint64, string)) {
	m.watch.Store(&watch{limit, progress})
}

func (m *mpi) Move(tag Tag, messages []Message) error {
	return m.do(&job{tag: tag, messages: messages})
}

func (m *mpi) Close() error { return m.do(&job{last: true}) }

func (m *mpi) do(j *job) error {
	j.done = make(chan error, 1)
	select {
	case m.jobs <- j:
		return <-j.done
	case <-m.ended:
		return errors.Join(fmt.Errorf("MPI has ended"), m.failed)
	}
}

// run makes all calls of the library.
func (m *mpi) run(started chan<- error) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	defer close(m.ended)
	err := m.lib.start()
	if err == nil {
		m.rank, m.size, err = m.lib.place()
	}
	if started <- err; err != nil {
		m.failed = err
		return
	}
	m.loop()
}

// Polling: while a message is under way, the library is asked again and again. Between the questions the thread leaves the processor to others that want it, and
// some time after the last message that has arrived it sleeps: a rank that waits for a slower one costs little then. With a shorter time, two ranks that answer each
// other after a sleep would make each other sleep for good: an AllReduce of 4 bytes took 0.7 ms instead of 0.1. While the rank computes beside the call, the thread always sleeps: its
// questions took a third of the step of two ranks with a core each (130 million parameters: 4.4 s, and 3.3 s with sleep).
const (
	eager = 2 * time.Millisecond
	nap   = 50 * time.Microsecond
)

// finalizing is how long Close waits for MPI_Finalize. All ranks have left then, and nothing is under way. MPICH 4.0.2 over TCP (UCX) hangs in one of five to ten runs: a rank waits for
// the other ones in a barrier of the launcher, without the answer that another rank needs to get there.
const finalizing = 3 * time.Second

func (m *mpi) loop() {
	var active, news []*job // news are asked for when signs of life are
	life := m.newLife()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := time.Now() // when something has come or begun
	for {
		var j *job
		if len(active) == 0 {
			select {
			case j = <-m.jobs:
			case <-tick.C:
			}
		} else {
			select {
			case j = <-m.jobs:
			default:
			}
		}
		now := time.Now()
		if j != nil {
			if j.last {
				if err := m.leave(life); err != nil || len(active)+len(news) > 0 { // MPI_Finalize would wait for messages that nobody receives after a failure
					j.done <- err
					return
				}
				guard := time.AfterFunc(finalizing, func() { j.done <- nil })
				if err := m.lib.finish(); guard.Stop() {
					j.done <- err
				}
				return
			}
			if last = now; j.tag == tagNews && j.messages[0].Receive {
				news = append(news, j)
			} else {
				active = append(active, j)
			}
			if err := m.start(j); err != nil {
				m.end(append(active, news...), err)
				return
			}
		}
		var moved bool
		var err error
		if active, moved, err = m.test(active); moved {
			last = now
		}
		if checked := life.checked; err == nil {
			if err = life.check(now); err == nil && life.checked != checked {
				news, _, err = m.test(news)
			}
		}
		if err != nil {
			m.end(append(active, news...), err)
			return
		}
		if len(active) > 0 && (now.Sub(last) > eager || m.beside.Load()) {
			time.Sleep(nap)
		} else if len(active) > 0 {
			yield()
		}
	}
}

// end answers all jobs with an error of the library.
func (m *mpi) end(active []*job, err error) {
	m.failed = err
	for _, j := range active {
		j.done <- err
	}
}

// start starts the messages of a job, in pieces that a call can take.
func (m *mpi) start(j *job) error {
	for _, message := range j.messages {
		for b := message.Bytes; len(b) > 0; b = b[min(len(b), mostBytes):] {
			j.requests = append(j.requests, request{open: true, Message: Message{message.Peer, message.Receive, b[:min(len(b), mostBytes)]}})
		}
	}
	for i := range j.requests { // their addresses stay from here on
		if err := m.lib.begin(&j.requests[i], j.tag); err != nil {
			return err
		}
		j.open++
	}
	return nil
}

// test looks which jobs are done, and returns the others, and whether a message has come or gone.
func (m *mpi) test(jobs []*job) (rest []*job, moved bool, err error) {
	rest = jobs[:0]
	for i, j := range jobs {
		open := j.open
		if err := m.look(j); err != nil {
			return append(rest, jobs[i:]...), moved, err
		}
		moved = moved || j.open != open
		if j.open > 0 {
			rest = append(rest, j)
		} else {
			j.done <- nil
		}
	}
	return rest, moved, nil
}

// look looks which messages of a job are done.
func (m *mpi) look(j *job) error {
	for i := range j.requests {
		r := &j.requests[i]
		if !r.open {
			continue
		}
		done, err := m.lib.test(r)
		if err != nil {
			return err
		}
		if done {
			r.open = false
			j.open--
		}
	}
	return nil
}

// life exchanges signs of life: each rank sends them to the next one.
type life struct {
	m       *mpi
	in, out *job // a sign from the rank before, nil once it has left; a sign to the rank after

	checked, heard, sent time.Time
	stall                stall
}

// The signs.
const (
	alive   byte = 1
	leaving byte = 2
)

func (m *mpi) newLife() *life {
	return &life{m: m, heard: time.Now()}
}

// sign starts a sign to or from a rank.
func (l *life) sign(peer int, receive bool, what byte) (*job, error) {
	j := &job{tag: tagLife, messages: []Message{{(peer + l.m.size) % l.m.size, receive, []byte{what}}}}
	return j, l.m.start(j)
}

// check sends and receives what is due, and ends the processes of all ranks if one is lost.
func (l *life) check(now time.Time) error {
	if now.Sub(l.checked) < 10*time.Millisecond {
		return nil
	}
	w := l.m.watch.Load()
	if w == nil {
		return nil
	}
	err := l.receive(now)
	if err == nil && now.Sub(l.sent) >= w.limit/10 && l.out == nil {
		l.sent = now
		l.out, err = l.sign(l.m.rank+1, false, alive)
	}
	if err == nil && l.out != nil {
		if err = l.m.look(l.out); l.out.open == 0 {
			l.out = nil
		}
	}
	if err != nil || w.limit == 0 {
		return err
	}
	if l.in != nil && now.Sub(l.heard) > w.limit {
		l.m.abort(silent(l.in.messages[0].Peer, w.limit))
	}
	if why := l.stall.check(now, w); why != "" {
		l.m.abort(why)
	}
	return nil
}

// stall notices that a rank makes no progress.
type stall struct {
	count   uint64 // of watch.progress
	changed time.Time
}

// check returns why the run must end, or "".
func (s *stall) check(now time.Time, w *watch) string {
	if w.progress == nil || s.changed.IsZero() {
		s.changed = now
		return ""
	}
	count, doing := w.progress()
	if count != s.count {
		s.count, s.changed = count, now
	}
	if now.Sub(s.changed) > w.limit {
		return fmt.Sprintf("this rank has made no progress for %v: %s", w.limit, doing)
	}
	return ""
}

// silent is why the run ends when a rank gives no sign of life.
func silent(rank int, limit time.Duration) string {
	return fmt.Sprintf("rank %d has given no sign of life for %v: its process or machine is gone, stopped or cut off", rank, limit)
}

// receive looks for a sign of the rank before.
func (l *life) receive(now time.Time) (err error) {
	if l.checked.IsZero() {
		l.in, err = l.sign(l.m.rank-1, true, 0)
	}
	l.checked = now
	if err != nil || l.in == nil {
		return err
	}
	if err := l.m.look(l.in); err != nil || l.in.open > 0 {
		return err
	}
	l.heard = now
	if l.in.messages[0].Bytes[0] == leaving {
		l.in = nil
		return nil
	}
	l.in, err = l.sign(l.m.rank-1, true, 0)
	return err
}

// leave waits until the ranks before and after leave as well.
func (m *mpi) leave(l *life) error {
	var last *job
	for l.checked.IsZero() || l.in != nil || l.out != nil || last == nil || last.open > 0 {
		l.checked = l.checked.Add(-time.Second) // so that check does not wait
		l.sent = time.Now()                     // and sends nothing more
		if err := l.check(time.Now()); err != nil {
			return err
		}
		var err error
		if last == nil && l.out == nil {
			last, err = l.sign(m.rank+1, false, leaving)
		} else if last != nil {
			err = m.look(last)
		}
		if err != nil {
			return err
		}
		time.Sleep(nap)
	}
	return nil
}

func (m *mpi) say(why string) { say(m, why) }

// say writes why this rank ends the run.
func say(e Engine, why string) {
	fmt.Fprintf(os.Stderr, "dist: rank %d of %d ends the run: %s\n", e.Rank(), e.Size(), why)
}

// abort writes why, and ends the processes of all ranks.
func (m *mpi) abort(why string) {
	m.say(why)
	time.Sleep(200 * time.Millisecond)                   // MPICH's launcher drops lines that it has not read when it learns of the end
	time.AfterFunc(3*time.Second, func() { os.Exit(1) }) // in case MPI_Abort waits for a launcher that is gone
	m.lib.abort()
	os.Exit(1)
}
