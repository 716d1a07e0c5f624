package cuda

import (
	"errors"
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
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	if err := d.do(cuStreamCreate, uintptr(unsafe.Pointer(&s.handle)), nonBlocking); err != nil {
		return nil, err
	}
	d.streams[s] = struct{}{}
	return s, nil
}

var errClosed = errors.New("cuda: the device is closed")

// Device is the stream's device.
func (s *Stream) Device() *Device { return s.device }

// Synchronize waits until all that is queued is done. An error of a kernel is reported here, or by any later call.
func (s *Stream) Synchronize() error { return s.device.do(cuStreamSynchronize, s.handle) }

// Close waits for the queued work and frees the stream and all memory that was taken from it.
func (s *Stream) Close() error {
	s.device.mu.Lock()
	_, open := s.device.streams[s]
	delete(s.device.streams, s)
	s.device.mu.Unlock()
	if !open {
		return nil
	}
	return s.release()
}

func (s *Stream) release() error {
	return errors.Join(s.Synchronize(), s.blas.release(s.device), s.stage.release(), s.pool.release(), s.device.do(cuStreamDestroy, s.handle))
}

// Event is a mark in a stream.
type Event struct {
	device *Device
	handle uintptr
}

// NewEvent returns a mark that is nowhere yet; Close frees it.
func (d *Device) NewEvent() (*Event, error) {
	e := &Event{device: d}
	return e, d.do(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), 0)
}

// Record sets the mark behind what is queued now.
func (s *Stream) Record(e *Event) error { return s.device.do(cuEventRecord, e.handle, s.handle) }

// Wait makes the work that is queued from now on wait for a mark of another stream.
func (s *Stream) Wait(e *Event) error { return s.device.do(cuStreamWaitEvent, s.handle, e.handle, 0) }

// Synchronize waits until the mark is reached.
func (e *Event) Synchronize() error { return e.device.do(cuEventSynchronize, e.handle) }

// Since is the device's time between two marks that were reached, with a resolution of about half a microsecond.
func (e *Event) Since(start *Event) (time.Duration, error) {
	var ms float32
	err := e.device.do(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), start.handle, e.handle)
	return time.Duration(float64(ms) * float64(time.Millisecond)), err
}

// Close frees the mark.
func (e *Event) Close() error { return e.device.do(cuEventDestroy, e.handle) }
