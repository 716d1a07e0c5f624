package cuda

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Stream is a queue of work that runs in order. It has its own pool of memory: a freed array's memory is reused only by the same stream, for
// work that is queued later.
type Stream struct {
	device *Device
	handle uintptr
	pool   pool
	stage  staging

	adam       adamTable // table of the last AdamW.Step
	adamOwn    adamTable // table of the gradients of the last AdamW.StepAmong
	slots      slots     // of the norms of AdamW
	blas       blasHandle
	connection atomic.Pointer[connection] // of NCCL; nil if there was none
	ffts       map[fft]fftPlan
	s4         s4Way
	plan       []int32  // plan of the last EmbeddingBackward; its memory is reused
	orders     []orders // of grid scans

	gathered *gathered // the sums of together, while it runs

	replay  replay
	ahead   ahead
	records sync.Mutex // held while work is recorded for a replay: Close of the device waits for it
	// captures says that the driver captures the stream. It changes while the device is open.
	captures bool
	words    []uint64 // of the last task; its memory is reused
	early    bool     // the last task is a kernel that can begin before the one before it has ended
	kernel   bool     // the last task is a kernel or a product
}

// NewStream returns a new stream. The work of different streams can run at the same time.
func (d *Device) NewStream() (*Stream, error) {
	const nonBlocking = 1
	s := &Stream{device: d}
	s.pool.stream, s.stage.stream = s, s
	if err := d.create(s, func() error { return d.call(cuStreamCreate, uintptr(unsafe.Pointer(&s.handle)), nonBlocking) }); err != nil {
		return nil, err
	}
	return s, nil
}

// Device returns the stream's device.
func (s *Stream) Device() *Device { return s.device }

// multiprocessors returns 0 for a zero Stream.
func (s *Stream) multiprocessors() int {
	if s.device == nil {
		return 0
	}
	return s.device.multiprocessors
}

// usable returns an error for a stream that is missing or closed.
func (s *Stream) usable() error {
	if s == nil {
		return errors.New("cuda: the stream is missing, want one that NewStream returned")
	}
	return notClosed("stream", s.handle)
}

// notClosed returns an error if the handle is 0, which Close sets.
func notClosed(what string, handle uintptr) error {
	if handle == 0 {
		return fmt.Errorf("cuda: the %s is closed", what)
	}
	return nil
}

// do calls the driver for what is no task. It returns an error if the stream or its device is closed.
//
//go:uintptrescapes
func (s *Stream) do(f call, args ...uintptr) error {
	if err := firstError(s.usable(), s.stop(symbols[f])); err != nil {
		return err
	}
	return s.device.do(f, args...)
}

// Synchronize waits until all queued work is done. An error in a kernel is returned by Synchronize or by any later call.
func (s *Stream) Synchronize() error {
	if err := firstError(s.usable(), s.recording("synchronize")); err != nil {
		return err
	}
	return s.do(cuStreamSynchronize, s.handle)
}

// Close waits for the queued work and frees the stream and the memory of all its arrays. A second Close does nothing.
func (s *Stream) Close() error {
	if s == nil {
		return s.usable()
	}
	if err := s.recording("close"); err != nil {
		return err
	}
	err := s.flush("the end of the stream")
	if err == errClosed { // with the device
		err = nil
	}
	err = errors.Join(err, s.device.close(s))
	if s.usable() == nil {
		s.pool.forget()
	}
	s.handle, s.replay, s.ahead, s.slots, s.stage, s.blas, s.ffts = 0, replay{}, ahead{}, slots{}, staging{stream: s}, blasHandle{}, nil
	return err
}

// release frees what the stream has on the device and for it. It changes nothing, since Close of the device can call it while a goroutine uses the stream.
func (s *Stream) release() error {
	d := s.device
	if s.captures { // by another goroutine, which gets an error at its end
		var graph uintptr
		if err := d.call(cuStreamEndCapture, s.handle, uintptr(unsafe.Pointer(&graph))); err == nil && graph != 0 {
			_ = d.call(cuGraphDestroy, graph)
		}
	}
	return errors.Join(d.call(cuStreamSynchronize, s.handle), s.replay.release(d), s.ahead.release(d), s.connection.Load().release(d), s.blas.release(d), s.releasePlans(), s.stage.release(), s.slots.release(d), s.pool.release(), d.call(cuStreamDestroy, s.handle))
}

// Event is a point in the work of a stream.
type Event struct {
	device *Device
	handle uintptr
}

// NewEvent returns an event that is not recorded yet. Close frees it.
func (d *Device) NewEvent() (*Event, error) {
	e := &Event{device: d}
	if err := d.create(e, func() error { return d.call(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), 0) }); err != nil {
		return nil, err
	}
	return e, nil
}

// Record sets e to the point after all work that is queued now.
func (s *Stream) Record(e *Event) error {
	if err := firstError(s.usable(), e.usable()); err != nil {
		return err
	}
	if err := s.stop("an event"); err != nil {
		return err
	}
	return e.do(cuEventRecord, e.handle, s.handle)
}

// Wait makes all work that is queued later wait until another stream has reached e.
func (s *Stream) Wait(e *Event) error {
	if err := firstError(s.usable(), e.usable()); err != nil {
		return err
	}
	if err := s.stop("waiting for an event"); err != nil {
		return err
	}
	return e.do(cuStreamWaitEvent, s.handle, e.handle, 0)
}

// Synchronize waits until the stream has reached the event.
func (e *Event) Synchronize() error {
	if err := e.usable(); err != nil {
		return err
	}
	return e.do(cuEventSynchronize, e.handle)
}

// Reached reports whether the stream has reached the event.
func (e *Event) Reached() (bool, error) {
	if err := e.usable(); err != nil {
		return false, err
	}
	err := e.do(cuEventQuery, e.handle)
	var code *Error
	if errors.As(err, &code) && code.Code == codeNotReady {
		return false, nil
	}
	return err == nil, err
}

// Since returns the device's time from start to e, with a resolution of about half a microsecond. Both must have been reached, else it
// returns an error.
func (e *Event) Since(start *Event) (time.Duration, error) {
	if err := firstError(e.usable(), start.usable()); err != nil {
		return 0, err
	}
	var ms float32
	err := e.do(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), start.handle, e.handle)
	return time.Duration(float64(ms) * float64(time.Millisecond)), err
}

// Close frees the event. A second Close does nothing.
func (e *Event) Close() error {
	if e == nil {
		return e.usable()
	}
	err := e.device.close(e)
	e.handle = 0
	return err
}

// usable returns an error for an event that is missing or closed.
func (e *Event) usable() error {
	if e == nil {
		return errors.New("cuda: the event is missing, want one that NewEvent returned")
	}
	return notClosed("event", e.handle)
}

// do calls the driver. It returns an error if the event or its device is closed.
//
//go:uintptrescapes
func (e *Event) do(f call, args ...uintptr) error {
	if err := e.usable(); err != nil {
		return err
	}
	return e.device.do(f, args...)
}

func (e *Event) release() error { return e.device.call(cuEventDestroy, e.handle) }
