package cuda

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The rows of batches of any size are copied, or become zeros, and no other element changes.
func TestCopyStates(t *testing.T) {
	s := open(t)
	sizes := []int{3, 1500, 0, 128, 1}
	l, err := NewStateSizes(s, sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Free)
	r := rand.New(rand.NewPCG(1, 1))
	for range 12 {
		fromBatch, toBatch := 1+r.IntN(5), 1+r.IntN(5)
		rows := 1 + r.IntN(min(fromBatch, toBatch))
		fromRow, toRow := r.IntN(fromBatch-rows+1), r.IntN(toBatch-rows+1)
		numbersFrom, want := numbers[float32](r, l.Len(fromBatch), 1), numbers[float32](r, l.Len(toBatch), 1)
		from, to := put[float32](t, s, numbersFrom), put[float32](t, s, want)
		if r.IntN(3) == 0 {
			from = Array[float32]{}
		}
		begins := 0
		for _, size := range sizes {
			for i := range rows * size {
				want[begins*toBatch+toRow*size+i] = 0
				if !from.Absent() {
					want[begins*toBatch+toRow*size+i] = numbersFrom[begins*fromBatch+fromRow*size+i]
				}
			}
			begins += (size + 127) / 128 * 128
		}
		if err := CopyStates(s, l, to, toBatch, toRow, from, fromBatch, fromRow, rows); err != nil {
			t.Fatal(err)
		}
		got := make([]float32, to.Len())
		if err := to.CopyTo(s, got); err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, want, func(a float32, b float64) bool { return float64(a) == b }) {
			t.Fatalf("rows %d to %d of %d to %d of %d: the states differ", fromRow, fromRow+rows, fromBatch, toRow, toBatch)
		}
	}
}
