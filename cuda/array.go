package cuda

import (
	"fmt"
	"math"
	"unsafe"
)

// Element is a type that the elements of an Array can have.
type Element interface {
	~float32 | ~float64 | ~int32 | ~int | ~uint8 | BFloat16
}

// Array is an array of numbers in the device's memory. It belongs to the stream that it was made on, whose work runs in order. The zero
// Array stands for an absent operand. A copy of an Array refers to the same memory.
type Array[T Element] struct {
	stream  *Stream
	address uintptr
	n       int
}

// NewArray allocates n elements. Their values are arbitrary. The error is an *OutOfMemory if the device has too little memory.
func NewArray[T Element](s *Stream, n int) (Array[T], error) {
	if n < 0 {
		return Array[T]{}, fmt.Errorf("cuda: array of %d elements", n)
	}
	if int64(n) > math.MaxInt64/size[T]() {
		return Array[T]{}, fmt.Errorf("cuda: array of %d elements of %d bytes, want less than 2^63 bytes", n, size[T]())
	}
	if err := s.open(); err != nil {
		return Array[T]{}, err
	}
	address, err := s.pool.alloc(int64(n) * size[T]())
	if err != nil {
		return Array[T]{}, err
	}
	return Array[T]{s, address, n}, nil
}

// Upload returns a new array with a copy of the host's numbers.
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

// ArrayAt returns an array of n elements at an address in the device's memory. The caller allocates and frees that memory. The address
// must be a multiple of 16, because kernels read and write 16 bytes at a time.
func ArrayAt[T Element](s *Stream, address uintptr, n int) Array[T] { return Array[T]{s, address, n} }

func size[T Element]() int64 {
	var v T
	return int64(unsafe.Sizeof(v))
}

// Len returns the number of elements.
func (a Array[T]) Len() int { return a.n }

// Address returns the address of the first element in the device's memory.
func (a Array[T]) Address() uintptr { return a.address }

// Stream returns the stream that the array was made on, nil for a zero Array.
func (a Array[T]) Stream() *Stream { return a.stream }

// Absent reports whether a is the zero Array, which stands for an absent operand.
func (a Array[T]) Absent() bool { return a.stream == nil }

// Free returns the memory to the array's stream, which uses it for later arrays. Free an array once. Free of a zero Array does nothing. If work of another stream uses the array, let
// the array's stream wait for that work before (Stream.Wait).
func (a Array[T]) Free() {
	if a.stream != nil {
		a.stream.pool.put(a.address)
	}
}

// Slice returns the n elements from index from on. It shares the array's memory and must not be freed. Like slicing in Go, it panics if the
// range is not within the array.
func (a Array[T]) Slice(from, n int) Array[T] {
	if from < 0 || n < 0 || n > a.n-from {
		panic(fmt.Sprintf("cuda: %d elements from %d of an array of %d", n, from, a.n))
	}
	return Array[T]{a.stream, a.address + uintptr(int64(from)*size[T]()), n}
}

// CopyFrom copies host into the array. The lengths must be equal. The caller may change host as soon as CopyFrom returns.
func (a Array[T]) CopyFrom(s *Stream, host []T) error {
	return a.CopyPartsFrom(s, host)
}

// CopyPartsFrom is CopyFrom for several slices of the host, which stand one after another in the array.
func (a Array[T]) CopyPartsFrom(s *Stream, hosts ...[]T) error {
	n := 0
	for _, host := range hosts {
		n += len(host)
	}
	if n != a.n {
		return fmt.Errorf("cuda: copy: the host has %d elements, want %d", n, a.n)
	}
	if err := s.usable(); err != nil {
		return err
	}
	pieces, at := make([]piece, len(hosts)), a.address
	for i, host := range hosts {
		pieces[i] = piece{host: bytesOf(host), device: at, joined: i > 0}
		at += uintptr(len(pieces[i].host))
	}
	return s.stage.up(pieces...)
}

// CopyTo copies the array to host. The lengths must be equal. It returns when the numbers are in host.
func (a Array[T]) CopyTo(s *Stream, host []T) error {
	if len(host) != a.n {
		return fmt.Errorf("cuda: copy: the host has %d elements, want %d", len(host), a.n)
	}
	if err := s.usable(); err != nil {
		return err
	}
	return s.stage.down(piece{host: bytesOf(host), device: a.address})
}

// CopyAllTo copies arrays to the host, each to the slice at its index, whose length must be equal. It waits once for all of them.
func CopyAllTo[T Element](s *Stream, arrays []Array[T], hosts [][]T) error {
	if len(hosts) != len(arrays) {
		return fmt.Errorf("cuda: copy: the host has %d slices, want %d", len(hosts), len(arrays))
	}
	if err := s.usable(); err != nil {
		return err
	}
	pieces := make([]piece, len(arrays))
	for i, a := range arrays {
		if len(hosts[i]) != a.n {
			return fmt.Errorf("cuda: copy: slice %d of the host has %d elements, want %d", i, len(hosts[i]), a.n)
		}
		pieces[i] = piece{host: bytesOf(hosts[i]), device: a.address}
		if i > 0 && a.n > 0 && s.pool.blocks[a.address] == nil {
			before := pieces[i-1]
			pieces[i].joined = a.stream == s && arrays[i-1].stream == s && len(before.host) > 0 && a.address == before.device+uintptr(len(before.host))
		}
	}
	return s.stage.down(pieces...)
}

// Fill queues setting every byte of the array to value.
func (a Array[T]) Fill(s *Stream, value byte) error {
	if err := s.usable(); err != nil || a.n == 0 {
		return err
	}
	return s.queue(fill, append(s.words[:0], uint64(a.address), uint64(value), uint64(int64(a.n)*size[T]())))
}

func bytesOf[T Element](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), int64(len(v))*size[T]())
}

// CopyOf queues a copy of from into the array. The lengths must be equal.
func (a Array[T]) CopyOf(s *Stream, from Array[T]) error {
	if a.n != from.n {
		return fmt.Errorf("cuda: copy: %d elements, want %d", from.n, a.n)
	}
	return a.copy(s, from)
}

// copy queues a copy of all elements of from, which must not be longer than the array.
func (a Array[T]) copy(s *Stream, from Array[T]) error {
	if err := s.usable(); err != nil || from.n == 0 {
		return err
	}
	return s.queue(copying, append(s.words[:0], uint64(a.address), uint64(from.address), uint64(int64(from.n)*size[T]())))
}
