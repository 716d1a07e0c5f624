package operator

import (
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// Zero sets the states of all sequences of the batch to zeros.
func (d *Decoder) Zero() error {
	return d.set(func(s *cuda.Stream) error { return d.whole[d.at].array.Fill(s, 0) })
}

// SetRow sets the states of one sequence of the batch from the host, in the order of NewDecoder. nil stands for zeros.
func (d *Decoder) SetRow(row int, host []*tensor.Dense) error {
	if host == nil {
		return d.setRows(row, cuda.Array[float32]{}, 0, 0, 1)
	}
	return d.set(func(s *cuda.Stream) error {
		for i, t := range d.states[d.at] {
			a, err := t.array()
			if err == nil {
				err = d.row(a, row).CopyFrom(s, floats(host[i]))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// CopyRows sets the states of rows sequences of the batch, from row on, to those of sequences of another decoder of the same model and place.
func (d *Decoder) CopyRows(row int, from *Decoder, fromRow, rows int) error {
	return d.setRows(row, from.whole[from.at].array, from.batch(), fromRow, rows)
}

// setRows sets the states of rows sequences, from row on, to those of a batch in an array.
func (d *Decoder) setRows(row int, from cuda.Array[float32], fromBatch, fromRow, rows int) error {
	return d.set(func(s *cuda.Stream) error {
		return cuda.CopyStates(s, d.layout, d.whole[d.at].array, d.batch(), row, from, fromBatch, fromRow, rows)
	})
}

// KeptStates is the states of one sequence in a device's memory. They do not change.
type KeptStates struct {
	place  Place
	layout *cuda.StateSizes
	buffer *buffer
}

// KeepRow copies the states of one sequence of the batch. Release frees the copy.
func (d *Decoder) KeepRow(row int) (*KeptStates, error) {
	k := &KeptStates{place: d.place, layout: d.layout}
	return k, d.do(func(s *cuda.Stream) (err error) {
		if k.buffer, err = d.place.context.newBuffer(d.layout.Len(1)); err != nil {
			return err
		}
		return cuda.CopyStates(s, d.layout, k.buffer.array, 1, 0, d.whole[d.at].array, d.batch(), row, 1)
	})
}

// SetKept sets the states of one sequence of the batch to those that a decoder of the same model and place has kept.
func (d *Decoder) SetKept(row int, k *KeptStates) error {
	return d.setRows(row, k.buffer.array, 1, 0, 1)
}

// Share returns another reference to the states.
func (k *KeptStates) Share() *KeptStates {
	k.buffer.refs.Add(1)
	shared := *k
	return &shared
}

// Release gives up a reference. The last one frees the memory.
func (k *KeptStates) Release() {
	k.place.context.Do(func(*cuda.Stream) error { // an error says that the device is closed, with all of its memory
		k.buffer.release()
		k.buffer = nil
		return nil
	})
}

// Place returns where the states are.
func (k *KeptStates) Place() Place { return k.place }

// Bytes returns the memory of the states.
func (k *KeptStates) Bytes() int { return 4 * k.buffer.array.Len() }

// CopyTo copies the states to the host, in the order of NewDecoder.
func (k *KeptStates) CopyTo(host []*tensor.Dense) error {
	return k.place.context.Do(func(s *cuda.Stream) error {
		arrays, to := make([]cuda.Array[float32], len(host)), make([][]float32, len(host))
		for i, v := range host {
			arrays[i], to[i] = k.layout.State(k.buffer.array, 1, i), floats(v)
		}
		return cuda.CopyAllTo(s, arrays, to)
	})
}

// row returns the part of a state that belongs to one sequence of the batch.
func (d *Decoder) row(state cuda.Array[float32], row int) cuda.Array[float32] {
	n := state.Len() / d.batch()
	return state.Slice(row*n, n)
}

// States copies the states to the host.
func (d *Decoder) States(host []*tensor.Dense) error {
	return d.copyStates(host, func(a cuda.Array[float32], to []float32) (cuda.Array[float32], []float32) { return a, to })
}

// RowStates copies the states of one sequence of the batch to its part of the host's.
func (d *Decoder) RowStates(row int, host []*tensor.Dense) error {
	return d.copyStates(host, func(a cuda.Array[float32], to []float32) (cuda.Array[float32], []float32) {
		n := len(to) / d.ids.shape[0]
		return d.row(a, row), to[row*n : (row+1)*n]
	})
}

// copyStates copies the part of each state that part returns.
func (d *Decoder) copyStates(host []*tensor.Dense, part func(cuda.Array[float32], []float32) (cuda.Array[float32], []float32)) error {
	return d.do(func(s *cuda.Stream) error {
		arrays, to := make([]cuda.Array[float32], len(host)), make([][]float32, len(host))
		for i, t := range d.states[d.at] {
			a, err := t.array()
			if err != nil {
				return err
			}
			arrays[i], to[i] = part(a, floats(host[i]))
		}
		return cuda.CopyAllTo(s, arrays, to)
	})
}

// set calls f, which writes the states.
func (d *Decoder) set(f func(s *cuda.Stream) error) error {
	return d.do(func(s *cuda.Stream) error {
		if d.ahead != nil {
			d.ahead, d.there = nil, nil
		}
		return f(s)
	})
}
