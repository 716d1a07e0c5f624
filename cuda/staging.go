package cuda

import (
	"errors"
	"unsafe"
)

// stageBytes is the size of a buffer. It is large enough to make the cost of starting a copy negligible.
const stageBytes = 4 << 20

// staging copies between a stream's device and the host. It has two buffers of pinned memory, which the device reads and writes directly.
// While the device copies one buffer, the host fills or reads the other.
type staging struct {
	stream *Stream
	buffer [2]unsafe.Pointer
	busy   [2]*Event // recorded after the device's last use of the buffer
}

// prepare makes the buffers at the first copy.
func (g *staging) prepare() error {
	if err := g.stream.recording("copy"); err != nil {
		return err
	}
	for i := range g.buffer {
		if g.busy[i] != nil {
			continue
		}
		d := g.stream.device
		if err := d.do(cuMemAllocHost, uintptr(unsafe.Pointer(&g.buffer[i])), stageBytes); err != nil {
			return err
		}
		e := &Event{device: d} // not registered with the device: release destroys it
		if err := d.do(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), 0); err != nil {
			return errors.Join(err, d.do(cuMemFreeHost, uintptr(g.buffer[i])))
		}
		g.busy[i] = e
	}
	return nil
}

func (g *staging) host(i, n int) []byte { return unsafe.Slice((*byte)(g.buffer[i]), n) }

// up copies from to the device's memory at to. It returns when the last part is queued. The caller may then change from.
func (g *staging) up(to uintptr, from []byte) error {
	if err := g.prepare(); err != nil {
		return err
	}
	for i := 0; len(from) > 0; i ^= 1 {
		if err := g.busy[i].Synchronize(); err != nil {
			return err
		}
		n := copy(g.host(i, stageBytes), from)
		if err := g.stream.do(cuMemcpyHtoDAsync, to, uintptr(g.buffer[i]), uintptr(n), g.stream.handle); err != nil {
			return err
		}
		if err := g.stream.Record(g.busy[i]); err != nil {
			return err
		}
		to, from = to+uintptr(n), from[n:]
	}
	return nil
}

// down copies the device's memory at from to to. It returns when all bytes are in to.
func (g *staging) down(to []byte, from uintptr) error {
	if err := g.prepare(); err != nil {
		return err
	}
	fetch := func(i, at int) error {
		if at >= len(to) {
			return nil
		}
		if err := g.busy[i].Synchronize(); err != nil { // the buffer may still be in use by an upload
			return err
		}
		n := min(stageBytes, len(to)-at)
		if err := g.stream.do(cuMemcpyDtoHAsync, uintptr(g.buffer[i]), from+uintptr(at), uintptr(n), g.stream.handle); err != nil {
			return err
		}
		return g.stream.Record(g.busy[i])
	}
	if err := fetch(0, 0); err != nil {
		return err
	}
	for i, at := 0, 0; at < len(to); i, at = i^1, at+stageBytes {
		if err := fetch(i^1, at+stageBytes); err != nil {
			return err
		}
		if err := g.busy[i].Synchronize(); err != nil {
			return err
		}
		copy(to[at:], g.host(i, min(stageBytes, len(to)-at)))
	}
	return nil
}

func (g *staging) release() error {
	var errs []error
	for i, e := range g.busy {
		if e != nil {
			errs = append(errs, e.release(), g.stream.device.call(cuMemFreeHost, uintptr(g.buffer[i])))
		}
	}
	*g = staging{stream: g.stream}
	return errors.Join(errs...)
}
