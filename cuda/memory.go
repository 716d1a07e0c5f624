package cuda

import (
	"errors"
	"fmt"
	"math/bits"
	"unsafe"
)

// OutOfMemory is the error of an allocation that does not fit into the device's memory. The device stays usable.
type OutOfMemory struct {
	Asked, InUse, Free int64 // bytes: asked for, used by this program's arrays, and free on the device
}

func (e *OutOfMemory) Error() string {
	return fmt.Sprintf("cuda: out of memory: %d bytes asked for, %d in use here, %d free on the device", e.Asked, e.InUse, e.Free)
}

// usage counts a device's memory, in bytes.
type usage struct{ held, used int64 }

// Memory returns the bytes that arrays use, and the bytes that the streams hold for these and for later arrays.
func (d *Device) Memory() (used, held int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.used, d.memory.held
}

// pool is a stream's memory. It keeps freed blocks by size, because a training step allocates the same sizes again, and because the
// driver's own allocations are slow and wait for the device.
type pool struct {
	stream *Stream
	free   map[int64][]uintptr
	sizes  map[uintptr]int64 // sizes of all blocks, free or in use, by address
}

// sizeOf rounds up to one of eight sizes per power of two, at least 512 bytes, so that freed blocks are reused more often.
func sizeOf(bytes int64) int64 {
	step := int64(512)
	if n := bits.Len64(uint64(max(bytes, 1) - 1)); n > 12 {
		step = 1 << (n - 4)
	}
	return (max(bytes, 1) + step - 1) / step * step
}

func (p *pool) alloc(bytes int64) (uintptr, error) {
	d, size := p.stream.device, sizeOf(bytes)
	if list := p.free[size]; len(list) > 0 {
		address := list[len(list)-1]
		p.free[size] = list[:len(list)-1]
		d.count(0, size)
		return address, nil
	}
	var address uintptr
	err := d.do(cuMemAlloc, uintptr(unsafe.Pointer(&address)), uintptr(size))
	if isOutOfMemory(err) {
		if err := p.trim(); err != nil {
			return 0, err
		}
		err = d.do(cuMemAlloc, uintptr(unsafe.Pointer(&address)), uintptr(size))
	}
	if isOutOfMemory(err) {
		var free, total uint64
		if err := d.do(cuMemGetInfo, uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total))); err != nil {
			return 0, err
		}
		used, _ := d.Memory()
		return 0, &OutOfMemory{Asked: bytes, InUse: used, Free: int64(free)}
	}
	if err != nil {
		return 0, err
	}
	if p.sizes == nil {
		p.free, p.sizes = map[int64][]uintptr{}, map[uintptr]int64{}
	}
	p.sizes[address] = size
	d.count(size, size)
	return address, nil
}

func (p *pool) put(address uintptr) {
	size, ok := p.sizes[address]
	if !ok { // the stream was closed
		return
	}
	p.free[size] = append(p.free[size], address)
	p.stream.device.count(0, -size)
}

// trim frees the blocks that no array uses.
func (p *pool) trim() error {
	errs := []error{p.stream.Synchronize()}
	for size, list := range p.free {
		for _, address := range list {
			errs = append(errs, p.stream.device.do(cuMemFree, address))
			delete(p.sizes, address)
			p.stream.device.count(-size, 0)
		}
		delete(p.free, size)
	}
	return errors.Join(errs...)
}

// release frees all blocks, also those in use.
func (p *pool) release() error {
	free := map[uintptr]bool{}
	for _, list := range p.free {
		for _, address := range list {
			free[address] = true
		}
	}
	var errs []error
	for address, size := range p.sizes {
		errs = append(errs, p.stream.device.call(cuMemFree, address))
		used := size
		if free[address] {
			used = 0
		}
		p.stream.device.count(-size, -used)
	}
	p.free, p.sizes = nil, nil
	return errors.Join(errs...)
}

func (d *Device) count(held, used int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory.held += held
	d.memory.used += used
}

// Trim waits for the queued work and returns the stream's memory that no array uses to the device.
func (s *Stream) Trim() error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.pool.trim()
}
