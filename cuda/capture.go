package cuda

import (
	"errors"
	"fmt"
	"unsafe"
)

// Capture is a recording of queued work. Launch queues all of it with one call. A capture keeps the memory of the arrays that were
// allocated or freed while it was recorded, because every launch writes into that memory again.
type Capture struct {
	stream *Stream
	handle uintptr
	blocks []uintptr // the memory that it keeps
}

// Capture records the work that f queues on the stream, and does not run it. It first waits for the work that was queued before.
//
// f may allocate and free arrays. No other array gets their memory before Close of the capture; inside the capture it is reused. An array
// that f allocates and does not free stays the caller's: it holds the result of the last launch, and the caller frees it, before or after
// Close. f must not use a kernel that was never used before on the device.
//
// Errors: that of f; copies between host and device, waiting, Launch and Capture on the stream while f runs. After an error nothing
// stays recorded, and the memory of the freed arrays is the stream's again.
func (s *Stream) Capture(f func() error) (c *Capture, err error) {
	if f == nil {
		return nil, firstError(s.usable(), errors.New("cuda: capture: f is nil, want a function that queues work"))
	}
	// With no work left in the queue, alloc can return free blocks to the device while f runs. It could not wait for the work then.
	if err := s.Synchronize(); err != nil {
		return nil, err
	}
	c = &Capture{stream: s}
	s.pool.begin(c)
	recorded := false
	defer func() { // also if f panics
		s.pool.end()
		if !recorded {
			err = errors.Join(err, c.Close())
			c = nil
		}
	}()
	err = s.instantiate(&c.handle, f, func(f func() error) error { return s.device.create(c, f) })
	recorded = err == nil
	return c, err
}

// instantiate records what f queues as a graph, and sets handle to that of its executable form. create calls the function that makes it, and can
// register it for Close. After an error or a panic of f nothing stays recorded.
func (s *Stream) instantiate(handle *uintptr, f func() error, create func(func() error) error) (err error) {
	const relaxed = 2 // the mode that allows calls from other threads, since a goroutine can move between threads, and allocations
	d := s.device
	err = d.whileOpen(func() error {
		err := d.call(cuStreamBeginCapture, s.handle, relaxed)
		s.captures = err == nil
		return err
	})
	if err != nil {
		return err
	}
	recorded := false
	defer func() { // also if f panics
		var graph uintptr
		err = errors.Join(err, d.whileOpen(func() error {
			s.captures = false
			return d.call(cuStreamEndCapture, s.handle, uintptr(unsafe.Pointer(&graph)))
		}))
		if recorded && err == nil {
			err = create(func() error { return d.call(cuGraphInstantiateWithFlags, uintptr(unsafe.Pointer(handle)), graph, 0) })
		}
		if graph != 0 {
			err = errors.Join(err, d.do(cuGraphDestroy, graph))
		}
	}()
	err = f()
	recorded = err == nil
	return err
}

// Launch queues the recorded work on s. The arrays that the work uses and that were allocated before the capture must not have been freed.
// s must be the stream of the capture if arrays were allocated or freed while it was recorded, because their memory belongs to that stream.
func (c *Capture) Launch(s *Stream) error {
	if err := firstError(c.usable(), s.usable(), s.recording("launch")); err != nil {
		return err
	}
	if len(c.blocks) > 0 && s != c.stream {
		return errors.New("cuda: launch: s is another stream, want that of the capture, because the capture has memory of that stream")
	}
	return s.do(cuGraphLaunch, c.handle, s.handle)
}

// usable returns an error for a capture that is missing or closed.
func (c *Capture) usable() error {
	if c == nil {
		return errors.New("cuda: the capture is missing, want one that Stream.Capture returned")
	}
	return notClosed("capture", c.handle)
}

// Capturing returns the capture whose f runs on the stream, nil if there is none.
func (s *Stream) Capturing() *Capture {
	if s == nil {
		return nil
	}
	return s.pool.capture
}

// recording returns an error if the stream is being captured.
func (s *Stream) recording(what string) error {
	if s.Capturing() != nil {
		return fmt.Errorf("cuda: %s: the stream is being captured, want a call before or after the capture", what)
	}
	return nil
}

// Close frees the recording. The stream can then use its memory for other arrays, apart from that of arrays that are not freed. A second
// Close does nothing.
func (c *Capture) Close() error {
	if c == nil || c.stream == nil {
		return c.usable()
	}
	if c.stream.Capturing() == c {
		return c.stream.recording("close")
	}
	err := c.stream.device.close(c)
	c.handle = 0
	c.stream.pool.takeBack(c)
	return err
}

func (c *Capture) release() error { return c.stream.device.call(cuGraphExecDestroy, c.handle) }
