package cuda

import (
	"fmt"
	"math/bits"
	"unsafe"
)

// S4 is a time-invariant state space model for each channel, on the device. op.S4 defines it. It is computed in float64: as a recurrence, or, for
// whole sequences of many modes, as a convolution by cuFFT, if it is installed. The convolution uses up to 256 MiB of working memory.
type S4 struct {
	Batch, Length, Channels, Modes int
	Bilinear                       bool // discretise by w = (1 + Δa/2)/(1 - Δa/2), else by the zero-order hold

	U         Array[float32] // (batch, length, channels)
	LogDelta  Array[float32] // (channels)
	LogDecay  Array[float32] // (channels, modes)
	Frequency Array[float32] // (channels, modes); absent for real modes
	C         Array[float32] // (channels, state); the state has Modes numbers, or twice as many for complex modes
	D         Array[float32] // optional: (channels)
	Initial   Array[float32] // optional: (batch, channels, state)
	Start     Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0
}

// S4Grad has the arrays for the gradients of an S4's operands, in their shapes. Those of absent operands are absent.
type S4Grad struct {
	U, LogDelta, LogDecay, Frequency, C, D, Initial Array[float32]
}

// MaxModes is the largest number of modes of an S4.
const MaxModes = 256

// s4Args are the arguments of the kernels: struct S4 in kernels/s4.cu.
type s4Args struct {
	batch, length, channels, modes, bilinear, shift, chunks, steps, parts int64

	u, logDelta, logDecay, frequency, c, skip, initial, start, y, final, table, carried, broken uintptr
	dy, dfinal, du, dlogDelta, dlogDecay, dfrequency, dc, dskip, dinitial, sums, skipSums       uintptr
}

// Forward queues y (batch, length, channels) and, unless it is absent, final (batch, channels, state), the state after the last step. final
// may be Initial if Length is 1; that takes one launch.
func (p *S4) Forward(s *Stream, y, final Array[float32]) error {
	if err := p.check(); err != nil {
		return err
	}
	if err := firstError(expect("S4", "y", y.n, p.size()), optional("S4", "final", final, p.states()), s.usable()); err != nil {
		return err
	}
	args := p.args()
	args.y, args.final = y.address, final.address
	switch {
	case p.size() == 0 && !final.Absent() && !p.Initial.Absent():
		return final.Slice(0, p.states()).copy(s, p.Initial.Slice(0, p.states()))
	case p.size() == 0:
		return final.Fill(s, 0)
	case p.Length == 1:
		return s.run("s4", "s4_step", blocksOf(32*p.Batch*p.Channels, 256), unsafe.Pointer(&args))
	}
	if channels, err := p.convolves(s, final, false); err != nil || channels > 0 {
		if err == nil {
			err = p.convolve(s, &args, channels, p.U, y, false)
		}
		return err
	}
	var work temporaries
	defer func() { work.free() }()
	if err := p.enter(s, &args, &work, 1, "s4_forward_ends", "s4_carry"); err != nil {
		return err
	}
	return s.run("s4", fmt.Sprint("s4_forward_", p.lanes()), p.grid(&args, p.Batch), unsafe.Pointer(&args))
}

// Backward queues the gradients of every operand, from the gradients dy of y and dfinal of final. Either may be absent, for zeros. Sums are
// added in a fixed order.
func (p *S4) Backward(s *Stream, dy, dfinal Array[float32], grad *S4Grad) error {
	if err := p.check(); err != nil {
		return err
	}
	if grad == nil {
		return fmt.Errorf("cuda: S4: the gradients are missing, want arrays for them")
	}
	if err := optional("S4", "dy", dy, p.size(), "dfinal", dfinal, p.states()); err != nil {
		return err
	}
	for _, o := range []struct {
		name     string
		of, grad Array[float32]
		n        int
	}{
		{"U", p.U, grad.U, p.size()}, {"LogDelta", p.LogDelta, grad.LogDelta, p.Channels}, {"LogDecay", p.LogDecay, grad.LogDecay, p.Channels * p.Modes},
		{"Frequency", p.Frequency, grad.Frequency, p.Channels * p.Modes}, {"C", p.C, grad.C, p.Channels * p.state()}, {"D", p.D, grad.D, p.Channels},
		{"Initial", p.Initial, grad.Initial, p.states()},
	} {
		if o.of.Absent() && !o.grad.Absent() {
			return fmt.Errorf("cuda: S4: there is a gradient of %s, and no %s", o.name, o.name)
		}
		if !o.of.Absent() {
			if err := expect("S4", "the gradient of "+o.name, o.grad.n, o.n); err != nil {
				return err
			}
		}
	}
	if err := s.usable(); err != nil {
		return err
	}
	if p.size() == 0 {
		for _, sum := range []Array[float32]{grad.LogDelta, grad.LogDecay, grad.Frequency, grad.C, grad.D, grad.Initial} {
			if err := sum.Fill(s, 0); err != nil {
				return err
			}
		}
		if dfinal.Absent() || p.Initial.Absent() {
			return nil
		}
		return grad.Initial.Slice(0, p.states()).copy(s, dfinal.Slice(0, p.states()))
	}
	args := p.args()
	args.dy, args.dfinal, args.du, args.dinitial = dy.address, dfinal.address, grad.U.address, grad.Initial.address
	args.dlogDelta, args.dlogDecay, args.dfrequency = grad.LogDelta.address, grad.LogDecay.address, grad.Frequency.address
	args.dc, args.dskip = grad.C.address, grad.D.address
	if channels, err := p.convolves(s, dfinal, true); err != nil || channels > 0 {
		if err == nil {
			err = p.convolve(s, &args, channels, dy, grad.U, true)
		}
		return err
	}
	var work temporaries
	defer func() { work.free() }()
	if err := p.enter(s, &args, &work, 3, "s4_backward_ends", "s4_carry_back"); err != nil {
		return err
	}
	// A block adds up several sequences if there are more of them than fill the device, since each block writes its sums.
	blocks := int(p.grid(&args, 1).x) * int(args.chunks)
	each := max(1, p.Batch*blocks/(2*s4Blocks*s.multiprocessors()))
	rows := min((p.Batch+each-1)/each, mostRows)
	args.parts = args.chunks * int64(rows)
	var err error
	args.sums = take[float64](s, &work, count(int(args.parts), 6, p.Channels, p.Modes), &err).address
	args.skipSums = take[float64](s, &work, count(int(args.parts), p.Channels), &err).address
	if err != nil {
		return err
	}
	name := fmt.Sprint("s4_backward_", p.lanes())
	if !dfinal.Absent() {
		name = fmt.Sprint("s4_backward_final_", p.lanes())
	}
	if err := s.run("s4", name, p.grid(&args, rows), unsafe.Pointer(&args)); err != nil {
		return err
	}
	return s.run("s4", "s4_gradients", blocksOf(32*p.Channels, 128), unsafe.Pointer(&args))
}

// check returns an error that names the first size or operand that does not fit.
func (p *S4) check() error {
	if p == nil {
		return missing("S4")
	}
	if err := atLeast(0, "S4", "Batch", p.Batch, "Length", p.Length, "Channels", p.Channels); err != nil {
		return err
	}
	if p.Modes < 1 || p.Modes > MaxModes {
		return fmt.Errorf("cuda: S4: Modes is %d, want 1 to %d", p.Modes, MaxModes)
	}
	all := count(p.Channels, p.Modes)
	return firstError(
		expect("S4", "U", p.U.n, p.size(), "LogDelta", p.LogDelta.n, p.Channels, "LogDecay", p.LogDecay.n, all, "C", p.C.n, count(p.Channels, p.state())),
		optional("S4", "Frequency", p.Frequency, all, "D", p.D, p.Channels, "Initial", p.Initial, p.states(), "Start", p.Start, count(p.Batch, p.Length)),
	)
}

func (p *S4) size() int { return count(p.Batch, p.Length, p.Channels) }

// state returns the number of real numbers in a channel's state.
func (p *S4) state() int {
	if p.Frequency.Absent() {
		return p.Modes
	}
	return 2 * p.Modes
}

// states returns the number of elements of the state of the whole batch.
func (p *S4) states() int { return count(p.Batch, p.Channels, p.state()) }

// span returns the number of threads that share a channel, a power of two.
func (p *S4) span() int {
	span := 8
	for span < p.Modes {
		span *= 2
	}
	return span
}

// lanes returns how many of them are in one warp.
func (p *S4) lanes() int { return min(p.span(), 32) }

func (p *S4) args() s4Args {
	a := s4Args{
		batch: int64(p.Batch), length: int64(p.Length), channels: int64(p.Channels), modes: int64(p.Modes),
		shift:  int64(bits.Len(uint(256/p.span())) - 1),
		chunks: 1, steps: int64(p.Length), u: p.U.address, logDelta: p.LogDelta.address, logDecay: p.LogDecay.address,
		frequency: p.Frequency.address, c: p.C.address, skip: p.D.address, initial: p.Initial.address, start: p.Start.address,
	}
	if p.Bilinear {
		a.bilinear = 1
	}
	return a
}

// mostRows is the most blocks that a grid can have in y. With more sequences than that, a block takes several.
const mostRows = 1<<16 - 1

// grid returns the blocks for all channels and chunks, and for rows of the batch.
func (p *S4) grid(a *s4Args, rows int) grid {
	channels := 256 / p.span()
	return grid{x: int64((p.Channels + channels - 1) / channels), y: int64(min(rows, mostRows)), z: a.chunks, threads: 256}
}

const (
	s4Blocks = 4   // blocks that a multiprocessor runs at the same time
	s4Chunk  = 128 // least steps of a chunk; the length of a chunk is a multiple of the 32 steps of a tile
)

// table queues the kernel that writes the table of modes.
func (p *S4) table(s *Stream, a *s4Args, work *temporaries) (err error) {
	a.table = take[float64](s, work, count(p.Channels, p.Modes, 4), &err).address
	if err != nil {
		return err
	}
	return s.run("s4", "s4_modes", blocksOf(p.Channels*p.Modes, 128), unsafe.Pointer(a))
}

// enter queues the kernels before a pass. They write the table of modes. If the channels are too few for the device, enter cuts the length into
// chunks that run at the same time, and the kernels compute what enters each chunk, values complex numbers for each mode. They cost more than
// half as much as the pass itself, so there are at least three chunks or one.
func (p *S4) enter(s *Stream, a *s4Args, work *temporaries, values int, ends, carry string) error {
	err := p.table(s, a, work)
	if err != nil {
		return err
	}
	room := s4Blocks * s.multiprocessors() / max(1, int(p.grid(a, 1).x)*p.Batch)
	n := min(room, p.Length/s4Chunk, 64)
	if n < 3 {
		return nil
	}
	a.steps = int64((p.Length + 32*n - 1) / (32 * n) * 32)
	a.chunks = (a.length + a.steps - 1) / a.steps
	a.carried = take[float64](s, work, count(p.Batch, int(a.chunks), values, p.Channels, p.Modes, 2), &err).address
	a.broken = take[int32](s, work, count(p.Batch, int(a.chunks)), &err).address
	if err != nil {
		return err
	}
	if err := s.run("s4", ends, p.grid(a, p.Batch), unsafe.Pointer(a)); err != nil {
		return err
	}
	return s.run("s4", carry, blocksOf(p.Batch*p.Channels*p.Modes, 128), unsafe.Pointer(a))
}
