package work

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

func TestSpaceSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(0, 3000), rapid.IntRange(0, 1<<22)).Draw(t, "n")
		w := Borrow[float32](n)
		defer w.Return()
		if len(w.Data) != n {
			t.Fatalf("%d numbers, want %d", len(w.Data), n)
		}
		if n > 0 && uintptr(unsafe.Pointer(&w.Data[0]))%cacheLine != 0 {
			t.Fatal("does not begin at a cache line")
		}
		class, size := classOf((n + 1) / 2)
		if size < (n+1)/2 || n > 1000 && float64(size) > 1.25*float64((n+1)/2) {
			t.Fatalf("class of %d words has %d", (n+1)/2, size)
		}
		if c, s := classOf(size); c != class || s != size {
			t.Fatalf("as many words as class %d has are of class %d", class, c)
		}
		if c, _ := classOf(size + 1); c != class+1 {
			t.Fatalf("one word more than class %d has is of class %d", class, c)
		}
	})
}

func TestSpaceCut(t *testing.T) {
	w := Borrow[float32](padded[float32](3) + padded[float32](16) + 1)
	defer w.Return()
	a, b, c := w.Cut(3), w.Cut(16), w.Cut(1)
	if len(a) != 3 || len(b) != 16 || len(c) != 1 || cap(a) != 3 {
		t.Fatal("wrong lengths")
	}
	if uintptr(unsafe.Pointer(&b[0]))-uintptr(unsafe.Pointer(&a[0])) != 64 || uintptr(unsafe.Pointer(&c[0]))-uintptr(unsafe.Pointer(&b[0])) != 64 {
		t.Error("parts do not begin at cache lines")
	}
}

// Spaces that are borrowed at the same time share no memory.
func TestSpaceConcurrent(t *testing.T) {
	var wait sync.WaitGroup
	for g := range 8 {
		wait.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			for range 500 {
				w, v := Borrow[float64](1+r.IntN(500)), Borrow[float32](1+r.IntN(500))
				for i := range w.Data {
					w.Data[i] = float64(g)
				}
				for i := range v.Data {
					v.Data[i] = float32(g)
				}
				runtime.Gosched()
				for _, x := range w.Data {
					if x != float64(g) {
						t.Error("two spaces share memory")
						return
					}
				}
				for _, x := range v.Data {
					if x != float32(g) {
						t.Error("two spaces share memory")
						return
					}
				}
				w.Return()
				v.Return()
			}
		})
	}
	wait.Wait()
}

func TestSpaceMakesNoGarbage(t *testing.T) {
	use := func() {
		a, b := Borrow[float32](1000), Borrow[float64](1000)
		a.Return()
		b.Return()
	}
	if n := testing.AllocsPerRun(100, use); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSpaceGoesBack(t *testing.T) {
	var p workspaces
	p.watching = true // only the test calls collected
	p.give(p.take(1000), 0)
	a := p.take(2000)
	for range keepFor {
		p.collected()
	}
	p.give(a, 0)
	class, _ := classOf(1000)
	if len(p.free[class]) != 1 {
		t.Fatal("memory was dropped too early")
	}
	p.collected()
	if other, _ := classOf(2000); len(p.free[class]) != 0 || len(p.free[other]) != 1 {
		t.Error("unused memory was not dropped, or used memory was")
	}
}

// A second Return panics: the memory would be lent to two kernels at the same time.
func TestSpaceReturnedTwice(t *testing.T) {
	panics := func(f func()) (text any) {
		defer func() { text = recover() }()
		f()
		return nil
	}
	s := Borrow[float32](100)
	s.Return()
	if got := panics(s.Return); got == nil {
		t.Error("a second Return does not panic")
	}
	again := Borrow[float32](100) // the same memory
	if got := panics(s.Return); got == nil {
		t.Error("a second Return does not panic after the memory was borrowed again")
	}
	again.Return()
	Space[float32]{}.Return()
	Space[float32]{}.Return()
}
