package cuda

import (
	"errors"
	"fmt"
	"slices"
)

// StateSizes is the layout of the states of sequences in an array: state i of a batch has sizes[i] elements for each sequence, one sequence after another. It begins where
// the states before it end, which take a multiple of 128 elements for each sequence of the batch.
type StateSizes struct {
	table         Array[int32] // begins, and then sizes
	begins, sizes []int        // of the states of one sequence
	most          int          // elements of the largest state
	total         int          // elements of all states of one sequence, with what rounds them up
}

// NewStateSizes returns the layout of states of these sizes. It is an error if a size is negative, or if they have more than 2^31 - 1 elements together.
func NewStateSizes(s *Stream, sizes []int) (*StateSizes, error) {
	l, table := &StateSizes{sizes: slices.Clone(sizes)}, make([]int32, 2*len(sizes))
	for i, size := range sizes {
		if size < 0 || size > 1<<31-128-l.total {
			return nil, fmt.Errorf("cuda: states: sizes[%d] is %d, want at least 0, and at most 2^31 - 128 elements in all", i, size)
		}
		table[i], table[len(sizes)+i] = int32(l.total), int32(size)
		l.begins, l.most, l.total = append(l.begins, l.total), max(l.most, size), l.total+(size+127)/128*128
	}
	var err error
	l.table, err = Upload(s, table)
	return l, err
}

// Len returns the number of elements of the states of a batch.
func (l *StateSizes) Len(batch int) int {
	if l == nil {
		return 0
	}
	return count(batch, l.total)
}

// State returns state i of the states of a batch.
func (l *StateSizes) State(states Array[float32], batch, i int) Array[float32] {
	if l == nil || i < 0 || i >= len(l.sizes) || states.n != l.Len(batch) {
		return Array[float32]{}
	}
	return states.Slice(batch*l.begins[i], batch*l.sizes[i])
}

// Free frees the layout's memory on the device. State and Len still work.
func (l *StateSizes) Free() {
	if l != nil {
		l.table.Free()
	}
}

// CopyStates queues copies of the states of rows sequences, in one kernel: those of a batch from row fromRow on become those of another batch from row toRow on. If from is absent,
// they become zeros. The arrays must not overlap.
func CopyStates(s *Stream, l *StateSizes, to Array[float32], toBatch, toRow int, from Array[float32], fromBatch, fromRow, rows int) error {
	if l == nil || l.table.Absent() {
		return errors.New("cuda: copy states: the layout is missing, want one that NewStateSizes returned")
	}
	if err := firstError(atLeast(0, "copy states", "toBatch", toBatch, "toRow", toRow, "fromBatch", fromBatch, "fromRow", fromRow, "rows", rows),
		expect("copy states", "to", to.n, l.Len(toBatch), "its batch from toRow on", toBatch-toRow, rows),
		optional("copy states", "from", from, l.Len(fromBatch)), s.usable()); err != nil {
		return err
	}
	if !from.Absent() && fromBatch-fromRow < rows {
		return fmt.Errorf("cuda: copy states: from has %d rows from row %d on, want %d", fromBatch-fromRow, fromRow, rows)
	}
	if rows == 0 || l.most == 0 {
		return nil
	}
	g := grid{x: min(int64(l.most+1023)/1024, 64), y: int64(len(l.sizes)), z: int64(rows), threads: 256}
	return s.run("states", "copy_states", g, l.table.address, from.address, fromBatch, fromRow, to.address, toBatch, toRow)
}
