package cuda

import (
	"errors"
	"unsafe"
)

// Capture is a recording of queued work. Launch queues all of it with one call.
type Capture struct {
	device *Device
	handle uintptr
}

// Capture records the work that f queues on the stream, and does not run it. f must not allocate or wait, and must not use a kernel that was
// never used before on the device. Capture returns the error of f.
func (s *Stream) Capture(f func() error) (*Capture, error) {
	const relaxed = 2 // the mode that allows calls from other threads, since a goroutine can move between threads
	if err := s.usable(); err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errors.New("cuda: capture: f is nil, want a function that queues work")
	}
	d := s.device
	if err := d.do(cuStreamBeginCapture, s.handle, relaxed); err != nil {
		return nil, err
	}
	wrong := f()
	var graph uintptr
	err := d.do(cuStreamEndCapture, s.handle, uintptr(unsafe.Pointer(&graph)))
	if err = errors.Join(wrong, err); err != nil {
		if graph != 0 {
			err = errors.Join(err, d.do(cuGraphDestroy, graph))
		}
		return nil, err
	}
	c := &Capture{device: d}
	err = d.create(c, func() error { return d.call(cuGraphInstantiateWithFlags, uintptr(unsafe.Pointer(&c.handle)), graph, 0) })
	if err = errors.Join(err, d.do(cuGraphDestroy, graph)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Launch queues the recorded work on s. The arrays that the work uses must not have been freed.
func (c *Capture) Launch(s *Stream) error {
	if err := firstError(c.usable(), s.usable()); err != nil {
		return err
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

// Close frees the recording. A second Close does nothing.
func (c *Capture) Close() error {
	if c == nil {
		return c.usable()
	}
	err := c.device.close(c)
	c.handle = 0
	return err
}

func (c *Capture) release() error { return c.device.call(cuGraphExecDestroy, c.handle) }
