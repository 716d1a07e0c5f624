//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package tensorfile

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapped is a file in the address space. Its pages belong to the operating system's cache. They are given back as soon as they are
// read, so the process never holds a second copy of the model.
type mapped struct {
	*os.File
	data []byte
}

// Map maps a file into memory where the system can. Closing what it returns closes the file.
func Map(f *os.File, size int64) Contents {
	if size < 1 || size > math.MaxInt {
		return Streamed{f}
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil { // not every file system can
		return Streamed{f}
	}
	return &mapped{f, data}
}

// Close unmaps and closes the file.
func (m *mapped) Close() error {
	if m.data != nil {
		if err := unix.Munmap(m.data); err != nil {
			return err
		}
		m.data = nil
	}
	return m.File.Close()
}

// Pieces implements Contents.
func (m *mapped) Pieces(off, n int64, f func([]byte) error) (err error) {
	// Where the file has been cut off since it was opened, reading its memory is a fault, which would end the program.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !m.faulted(r) {
				panic(r)
			}
			err = fmt.Errorf("cannot read within %d bytes at %d: the file has become shorter", n, off)
		}
	}()
	for n > 0 {
		if err := operation("read", m.Name()); err != nil {
			return err
		}
		size := min(n, pieceSize)
		if err := f(m.data[off : off+size : off+size]); err != nil {
			return err
		}
		m.release(off, off+size)
		off += size
		n -= size
	}
	return nil
}

// faulted reports whether a panic came from reading the mapped memory.
func (m *mapped) faulted(r any) bool {
	fault, ok := r.(interface{ Addr() uintptr })
	if !ok {
		return false
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(m.data)))
	return fault.Addr() >= start && fault.Addr()-start < uintptr(len(m.data))
}

// release gives the pages of data[from:to] back. They are read again when they are needed again.
func (m *mapped) release(from, to int64) {
	page := int64(os.Getpagesize())
	from -= from % page
	_ = unix.Madvise(m.data[from:to], unix.MADV_DONTNEED) // a hint: pages that cannot be given back are kept
}
