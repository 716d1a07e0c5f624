package cuda

import (
	"bytes"
	"fmt"
	"math"
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

// adamPiece is the number of elements that a block of threads processes. Of up to adamFew elements it is adamFewPiece, four for a thread, since their time is that of waiting for memory.
const (
	adamPiece    = 8192
	adamFewPiece = 1024
	adamFew      = 1 << 20
)

// adamEntry has the same fields as the kernels' struct Weight (kernels/adamw.cu).
type adamEntry struct {
	w, g, m, v, half uintptr
	n, decay         int64
}

// Step queues one update of all weights, in one launch, and returns the Euclidean norm of all gradients together before Scale. squares is the sum of the
// squares of further gradients, which count in the norm. If the norm is above clip, and clip is above 0, the gradients are scaled by clip/norm. If
// it is not finite, nothing changes. The sums are added in a fixed order. Step waits for the norm only: the update may still run.
func (a AdamW) Step(s *Stream, weights []AdamWeight, clip, squares float64) (float64, error) {
	return a.StepAmong(s, weights, clip, squares, nil, nil)
}

// AdamWRanks is the gradients of several devices, whose norm counts in AdamW.StepAmong.
type AdamWRanks struct {
	Own        []Array[float32] // those that this device adds to the norm; as many arrays of the same lengths on each device
	Rank, Size int
	// Gather queues an all-gather: own of rank r becomes part r of all. own is the part of this rank already.
	Gather func(all, own Array[float64]) error
}

// StepAmong is Step with the norm of the gradients of several devices, the same on each. A nil ranks stands for this one alone. Then the gradients are those of the
// weights. queued is called when the update is queued, before StepAmong waits for the norm; it can queue more work. It may be nil.
func (a AdamW) StepAmong(s *Stream, weights []AdamWeight, clip, squares float64, ranks *AdamWRanks, queued func()) (float64, error) {
	norm, err := a.Queue(s, weights, clip, squares, ranks)
	if err != nil {
		return 0, err
	}
	if queued != nil {
		queued()
	}
	return norm.Wait()
}

// Queue is StepAmong, but returns before the norm is known.
func (a AdamW) Queue(s *Stream, weights []AdamWeight, clip, squares float64, ranks *AdamWRanks) (*Norm, error) {
	if err := firstError(s.usable(), s.recording("step")); err != nil {
		return nil, err
	}
	entries := make([]adamEntry, len(weights))
	for i, w := range weights {
		n := w.Weight.n
		for _, a := range []struct {
			name string
			n    int
		}{{"Grad", w.Grad.n}, {"M", w.M.n}, {"V", w.V.n}, {"Half", w.Half.n}} {
			if a.n != n && (a.name != "Half" || !w.Half.Absent()) {
				return nil, fmt.Errorf("cuda: AdamW: weight %d has %d elements, and its %s %d, want as many", i, n, a.name, a.n)
			}
		}
		entries[i] = adamEntry{w.Weight.address, w.Grad.address, w.M.address, w.V.address, w.Half.address, int64(n), 0}
		if w.Decay {
			entries[i].decay = 1
		}
	}
	t, err := s.adam.upload(s, entries)
	if err != nil {
		return nil, err
	}
	of, rank, size := t, 0, 1
	if ranks != nil {
		if rank, size = ranks.Rank, ranks.Size; rank < 0 || rank >= size || ranks.Gather == nil {
			return nil, fmt.Errorf("cuda: AdamW: the rank is %d of %d, want 0 to one less than the size, and Gather", rank, size)
		}
		own := make([]adamEntry, len(ranks.Own))
		for i, a := range ranks.Own {
			own[i] = adamEntry{g: a.address, n: int64(a.n)}
		}
		if of, err = s.adamOwn.upload(s, own); err != nil {
			return nil, err
		}
	}
	if of.pieces == 0 {
		return &Norm{stream: s, value: math.Sqrt(squares)}, nil
	}
	parts, err := NewArray[float64](s, of.pieces*size+1)
	if err != nil {
		return nil, err
	}
	defer parts.Free()
	all, own, sum := parts.Slice(0, of.pieces*size), parts.Slice(rank*of.pieces, of.pieces), parts.Slice(of.pieces*size, 1)
	each := func(t *adamTable) grid { return grid{x: int64(t.pieces), threads: 256} }
	if err := s.run("adamw", "gradient_squares", each(of).early(s), of.table.address, of.numbers, own.address, of.piece); err != nil {
		return nil, err
	}
	if ranks != nil {
		if err := ranks.Gather(all, own); err != nil {
			return nil, err
		}
	}
	if err := s.run("adamw", "gradient_norm", grid{x: 1, threads: 1024}.early(s), all.address, all.n, squares, sum.address); err != nil {
		return nil, err
	}
	norm, err := s.send(sum)
	if err != nil {
		return nil, err
	}
	// The factors of a step are its own, so what comes before and after it is replayed apart from it.
	if t.pieces > 0 {
		if err := s.run("adamw", "adamw_step", each(t), t.table.address, t.numbers, unsafe.Pointer(&a), sum.address, clip, t.piece); err != nil {
			return nil, err
		}
	}
	return norm, s.cut("the work after a step")
}

// adamTable is a table of weights on the device. It is uploaded again only when it changes, which is rare in training.
type adamTable struct {
	sent    []byte
	table   Array[uint8]
	numbers uintptr // address of the list of pieces, which follows the weights
	pieces  int
	piece   int // elements of each but the last of a weight
}

func (t *adamTable) upload(s *Stream, entries []adamEntry) (*adamTable, error) {
	packed := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(entries))), len(entries)*int(unsafe.Sizeof(adamEntry{})))
	if t.pieces > 0 && bytes.Equal(t.sent, packed) {
		return t, nil
	}
	var pieces []int32
	piece, all := int64(adamFewPiece), int64(0)
	for _, e := range entries {
		if all += e.n; all > adamFew {
			piece = adamPiece
		}
	}
	for i, e := range entries {
		for n := range (e.n + piece - 1) / piece {
			pieces = append(pieces, int32(i), int32(n))
		}
	}
	t.table.Free()
	*t = adamTable{}
	sent := append(append([]byte(nil), packed...), unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(pieces))), 4*len(pieces))...)
	table, err := Upload(s, sent)
	if err != nil {
		return nil, err
	}
	*t = adamTable{sent[:len(packed):len(packed)], table, table.address + uintptr(len(packed)), len(pieces) / 2, int(piece)}
	return t, nil
}
