package cuda

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/gputest"
)

// filled returns an array of n elements with the value v.
func filled(t *testing.T, s *Stream, n int, v float32) Array[float32] {
	t.Helper()
	a, err := Upload(s, slices.Repeat([]float32{v}, n))
	do(t, err)
	return a
}

// holds fails unless all elements of a are v.
func holds(t *testing.T, s *Stream, what string, a Array[float32], v float32) {
	t.Helper()
	host := make([]float32, a.Len())
	do(t, a.CopyTo(s, host))
	if !slices.Equal(host, slices.Repeat([]float32{v}, a.Len())) {
		t.Errorf("%s is %v..., want %v", what, host[:1], v)
	}
}

// sum queues a new array = a + b.
func sum(s *Stream, a, b Array[float32]) (Array[float32], error) {
	c, err := NewArray[float32](s, a.Len())
	if err != nil {
		return c, err
	}
	if err := Add(s, a, b, c); err != nil {
		c.Free()
		return Array[float32]{}, err
	}
	return c, nil
}

// A captured function allocates temporaries and a result, and frees an older array. Afterwards no array gets the capture's memory, whatever is
// allocated, launched and freed, before Close. After Close the stream has all of it again.
func TestCaptureMemory(t *testing.T) {
	s := open(t)
	const n = 1000
	x, old, last := filled(t, s, n, 1), filled(t, s, n, 7), filled(t, s, n, 8)
	do(t, Add(s, x, old, old)) // loads the kernel
	var temporary []uintptr
	var result Array[float32]
	c, err := s.Capture(func() error {
		old.Free()
		a, err := sum(s, x, x)
		do(t, err)
		b, err := sum(s, a, a)
		do(t, err)
		a.Free()
		temporary = append(temporary, old.address, a.address, b.address)
		d, err := sum(s, b, x) // in the memory of a
		do(t, err)
		if !slices.Contains(temporary[:2], d.address) {
			t.Error("inside the capture, an array does not reuse freed memory")
		}
		b.Free()
		result = d
		do(t, Add(s, x, x, last))
		last.Free()
		temporary = append(temporary, last.address)
		return nil
	})
	do(t, err)
	var others []Array[float32]
	check := func(what string) {
		t.Helper()
		for range 5 {
			a := filled(t, s, n, -1)
			if slices.Contains(temporary, a.address) {
				t.Fatalf("%s, an array got the capture's memory", what)
			}
			others = append(others, a)
		}
		for _, v := range []float32{3, 4} {
			host := slices.Repeat([]float32{v}, n)
			do(t, x.CopyFrom(s, host), c.Launch(s))
			for _, a := range others {
				holds(t, s, what+", another array", a, -1)
			}
		}
	}
	check("after the capture")
	holds(t, s, "the result", result, 20)
	result.Free()
	check("after the result was freed")
	do(t, s.Trim())
	check("after Trim")
	do(t, c.Close(), c.Close())
	_, held := s.device.Memory()
	for i := 0; len(temporary) > 0 && i < 10; i++ {
		a := filled(t, s, n, 0)
		temporary = slices.DeleteFunc(temporary, func(address uintptr) bool { return address == a.address })
	}
	if _, now := s.device.Memory(); len(temporary) > 0 || now-held > 10*sizeOf(4*n) {
		t.Errorf("after Close, %d blocks of the capture are not used again", len(temporary))
	}
}

// An array that a captured function allocated is its owner's after Close too.
func TestCaptureResultOutlivesIt(t *testing.T) {
	s := open(t)
	x := filled(t, s, 100, 2)
	do(t, Add(s, x, x, x))
	var result Array[float32]
	c, err := s.Capture(func() (err error) { result, err = sum(s, x, x); return err })
	do(t, err, c.Launch(s), c.Close())
	other := filled(t, s, 100, 9)
	holds(t, s, "the result", result, 8)
	if other.address == result.address {
		t.Error("another array got the result's memory")
	}
	result.Free()
	if a := filled(t, s, 100, 0); a.address != result.address {
		t.Error("the memory of the freed result is not used again")
	}
}

// Memory that two captures write into is free only after both are closed.
func TestCapturesShareMemory(t *testing.T) {
	s := open(t)
	x := filled(t, s, 100, 2)
	do(t, Add(s, x, x, x))
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		var shared Array[float32]
		first, err := s.Capture(func() (err error) { shared, err = sum(s, x, x); return err })
		do(t, err)
		second, err := s.Capture(func() error {
			do(t, Add(s, x, x, shared))
			shared.Free()
			a, err := sum(s, x, x)
			if a.address == shared.address {
				t.Error("a result of the second capture got memory that the first one overwrites")
			}
			a.Free()
			return err
		})
		do(t, err)
		both := []*Capture{first, second}
		do(t, both[order[0]].Close())
		var taken []Array[float32]
		for range 3 {
			taken = append(taken, filled(t, s, 100, 5))
		}
		do(t, both[order[1]].Launch(s))
		for _, a := range taken {
			holds(t, s, "another array", a, 5)
			a.Free()
		}
		do(t, both[order[1]].Close())
		used, _ := s.device.Memory()
		if used != sizeOf(400) {
			t.Errorf("%d bytes are in use, want those of x", used)
		}
	}
}

// A capture that fails leaves the stream as it was: nothing stays recorded and no memory is lost, wherever the device's memory ends.
func TestCaptureFails(t *testing.T) {
	s := open(t)
	const n = 1000
	x, idle := filled(t, s, n, 1), filled(t, s, 5*n, 0)
	do(t, Add(s, x, x, x))
	idle.Free() // memory that alloc can return to the device
	body := func() error {
		var err error
		var all temporaries
		defer func() { all.free() }()
		for i := range 3 {
			a := take[float32](s, &all, n*(i+1), &err)
			if err == nil {
				err = Add(s, x, x, a)
			}
		}
		return err
	}
	used, _ := s.device.Memory()
	intact := func(what string) {
		t.Helper()
		if now, held := s.device.Memory(); now != used || held < now {
			t.Errorf("%s: %d bytes are in use, want %d; %d are held", what, now, used, held)
		}
		if s.pool.capture != nil || s.pool.inside != nil {
			t.Errorf("%s: the stream is still being captured", what)
		}
		do(t, Add(s, x, x, x), s.Synchronize())
	}
	wrong := errors.New("wrong")
	if c, err := s.Capture(func() error { return errors.Join(body(), wrong) }); c != nil || !errors.Is(err, wrong) {
		t.Errorf("f fails: %v, %v", c, err)
	}
	intact("f fails")
	func() {
		defer func() {
			if recover() != wrong {
				t.Error("the panic of f was lost")
			}
		}()
		s.Capture(func() error { do(t, body()); panic(wrong) })
	}()
	intact("f panics")
	host := make([]float32, n)
	for what, f := range map[string]func() error{
		"copy":        func() error { return errors.Join(x.CopyFrom(s, host), x.CopyTo(s, host)) },
		"synchronize": s.Synchronize,
		"trim":        s.Trim,
		"close":       s.Close,
		"capture":     func() error { _, err := s.Capture(body); return err },
	} {
		c, err := s.Capture(f)
		if c != nil || err == nil || !strings.Contains(err.Error(), "the stream is being captured") {
			t.Errorf("%s inside a capture: %v, %v", what, c, err)
		}
		intact(what)
	}
	c, err := s.Capture(body)
	do(t, err)
	other, err := s.device.NewStream()
	do(t, err)
	if err := c.Launch(other); err == nil || !strings.Contains(err.Error(), "another stream") {
		t.Errorf("launched on another stream: %v", err)
	}
	if _, err := s.Capture(func() error { return c.Launch(s) }); err == nil || !strings.Contains(err.Error(), "being captured") {
		t.Errorf("launched inside a capture: %v", err)
	}
	do(t, c.Launch(s), c.Close(), other.Close())
	t.Run("out of memory", func(t *testing.T) {
		limit := gputest.Allocations(t)
		for k := 0; ; k++ {
			do(t, s.Trim())
			limit(k)
			c, err := s.Capture(body)
			failed := limit(-1)
			var e *OutOfMemory
			if failed > 0 && (c != nil || !errors.As(err, &e)) {
				t.Errorf("no memory for allocation %d: %v, %v", k, c, err)
			}
			intact("out of memory")
			if failed == 0 {
				do(t, err, c.Launch(s), s.Synchronize(), c.Close())
				return
			}
		}
	})
}

// Random programs of allocations, sums and frees give the same as a stream without captures, launch after launch, beside other arrays that
// come and go.
func TestCaptureRandom(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(3, 5))
	x := filled(t, s, 700, 1)
	do(t, Add(s, x, x, x))
	type live struct {
		a Array[float32]
		v float32 // per unit of x
	}
	free := func(all *[]live) {
		i := r.IntN(len(*all))
		(*all)[i].a.Free()
		*all = slices.Delete(*all, i, i+1)
	}
	var outside []live
	type recorded struct {
		c       *Capture
		results []live
	}
	var open []recorded
	for range 30 {
		var inside []live
		c, err := s.Capture(func() error {
			for range 1 + r.IntN(12) {
				n := []int{300, 700}[r.IntN(2)]
				from := live{x, 1}
				if len(inside) > 0 && r.IntN(2) == 0 {
					from = inside[r.IntN(len(inside))]
					n = from.a.Len()
				}
				a, err := sum(s, from.a.Slice(0, n), x.Slice(0, n))
				if err != nil {
					return err
				}
				inside = append(inside, live{a, from.v + 1})
				if r.IntN(3) == 0 {
					free(&inside)
				}
				if len(outside) > 0 && r.IntN(4) == 0 {
					free(&outside)
				}
			}
			return nil
		})
		do(t, err)
		open = append(open, recorded{c, inside})
		for range 3 {
			v := float32(r.IntN(100))
			outside = append(outside, live{filled(t, s, []int{300, 700}[r.IntN(2)], v), v})
			if r.IntN(2) == 0 {
				free(&outside)
			}
			unit := float32(1 + r.IntN(9))
			do(t, x.CopyFrom(s, slices.Repeat([]float32{unit}, 700)))
			for _, at := range open { // each leaves the results of the others alone
				do(t, at.c.Launch(s))
			}
			for _, at := range open {
				for _, l := range at.results {
					holds(t, s, "a result", l.a, l.v*unit)
				}
			}
			for _, l := range outside {
				holds(t, s, "an array outside", l.a, l.v)
			}
		}
		if i := r.IntN(len(open)); r.IntN(2) == 0 {
			at := open[i]
			open = slices.Delete(open, i, i+1)
			for len(at.results) > 0 && r.IntN(3) > 0 {
				free(&at.results)
			}
			do(t, at.c.Close())
			for len(at.results) > 0 {
				free(&at.results)
			}
		}
	}
}
