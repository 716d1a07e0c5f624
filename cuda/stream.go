package cuda

import (
	"errors"
	"fmt"
	"time"
	"unsafe"
)

// Stream is a queue of work, done in order. It has memory of its own: what is freed on a stream is used again on it alone, after
// the work that was queued before.
type Stream struct {
	device *Device
	handle uintptr
	pool   pool
	stage  staging

	adam, norm adamTable // the last ones
	blas       blasHandle
	plan       []int32 // the last embedding's, whose memory the next one takes
}

// NewStream returns a queue. Work on several of them may be done side by side.
func (d *Device) NewStream() (*Stream, error) {
	const nonBlocking = 1
	s := &Stream{device: d}
	s.pool.stream, s.stage.stream = s, s
	if err := d.create(s, func() error { return d.call(cuStreamCreate, uintptr(unsafe.Pointer(&s.handle)), nonBlocking) }); err != nil {
		return nil, err
	}
	return s, nil
}

// Device is the stream's device.
func (s *Stream) Device() *Device { return s.device }

// usable returns an error for a stream that is missing or closed.
func (s *Stream) usable() error {
	if s == nil {
		return errors.New("cuda: the stream is missing, want one that NewStream returned")
	}
	return notClosed("stream", s.handle)
}

// notClosed returns an error if the handle is that of something closed.
func notClosed(what string, handle uintptr) error {
	if handle == 0 {
		return fmt.Errorf("cuda: the %s is closed", what)
	}
	return nil
}

// do calls the driver, unless the stream or its device is closed.
//
//go:uintptrescapes
func (s *Stream) do(f call, args ...uintptr) error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.device.do(f, args...)
}

// Synchronize waits until all that is queued is done. An error of a kernel is reported here, or by any later call.
func (s *Stream) Synchronize() error { return s.do(cuStreamSynchronize, s.handle) }

// Close waits for the queued work and frees the stream and all memory that was taken from it.
func (s *Stream) Close() error {
	err := s.device.close(s)
	s.handle = 0
	return err
}

func (s *Stream) release() error {
	d := s.device
	return errors.Join(d.call(cuStreamSynchronize, s.handle), s.blas.release(d), s.stage.release(), s.pool.release(), d.call(cuStreamDestroy, s.handle))
}

// Event is a mark in a stream.
type Event struct {
	device *Device
	handle uintptr
}

// NewEvent returns a mark that is nowhere yet; Close frees it.
func (d *Device) NewEvent() (*Event, error) {
	e := &Event{device: d}
	if err := d.create(e, func() error { return d.call(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), 0) }); err != nil {
		return nil, err
	}
	return e, nil
}

// Record sets the mark behind what is queued now.
func (s *Stream) Record(e *Event) error {
	if err := s.usable(); err != nil {
		return err
	}
	return e.do(cuEventRecord, e.handle, s.handle)
}

// Wait makes the work that is queued from now on wait for a mark of another stream.
func (s *Stream) Wait(e *Event) error {
	if err := s.usable(); err != nil {
		return err
	}
	return e.do(cuStreamWaitEvent, s.handle, e.handle, 0)
}

// Synchronize waits until the mark is reached.
func (e *Event) Synchronize() error { return e.do(cuEventSynchronize, e.handle) }

// Since is the device's time between two marks that were reached, with a resolution of about half a microsecond.
func (e *Event) Since(start *Event) (time.Duration, error) {
	if err := notClosed("event", start.handle); err != nil {
		return 0, err
	}
	var ms float32
	err := e.do(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), start.handle, e.handle)
	return time.Duration(float64(ms) * float64(time.Millisecond)), err
}

// Close frees the mark.
func (e *Event) Close() error {
	err := e.device.close(e)
	e.handle = 0
	return err
}

// do calls the driver, unless the event or its device is closed.
//
//go:uintptrescapes
func (e *Event) do(f call, args ...uintptr) error {
	if err := notClosed("event", e.handle); err != nil {
		return err
	}
	return e.device.do(f, args...)
}

func (e *Event) release() error { return e.device.call(cuEventDestroy, e.handle) }
