package kernel

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Memory that a kernel works in, or that is kept between the passes of an operator, is borrowed and given back: after the
// first run nothing is allocated. What is in it when it is borrowed is left to chance. The garbage collector takes what
// nobody has borrowed for a while.

// pools hold slices by the class of their capacity.
var pools32, pools64 [64 * sizeSteps]sync.Pool

// sizeSteps is the number of capacities between a power of two and the next: at most an eighth of a slice goes unused.
const sizeSteps = 8

// sizeClass returns the class of slices of n elements, at least 1, and their capacity.
func sizeClass(n int) (class, capacity int) {
	// n-1 has the form m·2^shift + rest with m from sizeSteps to 2·sizeSteps-1, or is below.
	shift := max(bits.Len(uint(n-1))-4, 0)
	m := (n - 1) >> shift
	return shift*sizeSteps + m, (m + 1) << shift
}

func poolOf[T Float](class int) *sync.Pool {
	var zero T
	if unsafe.Sizeof(zero) == 4 {
		return &pools32[class]
	}
	return &pools64[class]
}

// Borrow returns a slice of n elements, whatever they are.
func Borrow[T Float](n int) []T {
	if n == 0 {
		return []T{}
	}
	class, capacity := sizeClass(n)
	if p, ok := poolOf[T](class).Get().(*T); ok {
		return unsafe.Slice(p, capacity)[:n]
	}
	return make([]T, n, capacity)
}

// GiveBack ends the loan of a slice that Borrow has returned; nobody may use it from then on.
func GiveBack[T Float](s []T) {
	if cap(s) == 0 {
		return
	}
	class, _ := sizeClass(cap(s))
	poolOf[T](class).Put(unsafe.SliceData(s))
}

// workspace is what a kernel has borrowed.
type workspace[T Float] struct {
	slices [16][]T
	used   int
}

func (w *workspace[T]) take(n int) []T {
	s := Borrow[T](n)
	w.slices[w.used] = s
	w.used++
	return s
}

func (w *workspace[T]) giveBack() {
	for _, s := range w.slices[:w.used] {
		GiveBack(s)
	}
	w.used = 0
}
