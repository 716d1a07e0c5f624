package cuda

import (
	"errors"
	"unsafe"
)

// Norm is the norm of gradients, on its way from the device to the host.
type Norm struct {
	stream *Stream
	at     *slot // nil when it is there
	value  float64
	err    error
}

// Wait waits for the norm. Use it as you use the stream.
func (n *Norm) Wait() (float64, error) {
	if n == nil || n.stream == nil {
		return 0, errors.New("cuda: the norm is missing, want one that AdamW.Queue returned")
	}
	if at := n.at; at != nil {
		if n.err = n.stream.usable(); n.err == nil {
			n.err = at.sent.Synchronize()
		}
		if n.err == nil {
			n.err = n.stream.device.whileOpen(func() error { // Close of the device frees the memory
				n.value = *at.memory
				return nil
			})
		}
		n.at, at.user = nil, nil
	}
	return n.value, n.err
}

// slot is pinned memory of the host that a kernel writes a number to.
type slot struct {
	memory *float64
	sent   *Event // the number is there
	user   *Norm  // reads it; nil for none
}

// slots is memory for the numbers that a stream sends to the host without waiting for them. The slots serve in turn: few, so that the work that sends is soon the same as
// earlier work.
type slots struct {
	memory unsafe.Pointer
	all    [2]slot
	next   int
}

// send queues a copy of a number to the host, as a part of the work that is replayed. It ends that work.
func (s *Stream) send(x Array[float64]) (*Norm, error) {
	a := &s.slots
	if a.memory == nil {
		if err := s.device.whileOpen(func() error { return a.allocate(s.device) }); err != nil { // Close frees it
			return nil, err
		}
	}
	l := &a.all[a.next]
	if l.user != nil { // more numbers than slots are on their way
		_, _ = l.user.Wait() // returns its error again
	}
	a.next = (a.next + 1) % len(a.all)
	bytes := int(size[float64]())
	if err := s.run("elementwise", "send_bytes", blocksOf(bytes, 256).follow(s), x.address, uintptr(unsafe.Pointer(l.memory)), bytes); err != nil {
		return nil, err
	}
	if err := s.Record(l.sent); err != nil {
		return nil, err
	}
	l.user = &Norm{stream: s, at: l}
	return l.user, nil
}

func (a *slots) allocate(d *Device) error {
	const apart = 64 // bytes of a slot
	if err := d.call(cuMemAllocHost, uintptr(unsafe.Pointer(&a.memory)), uintptr(apart*len(a.all))); err != nil {
		return err
	}
	for i := range a.all {
		l := &a.all[i]
		l.memory, l.sent = (*float64)(unsafe.Add(a.memory, apart*i)), &Event{device: d} // not registered with the device: release destroys it
		const withoutTime = 2
		if err := d.call(cuEventCreate, uintptr(unsafe.Pointer(&l.sent.handle)), withoutTime); err != nil {
			err = errors.Join(err, a.release(d))
			*a = slots{}
			return err
		}
	}
	return nil
}

// release changes nothing, as that of replay.
func (a *slots) release(d *Device) error {
	if a.memory == nil {
		return nil
	}
	errs := []error{d.call(cuMemFreeHost, uintptr(a.memory))}
	for _, l := range a.all {
		if l.sent != nil && l.sent.handle != 0 {
			errs = append(errs, l.sent.release())
		}
	}
	return errors.Join(errs...)
}
