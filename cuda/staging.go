package cuda

import (
	"errors"
	"unsafe"
)

// stageBytes is the size of a buffer. It is large enough to make the cost of starting a copy negligible.
const stageBytes = 4 << 20

// staging copies between a stream's device and the host. It has two buffers of pinned memory, which the device reads and writes directly.
// While the device copies one buffer, the host fills or reads the other. Uploads that follow each other share a buffer, so that small ones do
// not wait.
type staging struct {
	stream *Stream
	buffer [2]unsafe.Pointer
	busy   [2]*Event // recorded after the device's last use of the buffer
	at     int       // index of the buffer of the last upload
	used   int       // bytes of that buffer that later uploads must not write
}

// piece is memory on the host, and the address of as many bytes on the device.
type piece struct {
	host   []byte
	device uintptr
	joined bool // the bytes on the device follow those of the piece before, in the same allocation
}

// prepare makes the buffers at the first copy.
func (g *staging) prepare() error {
	if err := g.stream.recording("copy"); err != nil {
		return err
	}
	if g.busy[len(g.busy)-1] != nil {
		return nil
	}
	d := g.stream.device
	return d.whileOpen(func() error { // Close reads the buffers
		for i := range g.buffer {
			if g.busy[i] != nil {
				continue
			}
			if err := d.call(cuMemAllocHost, uintptr(unsafe.Pointer(&g.buffer[i])), stageBytes); err != nil {
				return err
			}
			e := &Event{device: d} // not registered with the device: release destroys it
			const withoutTime = 2
			if err := d.call(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), withoutTime); err != nil {
				return errors.Join(err, d.call(cuMemFreeHost, uintptr(g.buffer[i])))
			}
			g.busy[i] = e
		}
		return nil
	})
}

// host returns a buffer from a byte on. Use it only while the device is open, as Close frees the buffer.
func (g *staging) host(i, from int) []byte {
	return unsafe.Slice((*byte)(g.buffer[i]), stageBytes)[from:]
}

// up copies pieces to the device. It returns when the last one is queued. The caller may then change the memory on the host.
func (g *staging) up(pieces ...piece) error {
	if err := g.prepare(); err != nil {
		return err
	}
	var to uintptr
	if len(pieces) > 0 {
		to = pieces[0].device
	}
	for len(pieces) > 0 {
		if g.used == stageBytes {
			next := g.at ^ 1
			if err := g.busy[next].Synchronize(); err != nil {
				return err
			}
			g.at, g.used = next, 0
		}
		from, n := pieces[0].device, 0 // n bytes are copied together
		if err := g.stream.device.whileOpen(func() error {
			for len(pieces) > 0 && (n == 0 || pieces[0].joined) && g.used+n < stageBytes {
				p := &pieces[0]
				some := copy(g.host(g.at, g.used+n), p.host)
				n += some
				if p.host, p.device = p.host[some:], p.device+uintptr(some); len(p.host) > 0 {
					break
				}
				pieces = pieces[1:]
			}
			return nil
		}); err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		if err := g.stream.do(cuMemcpyHtoDAsync, from, uintptr(g.buffer[g.at])+uintptr(g.used), uintptr(n), g.stream.handle); err != nil {
			return err
		}
		if err := g.stream.Record(g.busy[g.at]); err != nil {
			return err
		}
		g.used = min((g.used+n+63)/64*64, stageBytes)
	}
	return g.stream.uploaded(to)
}

// down copies pieces to the host. It returns when all bytes are there.
func (g *staging) down(pieces ...piece) error {
	if err := g.prepare(); err != nil {
		return err
	}
	if done, err := g.stream.copiedAhead(pieces); done || err != nil {
		return err
	}
	g.at, g.used = 0, stageBytes // the next upload waits for the other buffer
	d := g.stream.device
	// fetch queues the copies of as many bytes as fit into a buffer, and returns where they belong.
	fetch := func(i int) (to [][]byte, err error) {
		if len(pieces) == 0 {
			return nil, nil
		}
		if err := g.busy[i].Synchronize(); err != nil { // the buffer may still be in use by an upload
			return nil, err
		}
		at, from, run := 0, uintptr(0), 0 // the last run bytes of the buffer are copied together
		queue := func() error {
			if run == 0 {
				return nil
			}
			return firstError(g.stream.cut(symbols[cuMemcpyDtoHAsync]), d.do(cuMemcpyDtoHAsync, uintptr(g.buffer[i])+uintptr(at-run), from, uintptr(run), g.stream.handle))
		}
		for len(pieces) > 0 && at < stageBytes {
			p := pieces[0]
			n := min(stageBytes-at, len(p.host))
			if n > 0 {
				if !p.joined || run == 0 {
					if err := queue(); err != nil {
						return nil, err
					}
					from, run = p.device, 0
				}
				to = append(to, p.host[:n])
				at, run = at+n, run+n
			}
			if n == len(p.host) {
				pieces = pieces[1:]
			} else {
				pieces[0] = piece{host: p.host[n:], device: p.device + uintptr(n)}
			}
		}
		if err := queue(); err != nil {
			return nil, err
		}
		if len(to) == 0 {
			return nil, nil
		}
		return to, d.do(cuEventRecord, g.busy[i].handle, g.stream.handle)
	}
	now, err := fetch(0)
	for i := 0; err == nil && len(now) > 0; i ^= 1 {
		var next [][]byte
		if next, err = fetch(i ^ 1); err == nil {
			err = g.busy[i].Synchronize()
		}
		if err != nil {
			return err
		}
		err = d.whileOpen(func() error {
			for at, to := 0, now; len(to) > 0; to = to[1:] {
				at += copy(to[0], g.host(i, at))
			}
			return nil
		})
		now = next
	}
	return err
}

// release changes nothing, as that of replay.
func (g *staging) release() error {
	var errs []error
	for i, e := range g.busy {
		if e != nil {
			errs = append(errs, e.release(), g.stream.device.call(cuMemFreeHost, uintptr(g.buffer[i])))
		}
	}
	return errors.Join(errs...)
}
