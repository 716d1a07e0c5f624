package cuda

import (
	"bytes"
	"fmt"
	"unsafe"
)

// AdamWeight is a weight with its gradient and moments. All arrays have the same length.
type AdamWeight struct {
	Weight, Grad, M, V Array[float32]
	Decay              bool            // weight decay applies
	Half               Array[BFloat16] // optional: gets a rounded copy of the weight
}

// AdamW has the factors of a step, which internal/kernel.AdamW defines. Keep applies to the weights that decay.
type AdamW struct {
	Scale, Beta1, Rest1, Beta2, Rest2, Rate, Root, Eps, Keep float32
}

// adamPiece is the number of elements that a block of threads processes. kernels/adamw.cu has the same number.
const adamPiece = 8192

// adamEntry has the same fields as the kernels' struct Weight (kernels/adamw.cu).
type adamEntry struct {
	w, g, m, v, half uintptr
	n, decay         int64
}

// Step queues one update of all weights in one launch. With clear, it also sets the gradients to zero.
func (a AdamW) Step(s *Stream, weights []AdamWeight, clear bool) error {
	if err := s.usable(); err != nil {
		return err
	}
	entries := make([]adamEntry, len(weights))
	for i, w := range weights {
		n := w.Weight.n
		for _, a := range []struct {
			name string
			n    int
		}{{"Grad", w.Grad.n}, {"M", w.M.n}, {"V", w.V.n}, {"Half", w.Half.n}} {
			if a.n != n && (a.name != "Half" || !w.Half.Absent()) {
				return fmt.Errorf("cuda: AdamW: weight %d has %d elements, and its %s %d, want as many", i, n, a.name, a.n)
			}
		}
		entries[i] = adamEntry{w.Weight.address, w.Grad.address, w.M.address, w.V.address, w.Half.address, int64(n), 0}
		if w.Decay {
			entries[i].decay = 1
		}
	}
	t, err := s.adam.upload(s, entries)
	if err != nil || t.pieces == 0 {
		return err
	}
	cleared := int32(0)
	if clear {
		cleared = 1
	}
	return s.run("adamw", "adamw_step", grid{x: int64(t.pieces), threads: 256}, t.table.address, t.numbers, unsafe.Pointer(&a), cleared)
}

// GradientNorm returns the Euclidean norm of all gradients together, added in a fixed order. It waits for the result.
func GradientNorm(s *Stream, grads []Array[float32]) (float64, error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	entries := make([]adamEntry, len(grads))
	for i, g := range grads {
		entries[i] = adamEntry{g: g.address, n: int64(g.n)}
	}
	t, err := s.norm.upload(s, entries)
	if err != nil || t.pieces == 0 {
		return 0, err
	}
	parts, err := NewArray[float64](s, t.pieces+1)
	if err != nil {
		return 0, err
	}
	defer parts.Free()
	if err := s.run("adamw", "gradient_squares", grid{x: int64(t.pieces), threads: 256}, t.table.address, t.numbers, parts.address); err != nil {
		return 0, err
	}
	sum := parts.Slice(t.pieces, 1)
	if err := s.run("adamw", "gradient_norm", grid{x: 1, threads: 1024}, parts.address, t.pieces, sum.address); err != nil {
		return 0, err
	}
	var norm [1]float64
	err = sum.CopyTo(s, norm[:])
	return norm[0], err
}

// adamTable is a table of weights on the device. It is uploaded again only when it changes, which is rare in training.
type adamTable struct {
	sent    []byte
	table   Array[uint8]
	numbers uintptr // address of the list of pieces, which follows the weights
	pieces  int
}

func (t *adamTable) upload(s *Stream, entries []adamEntry) (*adamTable, error) {
	packed := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(entries))), len(entries)*int(unsafe.Sizeof(adamEntry{})))
	if t.pieces > 0 && bytes.Equal(t.sent, packed) {
		return t, nil
	}
	var pieces []int32
	for i, e := range entries {
		for n := range (e.n + adamPiece - 1) / adamPiece {
			pieces = append(pieces, int32(i), int32(n))
		}
	}
	t.table.Free()
	*t = adamTable{}
	all := append(append([]byte(nil), packed...), unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(pieces))), 4*len(pieces))...)
	table, err := Upload(s, all)
	if err != nil {
		return nil, err
	}
	*t = adamTable{all[:len(packed):len(packed)], table, table.address + uintptr(len(packed)), len(pieces) / 2}
	return t, nil
}
