package operator

import (
	"math"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
)

func TestNarrow(t *testing.T) {
	one := 1                     // no constant: in an int of 32 bits the numbers overflow
	many := make([]int, 3<<15+5) // of several processors
	for i := range many {
		many[i] = i*7919 - 1<<16
	}
	far := slices.Clone(many)
	far[1<<15+1], far[len(far)-2] = math.MaxInt32+one, math.MinInt32-one
	for _, ints := range [][]int{many, far, nil, {0}, {3, -7, 12}, {math.MaxInt32, math.MinInt32}, {math.MaxInt / 3, 5}, {5, math.MinInt, math.MaxInt}} {
		want := make([]int32, len(ints), len(ints)+1)
		for i, x := range ints {
			want[i] = Int32(x)
		}
		got := make([]int32, len(ints)+1)
		least, most := narrow(got, ints)
		l, m := math.MaxInt, math.MinInt
		for _, x := range ints {
			l, m = min(l, x), max(m, x)
		}
		if !slices.Equal(got[:len(ints)], want) || least != l || most != m {
			t.Errorf("%d: %d, %d to %d, want %d, %d to %d", ints[:min(len(ints), 9)], got[:min(len(got), 9)], least, most, want[:min(len(want), 9)], l, m)
		}
		within := least >= math.MinInt32 && most <= math.MaxInt32
		if equalNarrow(got, ints) != within {
			t.Errorf("%d is equal: %v", ints, !within)
		}
		if len(ints) > 0 {
			other := slices.Clone(ints)
			other[len(ints)-1]++
			if equalNarrow(got, other) {
				t.Errorf("%d equals %d", other, ints)
			}
		}
	}
}

func BenchmarkNarrow(b *testing.B) {
	ints, to := make([]int, 16384), make([]int32, 16384)
	b.Run("narrow", func(b *testing.B) {
		benchtest.Processors(b)
		for b.Loop() {
			narrow(to, ints)
		}
	})
	b.Run("equal", func(b *testing.B) {
		benchtest.Processors(b)
		for b.Loop() {
			equalNarrow(to, ints)
		}
	})
	b.Run("copy", func(b *testing.B) {
		o := make([]int, len(ints))
		benchtest.Processors(b)
		for b.Loop() {
			copy(o, ints)
		}
	})
	b.Run("slicesEqual", func(b *testing.B) {
		o := make([]int, len(ints))
		benchtest.Processors(b)
		for b.Loop() {
			_ = slices.Equal(o, ints)
		}
	})
}
