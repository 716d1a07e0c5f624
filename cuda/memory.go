package cuda

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
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
type usage struct {
	held, used int64
	ended      bool // the device is closed, and has none
}

// Memory returns the bytes that arrays use, and the bytes that the streams hold for these, for captures and for later arrays.
func (d *Device) Memory() (used, held int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.used, d.memory.held
}

// pool is a stream's memory. It keeps freed blocks, because a training step allocates the same sizes again, and because the driver's own
// allocations are slow and wait for the device. Small blocks are kept by size. Large ones are cut from spans of free memory, and become a part of
// them again, so that the memory of one size serves for another. Work that is repeated gets the same blocks again (Repeat), so that it can
// be replayed (replay.go).
type pool struct {
	stream   *Stream
	segments map[*segment]bool   // all memory that the driver allocated; it changes only while the device is open, since Close of the device reads it
	free     map[int64][]uintptr // small blocks that neither an array nor a capture uses, by size, the lowest address last
	spans    []span              // large free memory, in order of addresses
	work     int64               // bytes of the segments for work that is repeated
	blocks   map[uintptr]*block

	repeat  *Allocations // those of the work that is repeated
	next    int          // index in repeat of the next allocation
	lasting bool         // see Lasting

	capture *Capture            // the capture that is being recorded, or nil
	inside  map[int64][]uintptr // blocks that only this capture uses, and no array
}

// segment is memory that the driver allocated: a small block, or some large ones.
type segment struct {
	address uintptr
	size    int64
	work    bool // of blocks for work that is repeated, and for other arrays only if there is no other memory
}

// span is a free part of a segment.
type span struct {
	address uintptr
	size    int64
	of      *segment
}

// block is a part of a segment that an array or a capture uses, or a small one that is free.
type block struct {
	size     int64
	of       *segment
	used     bool     // by an array
	lasting  bool     // by an array that was allocated while Lasting
	captures int      // open captures whose launches may write into the block
	last     *Capture // the one of them that was recorded last
}

const (
	large       = 1 << 20 // bytes of the smallest large block
	largeStep   = 1 << 16 // large blocks are multiples of it
	segmentStep = 2 << 20 // and their segments of this, the size of the driver's pages
	workShare   = 4       // a segment for repeated work has at least this part of those before it,
	mostWork    = 1 << 30 // up to so many bytes: few large segments waste less between arrays of many sizes
)

func roundUp(n, step int64) int64 { return (n + step - 1) / step * step }

// sizeOf returns the size of a block for an array. A small one has one of eight sizes per power of two, at least 512 bytes, so that freed blocks
// are reused more often.
func sizeOf(bytes int64) int64 {
	if bytes > large {
		return roundUp(bytes, largeStep)
	}
	step := int64(512)
	if n := bits.Len64(uint64(max(bytes, 1) - 1)); n > 12 {
		step = 1 << (n - 4)
	}
	return roundUp(max(bytes, 1), step)
}

func (p *pool) alloc(bytes int64) (uintptr, error) {
	size := sizeOf(bytes)
	address, b := p.reuse(size, p.repeat != nil)
	if b == nil {
		s, err := p.grow(bytes, size)
		if err == nil {
			if address, b = s.address, (&block{size: size, of: s}); s.size > size {
				p.join(span{address + uintptr(size), s.size - size, s})
			}
			p.blocks[address] = b
		} else if address, b = p.reuse(size, true); b == nil {
			return 0, err
		}
	}
	b.used, b.lasting = true, p.lasting
	p.record(address)
	p.remember(address)
	p.stream.device.count(0, size)
	return address, nil
}

// grow returns new memory for a block of size bytes, which an array of bytes asks for.
func (p *pool) grow(bytes, size int64) (*segment, error) {
	d, s := p.stream.device, &segment{size: size, work: size >= large && p.repeat != nil}
	get := func() error {
		return d.whileOpen(func() error {
			err := d.call(cuMemAlloc, uintptr(unsafe.Pointer(&s.address)), uintptr(s.size))
			if err != nil {
				return err
			}
			if p.segments == nil {
				p.segments = map[*segment]bool{}
			}
			p.segments[s] = true
			d.count(s.size, 0)
			return nil
		})
	}
	if size >= large {
		s.size = roundUp(size, segmentStep)
	}
	err, exact := error(nil), s.size
	if s.work {
		s.size = max(exact, min(roundUp(p.work/workShare, segmentStep), mostWork))
		err = get()
	}
	if !s.work || isOutOfMemory(err) {
		s.size = exact
		err = p.retry(bytes, get)
	}
	if err != nil {
		return nil, err
	}
	if s.work {
		p.work += s.size
	}
	if p.blocks == nil {
		p.free, p.blocks = map[int64][]uintptr{}, map[uintptr]*block{}
	}
	return s, nil
}

// reuse returns a free block of a size, or nil. work: the block may be one of the memory for work that is repeated.
func (p *pool) reuse(size int64, work bool) (uintptr, *block) {
	for _, free := range []map[int64][]uintptr{p.inside, p.free} {
		if list := free[size]; len(list) > 0 {
			i := p.find(list)
			address := list[i]
			free[size] = slices.Delete(list, i, i+1)
			return address, p.blocks[address]
		}
	}
	i, address := p.findSpan(size, work)
	if i < 0 {
		return 0, nil
	}
	s := p.spans[i]
	p.spans = slices.Delete(p.spans, i, i+1)
	for _, rest := range []span{{s.address, int64(address - s.address), s.of}, {address + uintptr(size), int64(s.address-address) + s.size - size, s.of}} {
		if rest.size > 0 {
			p.join(rest)
		}
	}
	b := &block{size: size, of: s.of}
	p.blocks[address] = b
	return address, b
}

// findSpan returns the index of the span to cut a block from, and the block's address: one that is remembered, or the first of the smallest span
// in which it fits. The index is negative if there is none.
func (p *pool) findSpan(size int64, work bool) (at int, address uintptr) {
	if size < large {
		return -1, 0
	}
	for _, address := range p.remembered() {
		i, ok := slices.BinarySearchFunc(p.spans, address, func(s span, a uintptr) int { return cmp.Compare(s.address, a) })
		if !ok {
			i--
		}
		if i >= 0 && int64(address-p.spans[i].address)+size <= p.spans[i].size {
			return i, address
		}
	}
	at = -1
	for i, s := range p.spans {
		if s.size >= size && (work || !s.of.work) && (at < 0 || s.size < p.spans[at].size) {
			at, address = i, s.address
		}
	}
	return at, address
}

// join adds free memory to the spans.
func (p *pool) join(s span) {
	i, _ := slices.BinarySearchFunc(p.spans, s, func(a, b span) int { return cmp.Compare(a.address, b.address) })
	from, to := i, i
	if i > 0 && p.spans[i-1].of == s.of && p.spans[i-1].address+uintptr(p.spans[i-1].size) == s.address {
		from, s.address, s.size = i-1, p.spans[i-1].address, p.spans[i-1].size+s.size
	}
	if i < len(p.spans) && p.spans[i].of == s.of && s.address+uintptr(s.size) == p.spans[i].address {
		to, s.size = i+1, s.size+p.spans[i].size
	}
	p.spans = slices.Replace(p.spans, from, to, s)
}

// giveBack makes a block free that neither an array nor a capture uses.
func (p *pool) giveBack(address uintptr) {
	b := p.blocks[address]
	if b.size < large {
		give(p.free, b.size, address)
		return
	}
	delete(p.blocks, address)
	p.join(span{address, b.size, b.of})
}

// retry runs f, which allocates bytes of the device's memory. If there is too little, it frees what it can and runs f again.
func (p *pool) retry(bytes int64, f func() error) error {
	err := f()
	if isOutOfMemory(err) {
		if err := p.trim(); err != nil {
			return err
		}
		err = f()
	}
	if isOutOfMemory(err) {
		var free, total uint64
		d := p.stream.device
		if err := d.do(cuMemGetInfo, uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total))); err != nil {
			return err
		}
		used, _ := d.Memory()
		return &OutOfMemory{Asked: bytes, InUse: used, Free: int64(free)}
	}
	return err
}

// Allocations remembers the memory of the arrays of some work, for Stream.Repeat. The zero value remembers nothing.
type Allocations struct {
	last [][2]uintptr // of each array, in order, the addresses that it had the last time and the time before
}

// Repeat says that the same work follows as after the last call with a. Its arrays then get the memory that they had at that time, or the time
// before, where it is free. So the addresses of a training step become the same in all steps, or alternate, and the stream can replay the step.
func (s *Stream) Repeat(a *Allocations) {
	if s != nil {
		s.pool.repeat, s.pool.next = a, 0
	}
}

// Lasting says that the arrays that are allocated before the returned function is called stay for long, as weights do. They are no part of the work that is
// repeated, and do not divide its memory. Between Repeat and its end, work must only read them: the stream may queue it before it is asked for, or again (ahead.go).
func (s *Stream) Lasting() (end func()) {
	if s == nil {
		return func() {}
	}
	p, a, next, lasting := &s.pool, s.pool.repeat, s.pool.next, s.pool.lasting
	p.repeat, p.lasting = nil, true
	return func() { p.repeat, p.next, p.lasting = a, next, lasting }
}

// find returns the index of the block to take from a list of free blocks: one that is remembered, or the one with the lowest address.
func (p *pool) find(list []uintptr) int {
	for _, address := range p.remembered() {
		if i, ok := slices.BinarySearchFunc(list, address, downwards); ok {
			return i
		}
	}
	return len(list) - 1
}

// remembered returns the addresses that the next allocation had before.
func (p *pool) remembered() []uintptr {
	if p.repeat == nil || p.next >= len(p.repeat.last) {
		return nil
	}
	return p.repeat.last[p.next][:]
}

// remember records an allocation of the work that is repeated.
func (p *pool) remember(address uintptr) {
	if p.repeat == nil {
		return
	}
	if p.next == len(p.repeat.last) {
		p.repeat.last = append(p.repeat.last, [2]uintptr{})
	}
	if last := &p.repeat.last[p.next]; last[0] != address {
		*last = [2]uintptr{address, last[0]}
	}
	p.next++
}

func downwards(a, b uintptr) int { return cmp.Compare(b, a) }

// give adds a block to a list of free blocks.
func give(free map[int64][]uintptr, size int64, address uintptr) {
	at, _ := slices.BinarySearchFunc(free[size], address, downwards)
	free[size] = slices.Insert(free[size], at, address)
}

// begin makes c the capture that is being recorded.
func (p *pool) begin(c *Capture) { p.capture, p.inside = c, map[int64][]uintptr{} }

// end ends what begin began.
func (p *pool) end() { p.capture, p.inside = nil, nil }

// record makes the capture that is being recorded keep a block. Without one it does nothing.
func (p *pool) record(address uintptr) {
	if b := p.blocks[address]; p.capture != nil && b.last != p.capture {
		b.captures++
		b.last = p.capture
		p.capture.blocks = append(p.capture.blocks, address)
	}
}

// put takes the block of an array that was freed. A second time it does nothing, unless the memory is that of another array by then. While a capture is recorded, the capture keeps the block, because work that is already
// recorded may write into it.
func (p *pool) put(address uintptr) {
	b := p.blocks[address]
	if b == nil || !b.used { // the stream was closed, or the array freed before
		return
	}
	p.record(address)
	switch {
	case b.captures == 0:
		p.giveBack(address)
	case b.captures == 1 && b.last == p.capture:
		give(p.inside, b.size, address)
	}
	b.used = false
	p.stream.device.count(0, -b.size)
}

// takeBack makes the blocks of a closed capture the stream's again, apart from those that other captures keep.
func (p *pool) takeBack(c *Capture) {
	for _, address := range c.blocks {
		b := p.blocks[address]
		if b == nil { // the stream was closed
			continue
		}
		b.captures--
		if b.captures == 0 && !b.used {
			p.giveBack(address)
		}
	}
	c.blocks = nil
}

// extents returns the memory that arrays use.
func (p *pool) extents() (all []extent) {
	for address, b := range p.blocks {
		if b.used {
			all = append(all, extent{address, b.size, b.lasting})
		}
	}
	return all
}

// extentOf returns the memory of the array that has an address.
func (p *pool) extentOf(address uintptr) (extent, bool) {
	for at, b := range p.blocks {
		if b.used && at <= address && address < at+uintptr(b.size) {
			return extent{at, b.size, b.lasting}, true
		}
	}
	return extent{}, false
}

// idle reports whether memory belongs to the stream, and to no array or capture, or whether it belongs to a lasting array as before.
func (p *pool) idle(e extent) bool {
	if b := p.blocks[e.address]; b != nil {
		return b.size == e.size && (e.lasting && b.used && b.lasting || !e.lasting && !b.used && b.captures == 0)
	}
	i, ok := slices.BinarySearchFunc(p.spans, e.address, func(s span, a uintptr) int { return cmp.Compare(s.address, a) })
	if !ok {
		i--
	}
	return !e.lasting && i >= 0 && int64(e.address-p.spans[i].address)+e.size <= p.spans[i].size
}

// trim frees the blocks that neither an array nor a capture uses. While a capture is recorded there is no work to wait for.
func (p *pool) trim() error {
	var errs []error
	if p.capture == nil {
		errs = append(errs, p.stream.Synchronize())
	}
	d := p.stream.device
	drop := func(s *segment) {
		errs = append(errs, d.whileOpen(func() error {
			delete(p.segments, s)
			d.count(-s.size, 0)
			return d.call(cuMemFree, s.address)
		}))
	}
	for size, list := range p.free {
		for _, address := range list {
			drop(p.blocks[address].of)
			delete(p.blocks, address)
		}
		delete(p.free, size)
	}
	p.spans = slices.DeleteFunc(p.spans, func(s span) bool {
		whole := s.size == s.of.size
		if whole {
			if drop(s.of); s.of.work {
				p.work -= s.size
			}
		}
		return whole
	})
	return errors.Join(errs...)
}

// release frees all memory, also that in use. It changes nothing, as that of replay.
func (p *pool) release() error {
	var errs []error
	for s := range p.segments {
		errs = append(errs, p.stream.device.call(cuMemFree, s.address))
	}
	return errors.Join(errs...)
}

// forget makes the pool that of a stream without memory, after release.
func (p *pool) forget() {
	held, used := int64(0), int64(0)
	for s := range p.segments {
		held += s.size
	}
	for _, b := range p.blocks {
		if b.used {
			used += b.size
		}
	}
	p.stream.device.count(-held, -used)
	*p = pool{stream: p.stream}
}

func (d *Device) count(held, used int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.memory.ended {
		d.memory.held += held
		d.memory.used += used
	}
}

// Trim waits for the queued work and returns the stream's memory that neither an array nor a capture uses to the device.
func (s *Stream) Trim() error {
	if err := firstError(s.usable(), s.recording("trim")); err != nil {
		return err
	}
	return s.pool.trim()
}
