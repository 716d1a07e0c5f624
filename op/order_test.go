package op

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want one that contains %q", err, want)
	}
}

func TestOrders(t *testing.T) {
	for _, c := range []struct {
		name string
		got  Order
		want []int
	}{
		{"rows", Rows(2, 3), []int{0, 1, 2, 3, 4, 5}},
		{"columns", Columns(2, 3), []int{0, 3, 1, 4, 2, 5}},
		{"columns reversed", VMambaOrders(2, 3)[3], []int{5, 2, 4, 1, 3, 0}},
		{"windows", Windows(4, 4, 2), []int{0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15}},
		{"windows that are cut", Windows(3, 5, 2), []int{0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14}},
		{"one window", Windows(2, 3, math.MaxInt/2+1), []int{0, 1, 2, 3, 4, 5}},
		{"slices", Slices(2, 2, 3), []int{0, 3, 1, 4, 2, 5}},
		{"slices of a volume", SegMambaOrders(2, 2, 2, 2)[2], []int{0, 4, 1, 5, 2, 6, 3, 7}},
		{"reversed", VimOrders(3)[1], []int{2, 1, 0}},
		{"inverse", Columns(2, 3).Inverse(), []int{0, 2, 4, 1, 3, 5}},
	} {
		if got := c.got.Cells(); c.got.Err() != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %d, want %d, error %v", c.name, got, c.want, c.got.Err())
		}
	}
	if a, b := Columns(3, 4), Slices(3, 12); a != b || a == Rows(12) {
		t.Error("orders of the same cells are not equal, or those of others are")
	}
}

func TestOrderInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.Permutation(upTo(size(t, "cells", 20))).Draw(t, "order")
		o, err := NewOrder(cells)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(o.Cells(), cells) || o.Inverse().Inverse() != o || o.Reversed().Reversed() != o {
			t.Fatalf("order %v: %v, inverse %v, reversed %v", cells, o, o.Inverse(), o.Reversed())
		}
		for i, c := range o.Inverse().Cells() {
			if cells[c] != i {
				t.Fatalf("the inverse of %d visits %d at step %d", cells, c, i)
			}
		}
	})
	// Every named order visits each cell once, or has an error.
	rapid.Check(t, func(t *rapid.T) {
		h, w, n := size(t, "height", 9), size(t, "width", 9), size(t, "n", 9)
		for i, o := range slices.Concat(VMambaOrders(h, w), LocalMambaOrders(h, w), SegMambaOrders(n, h, w), []Order{Windows(h, w, n)}) {
			if o.Err() != nil && h*w%n != 0 {
				continue
			}
			if _, err := NewOrder(o.Cells()); err != nil || o.Len() != h*w {
				t.Fatalf("order %d of %dx%d, n = %d: %v: %v, %v", i, h, w, n, o.Cells(), err, o.Err())
			}
		}
	})
}

// upTo returns the numbers from 0 to n-1.
func upTo(n int) []int {
	r := make([]int, n)
	for i := range r {
		r[i] = i
	}
	return r
}

func TestOrderErrors(t *testing.T) {
	wantError(t, second2(NewOrder(nil)), "op: order: the cells are missing, want at least one")
	wantError(t, second2(NewOrder([]int{0, 3, 1})), "op: order: cells[1] is 3, want a number from 0 to 2")
	wantError(t, second2(NewOrder([]int{0, -1})), "op: order: cells[1] is -1, want a number from 0 to 1")
	wantError(t, second2(NewOrder([]int{2, 0, 2})), "op: order: cells[2] is 2 like cells[0], want each cell once")
	wantError(t, Rows().Err(), "op: rows: the sizes are missing, want at least one")
	wantError(t, Rows(3, -1).Err(), "op: rows: size 1 is -1, want at least 1")
	wantError(t, Columns(1<<20, 1<<20).Err(), "op: columns: the sizes are [1048576 1048576], want at most 2147483647 cells")
	wantError(t, Windows(3, 4, 0).Err(), "op: windows: size is 0, want at least 1")
	wantError(t, Slices(5, 3, 4).Err(), "op: slices: n is 5, want a number that divides the 12 cells")
	wantError(t, VMambaOrders(0, 3)[2].Err(), "op: rows: size 0 is 0, want at least 1")
	wantError(t, Order{}.Inverse().Err(), "op: order: the order is missing")
}
