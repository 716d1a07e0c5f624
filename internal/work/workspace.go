package work

import (
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"unsafe"
)

// Space is working memory for a kernel, borrowed from a pool, so that repeated calls of a kernel make no garbage. Spaces that are borrowed at
// the same time do not overlap.
type Space[T float32 | float64] struct {
	Data []T // begins at a cache line; its contents are arbitrary
	from *memory
	loan uint64 // from.loan at the time of borrowing
}

// Borrow returns a Space of n elements.
//
//	w := Borrow[T](n)
//	defer w.Return()
func Borrow[T float32 | float64](n int) Space[T] {
	var zero T
	words := (n*int(unsafe.Sizeof(zero)) + 7) / 8
	if words == 0 {
		return Space[T]{}
	}
	m := pool.take(words)
	return Space[T]{Data: unsafe.Slice((*T)(unsafe.Pointer(&m.words[0])), n), from: m, loan: m.loan}
}

// Cut removes the next n elements from Data and returns them, so that a space can hold several arrays. Data then begins at the next cache
// line.
func (s *Space[T]) Cut(n int) []T {
	v := s.Data[:n:n]
	s.Data = s.Data[min(padded[T](n), len(s.Data)):]
	return v
}

// padded returns n rounded up to a whole number of cache lines.
func padded[T float32 | float64](n int) int {
	var zero T
	line := cacheLine / int(unsafe.Sizeof(zero))
	return (n + line - 1) / line * line
}

// Return returns the memory to the pool. Nothing may use it after that. A second Return of a Space or of its copies panics, since another
// kernel may have borrowed the memory.
func (s Space[T]) Return() {
	if s.from != nil {
		pool.give(s.from, s.loan)
	}
}

// memory is the unit that the pool lends.
type memory struct {
	words []uint64 // begins at a cache line
	class int
	user  int    // the number of the processor that returned it
	loan  uint64 // the number of times that it was returned
	since uint64 // the number of garbage collections before it was last returned
}

const (
	cacheLine = 64
	// keepFor is the number of garbage collections that memory stays in the pool without being borrowed. A training step can have several
	// collections. The memory of a model that is no longer used should be freed.
	keepFor = 64
)

// pool holds memory that has been returned. A sync.Pool would drop it after two garbage collections, and a training step can have more.
var pool workspaces

type workspaces struct {
	mutex       sync.Mutex
	free        [4 * 64][]*memory // by class, in the order in which they were returned
	collections uint64
	watching    bool
}

// classOf returns the smallest class with room for words, and its size in words. There are four classes from each power of two to the next,
// so at most a fifth of the memory is unused.
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
		// What this processor has used last may be in its own cache, and what another one has written is in that one's.
		at, here := len(free)-1, processor()
		for i := at; i >= 0; i-- {
			if free[i].user == here {
				at = i
				break
			}
		}
		m := free[at]
		p.free[class] = slices.Delete(free, at, at+1)
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
		panic("work: a workspace is returned twice")
	}
	m.loan++
	m.since, m.user = p.collections, processor()
	p.free[m.class] = append(p.free[m.class], m)
}

// ReleaseWorkspaces drops all memory of the pool that is not borrowed, for programs that measure memory.
func ReleaseWorkspaces() {
	pool.mutex.Lock()
	defer pool.mutex.Unlock()
	clear(pool.free[:])
}

// watch calls collected after every garbage collection, through a finalizer.
func (p *workspaces) watch() {
	runtime.SetFinalizer(&struct{ p *workspaces }{p}, func(w *struct{ p *workspaces }) {
		w.p.collected()
		w.p.watch()
	})
}

// collected drops memory that has not been borrowed for keepFor collections.
func (p *workspaces) collected() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.collections++
	for class, free := range p.free {
		n := 0 // memory that was returned earlier comes first
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
