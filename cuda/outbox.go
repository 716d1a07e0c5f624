package cuda

import (
	"errors"
	"fmt"
	"unsafe"
)

// Outbox is memory on the host to which a kernel copies an array while other work is queued.
type Outbox[T Element] struct {
	stream *Stream
	memory unsafe.Pointer
	n      int
	came   []T // what Wait returns
	sent   *Event
}

// NewOutbox returns an outbox for n elements. Close frees it, or Close of the device.
func NewOutbox[T Element](s *Stream, n int) (*Outbox[T], error) {
	if n < 1 || n > 1<<31-1 {
		return nil, fmt.Errorf("cuda: outbox: n is %d, want 1 to 2^31-1", n)
	}
	if err := s.usable(); err != nil {
		return nil, err
	}
	e, err := s.device.NewEvent()
	if err != nil {
		return nil, err
	}
	o := &Outbox[T]{stream: s, n: n, sent: e}
	err = s.device.create(o, func() error {
		return s.device.call(cuMemAllocHost, uintptr(unsafe.Pointer(&o.memory)), uintptr(int64(n)*size[T]()))
	})
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return o, nil
}

// Send queues a copy of the array, whose length must be that of the outbox. It returns before the numbers are there. It can be captured. Then each launch sends.
func (o *Outbox[T]) Send(a Array[T]) error {
	if err := o.usable(); err != nil {
		return err
	}
	if err := expect("outbox", "a", a.n, o.n); err != nil {
		return err
	}
	bytes := o.n * int(size[T]())
	return o.stream.run("elementwise", "send_bytes", blocksOf(bytes, 256).follow(o.stream), a.address, uintptr(o.memory), bytes)
}

// Seal makes the next Wait wait for the work that is queued now.
func (o *Outbox[T]) Seal() error {
	if err := o.usable(); err != nil {
		return err
	}
	return o.stream.Record(o.sent)
}

// Wait waits for the work that was queued at the last Seal, and returns the numbers of the last Send before it. The next Wait overwrites them.
func (o *Outbox[T]) Wait() ([]T, error) {
	if err := o.usable(); err != nil {
		return nil, err
	}
	if err := o.sent.Synchronize(); err != nil {
		return nil, err
	}
	err := o.stream.device.whileOpen(func() error { // Close of the device frees the memory
		o.came = append(o.came[:0], unsafe.Slice((*T)(o.memory), o.n)...)
		return nil
	})
	return o.came, err
}

func (o *Outbox[T]) usable() error {
	if o == nil || o.stream == nil {
		return fmt.Errorf("cuda: the outbox is missing, want one that NewOutbox returned")
	}
	return firstError(o.stream.usable(), notClosed("outbox", uintptr(o.memory)))
}

// Close frees the outbox. A second Close does nothing.
func (o *Outbox[T]) Close() error {
	if o == nil || o.stream == nil {
		return o.usable()
	}
	var err error
	if o.usable() == nil {
		err = o.stream.Synchronize() // a kernel that is queued may write to the memory
	}
	err = errors.Join(err, o.stream.device.close(o), o.sent.Close())
	o.memory = nil
	return err
}

func (o *Outbox[T]) release() error {
	return o.stream.device.call(cuMemFreeHost, uintptr(o.memory))
}
