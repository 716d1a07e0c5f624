package task

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSampler(t *testing.T) {
	text := make([]byte, 200)
	for i := range text {
		text[i] = byte(i)
	}
	draw := func(seed int64) []Batch {
		s, err := NewSampler(text, 3, 7, seed)
		if err != nil {
			t.Fatal(err)
		}
		var batches []Batch
		for range 200 {
			batches = append(batches, next(t, s))
		}
		return batches
	}
	batches := draw(1)
	first, last := false, false
	for _, b := range batches {
		if len(b.IDs) != 21 || len(b.Targets) != 21 || b.Count() != 21 {
			t.Fatalf("batch has %d ids, %d targets, %d to predict; want 21", len(b.IDs), len(b.Targets), b.Count())
		}
		for k := range b.IDs {
			if b.Targets[k] != b.IDs[k]+1 {
				t.Fatalf("target %d after %d", b.Targets[k], b.IDs[k])
			}
			if k%7 > 0 && b.IDs[k] != b.Targets[k-1] {
				t.Fatalf("row is not contiguous: %v", b.IDs)
			}
			first = first || b.IDs[k] == 0
			last = last || b.Targets[k] == 199
		}
	}
	if !first || !last {
		t.Errorf("600 windows never reached the first byte (%v) or the last (%v)", first, last)
	}
	if !reflect.DeepEqual(batches, draw(1)) {
		t.Error("the same seed gave other windows")
	}
	if reflect.DeepEqual(batches, draw(2)) {
		t.Error("another seed gave the same windows")
	}
}

func TestSamplerShortestText(t *testing.T) {
	s, err := NewSampler([]byte("abcd"), 2, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := Batch{IDs: []int{'a', 'b', 'c', 'a', 'b', 'c'}, Targets: []int{'b', 'c', 'd', 'b', 'c', 'd'}}
	if got := next(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWindows(t *testing.T) {
	got, err := Windows([]byte{10, 11, 12, 13, 14, 15, 16, 17}, 2, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := []Batch{
		{IDs: []int{10, 11, 12, 13, 14, 15}, Targets: []int{11, 12, 13, 14, 15, 16}},
		{IDs: []int{16, 0, 0, 0, 0, 0}, Targets: []int{17, ignore, ignore, ignore, ignore, ignore}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got[1].Count() != 1 {
		t.Errorf("second batch has %d targets, want 1", got[1].Count())
	}
}

func TestWindowsLimit(t *testing.T) {
	text := make([]byte, 101)
	for i := range text {
		text[i] = byte(i)
	}
	got, err := Windows(text, 2, 10, 3)
	if err != nil {
		t.Fatal(err)
	}
	var starts []int
	for _, b := range got {
		for row := range 2 {
			if b.Targets[row*10] != ignore {
				starts = append(starts, b.IDs[row*10])
			}
		}
	}
	if want := []int{0, 30, 60}; !reflect.DeepEqual(starts, want) || len(got) != 2 {
		t.Errorf("windows start at %v in %d batches, want %v in 2", starts, len(got), want)
	}
}

// TestWindowsCover checks that every byte but the first is a target once, after the byte before it.
func TestWindowsCover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOfN(rapid.Byte(), 2, 300).Draw(t, "text")
		batch, length := rapid.IntRange(1, 9).Draw(t, "batch"), rapid.IntRange(1, 40).Draw(t, "length")
		batches, err := Windows(text, batch, length, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, b := range batches {
			for k, target := range b.Targets {
				if target == ignore {
					continue
				}
				if b.IDs[k] != int(text[at]) || target != int(text[at+1]) {
					t.Fatalf("target %d is %d after %d, want %d after %d", at, target, b.IDs[k], text[at+1], text[at])
				}
				at++
			}
		}
		if at != len(text)-1 {
			t.Fatalf("%d targets of %d bytes", at, len(text))
		}
	})
}

func TestBatchErrors(t *testing.T) {
	sampler := func(size, batch, length int) error {
		_, err := NewSampler(make([]byte, size), batch, length, 0)
		return err
	}
	windows := func(size, batch, length int) error {
		_, err := Windows(make([]byte, size), batch, length, 0)
		return err
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{sampler(10, 0, 1), "task: sampler: batch is 0, should be at least 1"},
		{sampler(10, 1, -1), "task: sampler: length is -1, should be at least 1"},
		{sampler(10, 1, 10), "task: sampler: text has 10 bytes, should have at least 11 for windows of length 10"},
		{windows(10, 0, 1), "task: windows: batch is 0, should be at least 1"},
		{windows(10, 1, 0), "task: windows: length is 0, should be at least 1"},
		{windows(1, 1, 1), "task: windows: text has 1 bytes, should have at least 2"},
	} {
		if test.err == nil || !strings.HasPrefix(test.err.Error(), test.want) {
			t.Errorf("got %v, want %s", test.err, test.want)
		}
	}
}

func next(t *testing.T, s *Sampler) Batch {
	t.Helper()
	b, err := s.Next()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
