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

// mapped is a file that is mapped into memory. Its pages belong to the cache of the operating system. The process releases each page
// after reading it, so it never holds a second copy of the model.
type mapped struct {
	*os.File
	data []byte
}

// Map maps a file into memory, or reads it into a buffer where the system cannot map it. Closing the contents closes the file.
func Map(f *os.File, size int64) Contents {
	if size < 1 || size > math.MaxInt {
		return Streamed{f}
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil { // some file systems cannot map files
		return Streamed{f}
	}
	return &mapped{f, data}
}

func mappedBytes(c Contents, off, n int64) ([]byte, bool) {
	m, ok := c.(*mapped)
	if !ok {
		return nil, false
	}
	return m.data[off : off+n : off+n], true
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
	// If the file has become shorter since it was opened, reading the memory is a fault. By default a fault ends the program.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !m.faulted(r) {
				panic(r)
			}
			err = shorter(off, n)
		}
	}()
	end := off + n
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
	// Up to the end of a page, the memory after the end of the file is zero, and reading it is no fault.
	info, err := m.Stat()
	if err == nil && info.Size() < end {
		err = shorter(info.Size(), end-info.Size())
	}
	return err
}

func shorter(off, n int64) error {
	return fmt.Errorf("cannot read within %d bytes at %d: the file has become shorter", n, off)
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

// release returns the pages of data[from:to] to the system. A later access reads them from the file again.
func (m *mapped) release(from, to int64) {
	page := int64(os.Getpagesize())
	from -= from % page
	_ = unix.Madvise(m.data[from:to], unix.MADV_DONTNEED) // only a hint, so an error does no harm
}
