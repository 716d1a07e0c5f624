package cuda

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/gputest"
)

// open returns a stream of a device, which is closed when the test ends.
func open(t testing.TB) *Stream {
	t.Helper()
	var d *Device
	t.Cleanup(func() { // runs after the cleanup of gputest, which closes the device
		if d == nil {
			return
		}
		if used, held := d.Memory(); used != 0 || held != 0 {
			t.Errorf("after Close %d bytes are in use, %d held", used, held)
		}
	})
	d = gputest.Open(t, Open)
	s, err := d.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenErrors(t *testing.T) {
	for _, ordinal := range []int{-1, 1 << 20} {
		d, err := Open(ordinal)
		if d != nil || err == nil || !strings.HasPrefix(err.Error(), "cuda: ") {
			t.Errorf("Open(%d) is %v, %v", ordinal, d, err)
		}
	}
}

func TestCopies(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 1000, stageBytes / 4, stageBytes/4 + 1, 3*stageBytes/4 - 7} {
		host := make([]float32, n)
		for i := range host {
			host[i] = r.Float32()
		}
		a, err := Upload(s, host)
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(host)
		for i := range host {
			host[i] = -1 // Upload must already have copied it
		}
		got := make([]float32, n)
		if err := a.CopyTo(s, got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d elements came back changed", n)
		}
		a.Free()
	}
	a, err := NewArray[float32](s, 3)
	if err != nil {
		t.Fatal(err)
	}
	if a.CopyFrom(s, make([]float32, 2)) == nil || a.CopyTo(s, make([]float32, 4)) == nil {
		t.Error("a copy of another length succeeded")
	}
}

// TestManyCopies uploads many small arrays, more than both buffers hold, and copies parts of them to the host at once.
func TestManyCopies(t *testing.T) {
	s := open(t)
	const n, each = 11, stageBytes / 16
	var arrays []Array[float32]
	var hosts, want [][]float32
	for i := range n {
		host := make([]float32, each+i)
		for j := range host {
			host[j] = float32(i*each + j)
		}
		a, err := Upload(s, host)
		do(t, err)
		defer a.Free()
		third := len(host) / 3
		for _, part := range [][2]int{{0, third}, {third, 1}, {third + 1, 0}, {third + 1, third}, {5, 7}} { // the first two and the fourth follow each other
			arrays = append(arrays, a.Slice(part[0], part[1]))
			want = append(want, slices.Clone(host[part[0]:part[0]+part[1]]))
			hosts = append(hosts, make([]float32, part[1]))
		}
		clear(host) // the copy does not read it any more
	}
	do(t, CopyAllTo(s, arrays, hosts))
	for i := range want {
		if !slices.Equal(hosts[i], want[i]) {
			t.Fatalf("array %d came back changed", i)
		}
	}
	if err := CopyAllTo(s, arrays[:2], hosts[:1]); err == nil || !strings.Contains(err.Error(), "the host has 1 slices, want 2") {
		t.Errorf("the error is %v", err)
	}
	if err := CopyAllTo(s, arrays[:1], hosts[1:2]); err == nil || !strings.Contains(err.Error(), "slice 0 of the host has 1 elements") {
		t.Errorf("the error is %v", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	s := open(t)
	small, err := Upload(s, []float32{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	const asked = 1 << 50
	_, err = NewArray[uint8](s, asked)
	var e *OutOfMemory
	if !errors.As(err, &e) || e.Asked != asked || e.InUse != 512 || e.Free <= 0 {
		t.Fatalf("the error is %v", err)
	}
	got := make([]float32, 3)
	if err := small.CopyTo(s, got); err != nil || !slices.Equal(got, []float32{1, 2, 3}) {
		t.Fatalf("afterwards a copy gives %v, %v", got, err)
	}
}

func TestMemoryIsUsedAgain(t *testing.T) {
	s := open(t)
	var first uintptr
	for i := range 1000 {
		a, err := NewArray[float32](s, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = a.address
		}
		if a.address != first {
			t.Fatalf("allocation %d does not reuse the freed memory", i)
		}
		a.Free()
	}
	used, held := s.device.Memory()
	if used != 0 || held != sizeOf(400_000) {
		t.Fatalf("%d bytes used, %d held", used, held)
	}
	if err := s.Trim(); err != nil {
		t.Fatal(err)
	}
	if _, held := s.device.Memory(); held != 0 {
		t.Fatalf("%d bytes held after Trim", held)
	}
}

// An array that is freed twice is counted once, and its memory serves one array at a time.
func TestFreeTwice(t *testing.T) {
	s := open(t)
	for _, n := range []int{100, large} {
		a, err := NewArray[uint8](s, n)
		do(t, err)
		a.Free()
		a.Free()
		if used, _ := s.device.Memory(); used != 0 {
			t.Errorf("%d bytes used", used)
		}
		b, err := NewArray[uint8](s, n)
		do(t, err)
		c, err := NewArray[uint8](s, n)
		do(t, err)
		if b.address == c.address {
			t.Errorf("two arrays of %d bytes are at %x", n, b.address)
		}
		b.Free()
		c.Free()
	}
}

// Arrays that stay do not divide the memory of repeated work, but take it if there is no other.
func TestMemoryOfRepeatedWork(t *testing.T) {
	s := open(t)
	var work Allocations
	array := func(n int) Array[uint8] {
		a, err := NewArray[uint8](s, n)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	run := func() (all []uintptr) {
		s.Repeat(&work)
		defer s.Repeat(nil)
		a := array(8 * large)
		end := s.Lasting()
		array(3 * large)
		end()
		b := array(8 * large)
		a.Free()
		b.Free()
		return []uintptr{a.address, b.address}
	}
	first := run()
	outside := array(3 * large)
	if got := run(); !slices.Equal(got, first) {
		t.Errorf("the second run has memory at %x, want %x as in the first", got, first)
	}
	if slices.ContainsFunc(s.pool.spans, func(s span) bool { return s.of.work && s.size != s.of.size }) {
		t.Errorf("the memory of work is divided by an array at %x: %v", outside.address, s.pool.spans)
	}
	t.Run("no other memory", func(t *testing.T) {
		grant := gputest.Allocations(t)
		do(t, s.Trim())
		s.Repeat(&work)
		whole := array(16 * large)
		whole.Free()
		half := array(8 * large)
		s.Repeat(nil)
		grant(0)
		defer grant(-1)
		a := array(4 * large)
		if of := s.pool.blocks[half.address].of; s.pool.blocks[a.address].of != of {
			t.Errorf("the array at %x is not in the %d bytes at %x, where there is room", a.address, of.size, of.address)
		}
	})
}

// Large arrays never share memory. Their memory serves for arrays of other sizes, is joined when they are freed, and goes back to the device as a whole.
func TestMemoryIsCutAndJoined(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(1, 2))
	var arrays []Array[uint8]
	most := 0
	for range 400 {
		if len(arrays) > 8 || len(arrays) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(arrays))
			arrays[i].Free()
			arrays = slices.Delete(arrays, i, i+1)
			continue
		}
		a, err := NewArray[uint8](s, large+r.IntN(4*large))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range arrays {
			if a.address < b.address+uintptr(b.n) && b.address < a.address+uintptr(a.n) {
				t.Fatalf("%d bytes at %x and %d at %x", a.n, a.address, b.n, b.address)
			}
		}
		arrays = append(arrays, a)
		used, held := s.device.Memory()
		free := int64(0)
		for i, s := range s.pool.spans {
			if free += s.size; s.address < s.of.address || int64(s.address-s.of.address)+s.size > s.of.size {
				t.Fatalf("span %d is not in its segment", i)
			}
		}
		if most = max(most, int(used)); used+free != held {
			t.Fatalf("%d bytes used, %d free, %d held", used, free, held)
		}
	}
	if _, held := s.device.Memory(); held > 2*int64(most) {
		t.Errorf("%d bytes held for at most %d used", held, most)
	}
	for _, a := range arrays {
		a.Free()
	}
	for i, s := range s.pool.spans {
		if s.size != s.of.size {
			t.Errorf("span %d has %d of %d bytes", i, s.size, s.of.size)
		}
	}
	do(t, s.Trim())
	if used, held := s.device.Memory(); used != 0 || held != 0 || len(s.pool.spans) != 0 {
		t.Fatalf("%d bytes used, %d held", used, held)
	}
}

func TestSizeOf(t *testing.T) {
	for bytes := int64(0); bytes < 1<<40; bytes += bytes/7 + 1 {
		size := sizeOf(bytes)
		if size < bytes || size%512 != 0 || size > max(512, bytes+max(bytes/8, 512)) || sizeOf(size) != size {
			t.Fatalf("%d bytes take %d", bytes, size)
		}
	}
}

func TestEvents(t *testing.T) {
	s := open(t)
	other, err := s.device.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	begin, err := s.device.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	end, err := s.device.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewArray[uint8](s, 1<<28)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Record(begin), a.Fill(s, 1), s.Record(end), other.Wait(end), a.Fill(other, 2), other.Synchronize()); err != nil {
		t.Fatal(err)
	}
	if d, err := end.Since(begin); err != nil || d <= 0 {
		t.Errorf("between the marks %v, %v", d, err)
	}
	got := make([]uint8, a.Len())
	if err := a.CopyTo(s, got); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if v != 2 {
			t.Fatalf("element %d is %d, want what the other stream wrote after waiting", i, v)
		}
	}
	if err := errors.Join(begin.Close(), end.Close(), other.Close(), other.Close()); err != nil {
		t.Fatal(err)
	}
}

// A device from Current can use the arrays of the existing context, and its Close does not destroy the context.
func TestCurrent(t *testing.T) {
	s := open(t)
	host := []float32{1, 2, 3}
	a, err := Upload(s, host)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Free()
	if err := s.Synchronize(); err != nil {
		t.Fatal(err)
	}
	if err := s.device.withContext(func() error {
		d, err := Current()
		if err != nil {
			return err
		}
		other, err := d.NewStream()
		if err != nil {
			return err
		}
		b, err := NewArray[float32](other, len(host))
		if err != nil {
			return err
		}
		if err := b.CopyOf(other, ArrayAt[float32](other, a.Address(), a.Len())); err != nil {
			return err
		}
		got := make([]float32, len(host))
		if err := b.CopyTo(other, got); err != nil {
			return err
		}
		if !slices.Equal(got, host) {
			t.Errorf("copied %v, want %v", got, host)
		}
		return d.Close()
	}); err != nil {
		t.Fatal(err)
	}
	got := make([]float32, len(host))
	if err := a.CopyTo(s, got); err != nil || !slices.Equal(got, host) {
		t.Errorf("after Close of the other device %v, %v, want %v", got, err, host)
	}
}
