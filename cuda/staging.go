package cuda

import (
	"errors"
	"unsafe"
)

// stageBytes is a buffer's size: large enough that what a copy costs to begin is nothing beside it.
const stageBytes = 4 << 20

// staging is a stream's way to the host: two buffers that the device reads and writes itself, because they are pinned. While
// one is on its way, the other is filled or emptied.
type staging struct {
	stream *Stream
	buffer [2]unsafe.Pointer
	busy   [2]*Event // reached when the device is done with the buffer
}

func (g *staging) prepare() error {
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

// up copies to the device. It returns when the last part is queued.
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

// down copies from the device, and waits.
func (g *staging) down(to []byte, from uintptr) error {
	if err := g.prepare(); err != nil {
		return err
	}
	fetch := func(i, at int) error {
		if at >= len(to) {
			return nil
		}
		if err := g.busy[i].Synchronize(); err != nil { // an upload may be on its way
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
