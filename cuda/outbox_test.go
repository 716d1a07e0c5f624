package cuda

import (
	"slices"
	"strings"
	"testing"
)

// TestOutbox sends an array that work overwrites before the numbers are read.
func TestOutbox(t *testing.T) {
	s := open(t)
	o, err := NewOutbox[int32](s, 3)
	do(t, err)
	a := putInts(t, s, make([]int32, 3))
	for n := range int32(4) {
		want := []int32{n, -n, 7}
		do(t, a.CopyFrom(s, want), o.Send(a), o.Seal(), a.Fill(s, 0))
		got, err := o.Wait()
		do(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	c, err := s.Capture(func() error { return o.Send(a) })
	do(t, err)
	for n := range int32(2) {
		want := []int32{n, 5, n}
		do(t, a.CopyFrom(s, want), c.Launch(s), o.Seal(), a.Fill(s, 0))
		got, err := o.Wait()
		do(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("captured: got %v, want %v", got, want)
		}
	}
	do(t, c.Close())
	for text, err := range map[string]error{
		"outbox: a has 2 elements, want 3": o.Send(a.Slice(0, 2)),
		"outbox is missing":                (*Outbox[int32])(nil).Send(a),
		"want one that NewOutbox returned": (*Outbox[int32])(nil).Seal(),
	} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %s", err, text)
		}
	}
	do(t, o.Close(), o.Close())
	if _, err := o.Wait(); err == nil || !strings.Contains(err.Error(), "the outbox is closed") {
		t.Errorf("after Close: %v", err)
	}
	if _, err := NewOutbox[int32](s, 0); err == nil {
		t.Error("no error for an outbox of no elements")
	}
}
