package kernel

import (
	"math/bits"
	"runtime"
	"sync"
	"unsafe"
)

// Space is memory that a kernel works in, borrowed from a pool: a kernel that is called again and again makes no garbage.
// Kernels that run at the same time have spaces of their own.
type Space[T Float] struct {
	Data []T // begins at a cache line; what is in it is left to chance
	from *memory
	loan uint64 // of from, when it was borrowed
}

// Borrow returns n numbers.
//
//	w := Borrow[T](n)
//	defer w.Return()
func Borrow[T Float](n int) Space[T] {
	var zero T
	words := (n*int(unsafe.Sizeof(zero)) + 7) / 8
	if words == 0 {
		return Space[T]{}
	}
	m := pool.take(words)
	return Space[T]{Data: unsafe.Slice((*T)(unsafe.Pointer(&m.words[0])), n), from: m, loan: m.loan}
}

// Cut takes the next n numbers of the data, up to a cache line more: a space may be several arrays.
func (s *Space[T]) Cut(n int) []T {
	v := s.Data[:n:n]
	s.Data = s.Data[min(Padded[T](n), len(s.Data)):]
	return v
}

// Padded is how many numbers n of them take up when they are followed by others that begin at a cache line.
func Padded[T Float](n int) int {
	var zero T
	line := cacheLine / int(unsafe.Sizeof(zero))
	return (n + line - 1) / line * line
}

// Return gives the memory back. Nothing may use it any more. A second Return of one Space, or of a copy of it, panics: somebody else may
// have the memory by then.
func (s Space[T]) Return() {
	if s.from != nil {
		pool.give(s.from, s.loan)
	}
}

// memory is what is borrowed and returned.
type memory struct {
	words []uint64 // begins at a cache line
	class int
	loan  uint64 // the number of times that it was given back
	since uint64 // the collection of garbage after which it was returned
}

const (
	cacheLine = 64
	// keepFor is the number of collections that memory stays in the pool without being borrowed. A training step may take
	// several; the memory of a model that is not used any more is to go back.
	keepFor = 64
)

// pool holds memory that has been returned. sync.Pool would lose it at every second collection, of which a training
// step may have more than that.
var pool workspaces

type workspaces struct {
	mutex       sync.Mutex
	free        [4 * 64][]*memory // of each class, that returned last at the end
	collections uint64
	watching    bool
}

// classOf returns the smallest class with room for so many words, and its size: four classes from each power of two to the
// next, so that no more than a fifth is wasted.
func classOf(words int) (class, size int) {
	words = max(words, 64)
	shift := bits.Len(uint(words-1)) - 3
	quarters := (words + 1<<shift - 1) >> shift // 5 to 8
	return 4*shift + quarters - 5, quarters << shift
}

func (p *workspaces) take(words int) *memory {
	class, size := classOf(words)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if free := p.free[class]; len(free) > 0 {
		m := free[len(free)-1]
		free[len(free)-1] = nil
		p.free[class] = free[:len(free)-1]
		return m
	}
	if !p.watching {
		p.watching = true
		p.watch()
	}
	const line = cacheLine / 8
	w := make([]uint64, size+line-1)
	skip := int(-uintptr(unsafe.Pointer(&w[0])) % cacheLine / 8)
	return &memory{words: w[skip : skip+size : skip+size], class: class}
}

func (p *workspaces) give(m *memory, loan uint64) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if m.loan != loan {
		panic("kernel: a workspace is returned twice")
	}
	m.loan++
	m.since = p.collections
	p.free[m.class] = append(p.free[m.class], m)
}

// ReleaseWorkspaces gives all memory of the pool that is not borrowed to the garbage collector, for programs that measure memory.
func ReleaseWorkspaces() {
	pool.mutex.Lock()
	defer pool.mutex.Unlock()
	clear(pool.free[:])
}

// watch counts the collections: a finalizer runs after each one.
func (p *workspaces) watch() {
	runtime.SetFinalizer(&struct{ p *workspaces }{p}, func(w *struct{ p *workspaces }) {
		w.p.collected()
		w.p.watch()
	})
}

// collected drops what has not been borrowed for long.
func (p *workspaces) collected() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.collections++
	for class, free := range p.free {
		n := 0 // those returned earlier come first
		for n < len(free) && p.collections-free[n].since > keepFor {
			n++
		}
		if n > 0 {
			kept := copy(free, free[n:])
			clear(free[kept:])
			p.free[class] = free[:kept]
		}
	}
}
