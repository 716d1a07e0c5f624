package cuda

import (
	"fmt"
	"math"
	"unsafe"
)

// Element is what arrays are of.
type Element interface {
	~float32 | ~float64 | ~int32 | ~uint8 | BFloat16
}

// Array is numbers in the device's memory, in the order of the stream that it was made on. The zero Array is no array: an
// operand that is absent. Copies of an Array are the same array.
type Array[T Element] struct {
	stream  *Stream
	address uintptr
	n       int
}

// NewArray returns n elements of any value.
func NewArray[T Element](s *Stream, n int) (Array[T], error) {
	if n < 0 {
		return Array[T]{}, fmt.Errorf("cuda: array of %d elements", n)
	}
	if int64(n) > math.MaxInt64/size[T]() {
		return Array[T]{}, fmt.Errorf("cuda: array of %d elements of %d bytes, want less than 2^63 bytes", n, size[T]())
	}
	if err := s.usable(); err != nil {
		return Array[T]{}, err
	}
	address, err := s.pool.alloc(int64(n) * size[T]())
	if err != nil {
		return Array[T]{}, err
	}
	return Array[T]{s, address, n}, nil
}

// Upload returns an array of what is on the host.
func Upload[T Element](s *Stream, host []T) (Array[T], error) {
	a, err := NewArray[T](s, len(host))
	if err != nil {
		return a, err
	}
	if err := a.CopyFrom(s, host); err != nil {
		a.Free()
		return Array[T]{}, err
	}
	return a, nil
}

// ArrayAt is n elements at an address in the device's memory that someone else allocated, and frees. The kernels may read and
// write sixteen bytes at once, and want operands at a multiple of that.
func ArrayAt[T Element](s *Stream, address uintptr, n int) Array[T] { return Array[T]{s, address, n} }

func size[T Element]() int64 {
	var v T
	return int64(unsafe.Sizeof(v))
}

// Len is the number of elements.
func (a Array[T]) Len() int { return a.n }

// Address is where the elements are, in the device's memory.
func (a Array[T]) Address() uintptr { return a.address }

// Absent reports whether there is no array.
func (a Array[T]) Absent() bool { return a.stream == nil }

// Free hands the memory on to whoever next asks for some on the array's stream. Free an array once; a zero one needs none.
func (a Array[T]) Free() {
	if a.stream != nil {
		a.stream.pool.put(a.address)
	}
}

// Slice is n elements of the array, from an index on: the same memory. It is not freed itself.
func (a Array[T]) Slice(from, n int) Array[T] {
	if from < 0 || n < 0 || n > a.n-from {
		panic(fmt.Sprintf("cuda: %d elements from %d of an array of %d", n, from, a.n)) // like a slice's
	}
	return Array[T]{a.stream, a.address + uintptr(int64(from)*size[T]()), n}
}

// CopyFrom copies from the host, which may change its numbers as soon as CopyFrom returns.
func (a Array[T]) CopyFrom(s *Stream, host []T) error {
	if len(host) != a.n {
		return fmt.Errorf("cuda: copy: the host has %d elements, want %d", len(host), a.n)
	}
	if err := s.usable(); err != nil {
		return err
	}
	return s.stage.up(a.address, bytesOf(host))
}

// CopyTo copies to the host, and returns when the numbers are there.
func (a Array[T]) CopyTo(s *Stream, host []T) error {
	if len(host) != a.n {
		return fmt.Errorf("cuda: copy: the host has %d elements, want %d", len(host), a.n)
	}
	if err := s.usable(); err != nil {
		return err
	}
	return s.stage.down(bytesOf(host), a.address)
}

// Fill sets every byte.
func (a Array[T]) Fill(s *Stream, value byte) error {
	if err := s.usable(); err != nil || a.n == 0 {
		return err
	}
	return s.do(cuMemsetD8Async, a.address, uintptr(value), uintptr(int64(a.n)*size[T]()), s.handle)
}

func bytesOf[T Element](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), int64(len(v))*size[T]())
}

// CopyOf queues a copy on the device, from an array of the same length.
func (a Array[T]) CopyOf(s *Stream, from Array[T]) error {
	if a.n != from.n {
		return fmt.Errorf("cuda: copy: %d elements, want %d", from.n, a.n)
	}
	return a.copy(s, from)
}

// copy queues a copy on the device.
func (a Array[T]) copy(s *Stream, from Array[T]) error {
	if err := s.usable(); err != nil || from.n == 0 {
		return err
	}
	return s.do(cuMemcpyDtoDAsync, a.address, from.address, uintptr(int64(from.n)*size[T]()), s.handle)
}
