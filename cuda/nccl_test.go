package cuda

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/gputest"
)

// A connection of one rank copies. What is wrong is an error before anything is queued.
func TestConnection(t *testing.T) {
	d := gputest.Open(t, Open)
	s, err := d.NewStream()
	do(t, err)
	id, err := d.NewConnectionID()
	if err != nil {
		t.Skipf("no NCCL: %v", err)
	}
	a, err := Upload(s, []float32{1, 2, 3, 4})
	do(t, err)
	b, err := Upload(s, []float32{5, 6})
	do(t, err)
	wants := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v, want %q", what, err, want)
		}
	}
	wants("not connected", AllReduce(s, a), "the stream is not connected")
	wants("no rank", s.Connect(id, 1, 1), "rank is 1 of 1, want 0 to one less than the size")
	t.Run("id", func(t *testing.T) {
		gputest.Alive(t) // a real NCCL does not look at all of its bytes
		for _, i := range []int{16, 64, 127} {
			wrong := id
			wrong[i]++
			wants("an id of which a byte is lost", s.Connect(wrong, 0, 1), "of the id is not that of ncclGetUniqueId")
		}
	})
	do(t, s.Connect(id, 0, 1), s.Disconnected())
	wants("connected twice", s.Connect(id, 0, 1), "the stream is connected already")
	wants("lengths", ReduceScatter(s, b, a), "all has 4 elements and own has 2, want 1 times as many")
	wants("lengths", AllGather(s, b, a), "all has 2 elements and own has 4, want 1 times as many")
	wants("overlap", AllGather(s, a.Slice(0, 2), a.Slice(1, 2)), "own overlaps all, want part 0 of all, or other memory")
	wants("root", Broadcast(s, a, 1), "root is 1, want a rank: 0 to 0")
	wants("peer", s.Exchange(Message{Peer: 0, Bytes: a.Bytes()}), "Peer is 0, want another rank of the 1, not 0, which is this one")
	do(t, AllReduce(s, a), ReduceScatter(s, b, a.Slice(2, 2)), Broadcast(s, a, 0), s.Exchange())
	got := make([]float32, 2)
	if do(t, b.CopyTo(s, got)); got[0] != 3 || got[1] != 4 {
		t.Errorf("ReduceScatter of one rank gives %v, want 3 and 4", got)
	}
	alone[float32](t, s)
	alone[float64](t, s)
	alone[BFloat16](t, s)
	do(t, s.Disconnect(), s.Disconnect())
	wants("disconnected", AllReduce(s, a), "the stream is not connected")
}

// Disconnect of another goroutine at any moment of Connect ends the connection, and neither waits for good.
func TestDisconnectDuringConnect(t *testing.T) {
	gputest.Alive(t) // connecting takes a real NCCL a fifth of a second
	d := gputest.Open(t, Open)
	for i := range disconnects {
		id, err := d.NewConnectionID()
		do(t, err)
		s, err := d.NewStream()
		do(t, err)
		ended := make(chan error)
		go func() {
			for s.connection.Load() == nil {
				runtime.Gosched()
			}
			time.Sleep(time.Duration(i) * time.Microsecond)
			ended <- s.Disconnect()
		}()
		if err := s.Connect(id, 0, 1); err != nil && !strings.Contains(err.Error(), "not connected") {
			t.Errorf("Connect: %v", err)
		}
		do(t, <-ended)
		if err := s.Disconnected(); err == nil {
			t.Error("the stream is connected after Disconnect")
		}
		do(t, s.Close())
	}
}

const disconnects = 100

// alone makes all calls that a rank can make alone, which copy.
func alone[T Summand](t *testing.T, s *Stream) {
	for _, n := range []int{1, 3, 1025, 70001} {
		host, got := make([]T, n), make([]T, n)
		for i := range host {
			host[i] = T(i % 251)
		}
		a, err := Upload(s, host)
		do(t, err)
		b, err := NewArray[T](s, n)
		do(t, err)
		c, err := NewArray[T](s, n)
		do(t, err)
		do(t, AllReduce(s, a), ReduceScatter(s, b, a), Broadcast(s, b, 0), AllGather(s, c, b), AllGather(s, c.Bytes(), b.Bytes()), c.CopyTo(s, got))
		if !slices.Equal(got, host) {
			t.Errorf("%d elements of %T do not come back", n, host)
		}
		a.Free()
		b.Free()
		c.Free()
	}
}
