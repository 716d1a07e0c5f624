package dist

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gomamba/mamba/cuda"
)

// callWatch ends the processes of all ranks if a call of a Devices has begun and does not end, or if NCCL reports an error. Calls in captured graphs are not among them:
// Group.Watch notices that a rank waits for one.
type callWatch struct {
	x        *Devices
	mu       sync.Mutex
	calls    []pending // that have not ended, in their order
	entering pending   // one that NCCL is about to queue
	wrong    time.Time // when an error was first seen
	free     []*cuda.Event
	stopping chan struct{}
	end      func()
	stopped  chan struct{}
}

// pending is a call.
type pending struct {
	name         string
	begins, ends *cuda.Event
	begun        time.Time // when it was first seen to have begun
}

func watchCalls(x *Devices) *callWatch {
	w := &callWatch{x: x, stopping: make(chan struct{}), stopped: make(chan struct{})}
	stop := sync.OnceFunc(func() { close(w.stopping) })
	w.end = func() {
		stop()
		<-w.stopped
	}
	go w.run()
	return w
}

// stop ends the watch. A nil watch has ended.
func (w *callWatch) stop() {
	if w != nil {
		w.end()
	}
}

// call queues a call on the stream of x, between two events.
func (w *callWatch) call(name string, f func() error) error {
	p, err := w.enter(name)
	if err != nil {
		return err
	}
	err = w.x.stream.Record(p.begins)
	if err == nil {
		err = errors.Join(f(), w.x.stream.Record(p.ends))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entering = pending{}
	w.calls = append(w.calls, p)
	return err
}

func (w *callWatch) enter(name string) (p pending, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.collect(); err != nil {
		return p, err
	}
	for len(w.free) < 2 {
		e, err := w.x.device.NewEvent()
		if err != nil {
			return p, err
		}
		w.free = append(w.free, e)
	}
	n := len(w.free) - 2
	p = pending{name: name, begins: w.free[n], ends: w.free[n+1]}
	w.free = w.free[:n]
	w.entering = pending{name: name, begun: time.Now()}
	return p, nil
}

// collect forgets the calls that have ended.
func (w *callWatch) collect() error {
	for len(w.calls) > 0 {
		if ended, err := w.calls[0].ends.Reached(); err != nil || !ended {
			return err
		}
		w.free = append(w.free, w.calls[0].begins, w.calls[0].ends)
		w.calls = w.calls[1:]
	}
	return nil
}

func (w *callWatch) run() {
	defer close(w.stopped)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-w.stopping:
			return
		case now := <-tick.C:
			if why := w.check(now); why != "" {
				w.x.group.abort(why)
			}
		}
	}
}

// check returns why the run must end, or "".
func (w *callWatch) check(now time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.x.group.lost() != nil { // the connection ends
		return ""
	}
	limit := w.x.group.limit
	if p := w.entering; limit > 0 && p.name != "" && now.Sub(p.begun) > limit {
		return fmt.Sprintf("NCCL has not queued %s for %v: not all ranks call it", p.name, limit)
	}
	if err := errors.Join(w.x.stream.Disconnected(), w.collect()); err != nil {
		if w.wrong.IsZero() {
			w.wrong = now
		}
		if now.Sub(w.wrong) > time.Second { // that a rank has failed is known after NCCL has lost it
			return err.Error()
		}
		return ""
	}
	if limit == 0 || len(w.calls) == 0 {
		return ""
	}
	p := &w.calls[0]
	switch begun, err := p.begins.Reached(); {
	case err != nil:
		return err.Error()
	case begun && p.begun.IsZero():
		p.begun = now
	case begun && now.Sub(p.begun) > limit:
		return fmt.Sprintf("%s has begun and not ended for %v: not all ranks call it, or not with the same length", p.name, limit)
	}
	return ""
}

// close ends the watch, after the calls.
func (w *callWatch) close() error {
	if w == nil {
		return nil
	}
	w.stop()
	var errs []error
	for _, p := range w.calls {
		w.free = append(w.free, p.begins, p.ends)
	}
	for _, e := range w.free {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
