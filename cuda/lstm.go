package cuda

import (
	"errors"
	"fmt"
	"unsafe"
)

// LSTM is the recurrence of a long short-term memory. op.LSTM defines it. A launch goes through all steps; long recurrent weights are read
// from the device's caches. The recurrence computes in float32 in every precision.
type LSTM struct {
	Batch, Length, Channels int
	Precision               Precision // of the product that is the gradient of R

	Z     Array[float32] // (batch, length, 4·channels): the input's part of the gates, in the order i, f, g, o
	R     Array[float32] // (4·channels, channels)
	H, C  Array[float32] // optional: (batch, channels): the state before the first step
	Start Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0
}

// LSTMKept holds the values of an LSTM's forward pass that its backward pass needs. Free it once.
type LSTMKept struct{ gates, cells Array[float32] }

// Free frees the arrays.
func (k *LSTMKept) Free() {
	k.gates.Free()
	k.cells.Free()
	*k = LSTMKept{}
}

// lstmArgs has the same fields as the kernels' struct LSTM (kernels/lstm.cu).
type lstmArgs struct {
	batch, length, width, first                               int64
	z, r, h, c, start, y, nextH, nextC, gates, cells, arrived uintptr
	dy, dnextH, dnextC, dz, dh, dc, dcells                    uintptr
}

func (l *LSTM) check() error {
	if l == nil {
		return missing("LSTM")
	}
	if err := firstError(atLeast(0, "LSTM", "Batch", l.Batch, "Length", l.Length), atLeast(1, "LSTM", "Channels", l.Channels)); err != nil {
		return err
	}
	if err := l.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: LSTM: %w", err)
	}
	return firstError(
		expect("LSTM", "Z", l.Z.n, count(l.Batch, l.Length, 4, l.Channels), "R", l.R.n, count(4, l.Channels, l.Channels)),
		optional("LSTM", "H", l.H, l.states(), "C", l.C, l.states(), "Start", l.Start, count(l.Batch, l.Length)),
	)
}

// size returns the number of elements of y, states that of h and of c.
func (l *LSTM) size() int   { return count(l.Batch, l.Length, l.Channels) }
func (l *LSTM) states() int { return count(l.Batch, l.Channels) }

func (l *LSTM) args() lstmArgs {
	return lstmArgs{
		batch: int64(l.Batch), length: int64(l.Length), width: int64(l.Channels), z: l.Z.address, r: l.R.address, h: l.H.address, c: l.C.address,
		start: l.Start.address,
	}
}

// launch queues a pass over all steps: a cooperative launch for as many groups of sequences as fit on the device with a block each. A pass
// of one step needs no cooperation.
func (l *LSTM) launch(s *Stream, direction string, a *lstmArgs) error {
	const warps = 8 // per block, a unit each
	group, name := 8, "lstm_"+direction+"_8"
	if l.Batch == 1 {
		group, name = 1, "lstm_"+direction+"_1"
	}
	together, steps := s.device.multiprocessors, l.Length
	if a.dh != 0 || a.dc != 0 {
		steps++ // the initial state
	}
	groups := (l.Batch + group - 1) / group
	for first := 0; first < groups; first += together {
		n := min(groups-first, together)
		g := grid{x: int64((l.Channels + warps - 1) / warps), y: int64(n), threads: 32 * warps}
		if a.first = int64(first * group); steps > 1 {
			arrived, err := NewArray[int32](s, n)
			if err != nil {
				return err
			}
			defer arrived.Free()
			if err := arrived.Fill(s, 0); err != nil {
				return err
			}
			a.arrived, g.x, g.mode = arrived.address, min(g.x, int64(together/n)), cooperative
		}
		if err := s.run("lstm", name, g, unsafe.Pointer(a)); err != nil {
			return err
		}
	}
	return nil
}

// Forward queues h of each step, y (batch, length, channels), and unless they are absent nextH and nextC (batch, channels), the state after the last step.
// With keep, it returns the values that Backward needs.
func (l *LSTM) Forward(s *Stream, y, nextH, nextC Array[float32], keep bool) (*LSTMKept, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if err := firstError(
		expect("LSTM", "y", y.n, l.size()), optional("LSTM", "nextH", nextH, l.states(), "nextC", nextC, l.states()), s.usable(),
	); err != nil {
		return nil, err
	}
	var work temporaries
	var err error
	k := new(LSTMKept)
	if keep {
		k.gates, k.cells = take[float32](s, &work, 4*l.size(), &err), take[float32](s, &work, l.size(), &err)
	} else {
		k.cells = take[float32](s, &work, l.Batch*l.Channels, &err)
	}
	a := l.args()
	a.y, a.nextH, a.nextC, a.gates, a.cells = y.address, nextH.address, nextC.address, k.gates.address, k.cells.address
	switch {
	case err != nil:
	case l.size() > 0:
		err = l.launch(s, "forward", &a)
	default:
		for _, x := range [][2]Array[float32]{{nextH, l.H}, {nextC, l.C}} {
			switch next, first := x[0], x[1]; {
			case next.Absent():
			case first.Absent():
				err = firstError(err, next.Fill(s, 0))
			default:
				err = firstError(err, next.copy(s, first.Slice(0, l.states())))
			}
		}
	}
	if err != nil || !keep {
		work.free()
		return nil, err
	}
	return k, nil
}

// Backward queues the gradients dz, dr and, unless they are absent, dh and dc of the operands, in their shapes. Its inputs are the values that
// Forward kept, and the gradients dy, dnextH and dnextC of Forward's results, which may be absent. Sums are added in a fixed order.
func (l *LSTM) Backward(s *Stream, k *LSTMKept, dy, dnextH, dnextC, dz, dr, dh, dc Array[float32]) error {
	if err := l.check(); err != nil {
		return err
	}
	if k == nil {
		return errors.New("cuda: LSTM: the kept values are missing, want what Forward kept")
	}
	if err := firstError(
		expect("LSTM", "kept gates", k.gates.n, 4*l.size(), "kept cells", k.cells.n, l.size(), "dz", dz.n, 4*l.size(), "dr", dr.n, 4*l.Channels*l.Channels),
		optional("LSTM", "dy", dy, l.size(), "dnextH", dnextH, l.states(), "dnextC", dnextC, l.states(), "dh", dh, l.states(), "dc", dc, l.states()),
		s.usable(),
	); err != nil {
		return err
	}
	if l.Batch == 0 || l.Length == 0 && dh.Absent() && dc.Absent() {
		return dr.Fill(s, 0)
	}
	var work temporaries
	defer work.free()
	var err error
	wide := 4 * l.Channels
	r, dcells, before := take[float32](s, &work, wide*l.Channels, &err), take[float32](s, &work, l.Batch*l.Channels, &err), take[float32](s, &work, l.size(), &err)
	if err != nil {
		return err
	}
	if err := s.run("lstm", "lstm_transpose", blocksOf(wide*l.Channels, 256), l.R.address, r.address, wide, l.Channels); err != nil {
		return err
	}
	a := l.args()
	a.r, a.gates, a.cells = r.address, k.gates.address, k.cells.address
	a.dy, a.dnextH, a.dnextC, a.dz, a.dh, a.dc, a.dcells = dy.address, dnextH.address, dnextC.address, dz.address, dh.address, dc.address, dcells.address
	if err := l.launch(s, "backward", &a); err != nil || l.Length == 0 {
		return firstError(err, dr.Fill(s, 0))
	}
	if err := s.run("lstm", "lstm_before", blocksOf(l.size(), 256), unsafe.Pointer(&a), before.address); err != nil {
		return err
	}
	p := &Linear{Rows: l.Batch * l.Length, In: l.Channels, Out: wide, Precision: l.Precision, X: before, Weight: l.R}
	return p.Backward(s, dz, Array[float32]{}, dr, Array[float32]{})
}
