package cuda

import (
	"fmt"
)

// Scan is a selective scan on the device, with activations of type T. op.SelectiveScan defines it. States and sums are float32 for either
// type. Absent operands are zero Arrays.
type Scan[T Activation] struct {
	Batch, Length, Channels, State int

	U, Delta Array[T] // (batch, length, channels)
	// A is (channels, state). The device scans whole tiles of up to 32 steps. So if an element of A is not finite and Length is not a multiple
	// of 32, some results are NaN where the equation gives a number: the final state of an element that is -Inf, and gradients of the last
	// steps. The output y equals that of the equation.
	A    Array[float32]
	ALog bool // A holds log(-A), as Mamba's parameter does; its gradient is the gradient of log(-A)
	B, C Projection[T]

	D         Array[float32] // (channels)
	Z         Array[T]       // (batch, length, channels)
	ZStride   int            // elements between two steps of Z, which can be part of a wider matrix; 0 means channels
	DeltaBias Array[float32] // (channels)
	Initial   Array[float32] // (batch, channels, state): the state before the first step scanned
	Start     Array[uint8]   // (batch, length): a new sequence starts where it is not 0

	Softplus bool // Δ goes through softplus
	Reverse  bool // the last step is scanned first
}

// Projection is an operand B or C, of shape (batch, length, groups, state). Channel d reads group d/(channels/groups). With Groups 0 it is
// constant over time and batch, of shape (channels, state).
type Projection[T Activation] struct {
	Data   Array[T]
	Groups int
	Stride int // elements between two steps of Data, which can be part of a wider matrix; 0 means groups·state
}

// ScanGrad has the arrays for the gradients of a Scan's operands. Each has the shape and the stride of its operand, and is absent where the
// operand is.
type ScanGrad[T Activation] struct {
	U, Delta, B, C, Z        Array[T]
	A, D, DeltaBias, Initial Array[float32]
}

// Forward queues the scan. It writes y (batch, length, channels). Unless they are absent, it also writes final (batch, channels, state),
// the state after the last step scanned, and checkpoints, CheckpointLen elements that Backward needs. If an operand does not fit, Forward
// returns an error that names it and queues nothing.
func (s *Scan[T]) Forward(stream *Stream, y Array[T], final, checkpoints Array[float32]) error {
	if err := s.check(); err != nil {
		return err
	}
	rows := s.Batch * s.Length * s.Channels
	if err := firstError(
		fits("scan", "y", y.n, rows), fitsIf("scan", "final", final, s.states()), fitsIf("scan", "checkpoints", checkpoints, s.CheckpointLen()),
		stream.usable(),
	); err != nil {
		return err
	}
	if rows == 0 {
		return s.emptyForward(stream, final)
	}
	z := s.size()
	args := s.args()
	args.y, args.final, args.checkpoints = y.address, final.address, checkpoints.address
	args.alsoAligned(y.address / uintptr(size[T]()))
	var work temporaries
	defer work.free()
	if z.asyncForward != nil && s.async(&args) {
		return s.forwardAsync(stream, z, &args, &work)
	}
	return s.launch(stream, z.forward, "forward", "ends", "scan_beginnings", z, &args, &work)
}

// CheckpointLen returns the length of the checkpoints, which hold the state before every few steps.
func (s *Scan[T]) CheckpointLen() int {
	every := s.size().every
	return count(s.Batch, (s.Length+every-1)/every, s.Channels, s.State)
}

// emptyForward is Forward for a length of 0: the final state is the initial one.
func (s *Scan[T]) emptyForward(stream *Stream, final Array[float32]) error {
	switch {
	case final.Absent() || final.n == 0:
		return nil
	case s.Initial.Absent():
		return final.Fill(stream, 0)
	}
	return final.copy(stream, s.Initial.Slice(0, s.states()))
}

// check returns an error that names the first size or operand that does not fit.
func (s *Scan[T]) check() error {
	if s == nil {
		return missing("scan")
	}
	if err := atLeast(0, "scan", "Batch", s.Batch, "Length", s.Length, "Channels", s.Channels); err != nil {
		return err
	}
	if s.State < 1 || s.State > MaxState {
		return fmt.Errorf("cuda: scan: State is %d, want 1 to %d", s.State, MaxState)
	}
	if typeName[T]() == "bf16" && (s.State > maxStateBF16 || s.B.Groups == 0 || s.C.Groups == 0) {
		return fmt.Errorf("cuda: scan: State is %d, B has %d groups and C %d; with activations of bfloat16, want at most 16 states, and B "+
			"and C that vary with time", s.State, s.B.Groups, s.C.Groups)
	}
	rows := count(s.Batch, s.Length)
	zStride := s.zStride()
	if most := 1 << 25; max(s.Channels, zStride, s.B.stride(s.State), s.C.stride(s.State)) > most {
		return fmt.Errorf("cuda: scan: steps are up to %d elements apart, want at most %d",
			max(s.Channels, zStride, s.B.stride(s.State), s.C.stride(s.State)), most)
	}
	if s.ZStride < 0 {
		return fmt.Errorf("cuda: scan: ZStride is %d, want at least 0", s.ZStride)
	}
	if zStride < s.Channels {
		return fmt.Errorf("cuda: scan: ZStride is %d, want at least the %d channels", zStride, s.Channels)
	}
	return firstError(
		fits("scan", "U", s.U.n, count(rows, s.Channels)), fits("scan", "Delta", s.Delta.n, count(rows, s.Channels)),
		fits("scan", "A", s.A.n, s.Channels*s.State), s.checkProjection("B", s.B), s.checkProjection("C", s.C),
		fitsIf("scan", "D", s.D, s.Channels), fitsIf("scan", "Z", s.Z, strided(rows, zStride, s.Channels)),
		fitsIf("scan", "DeltaBias", s.DeltaBias, s.Channels), fitsIf("scan", "Initial", s.Initial, s.states()), fitsIf("scan", "Start", s.Start, rows),
	)
}

// states returns the number of elements of the state of the whole batch.
func (s *Scan[T]) states() int { return count(s.Batch, s.Channels, s.State) }

func (s *Scan[T]) checkProjection(name string, p Projection[T]) error {
	if p.Groups == 0 {
		return fits("scan", name, p.Data.n, s.Channels*s.State)
	}
	if p.Groups < 0 || s.Channels%p.Groups != 0 {
		return fmt.Errorf("cuda: scan: %s has %d groups, which does not divide %d channels", name, p.Groups, s.Channels)
	}
	if p.Stride < 0 {
		return fmt.Errorf("cuda: scan: %s has a stride of %d, want at least 0", name, p.Stride)
	}
	row := p.Groups * s.State
	if p.stride(s.State) < row {
		return fmt.Errorf("cuda: scan: %s has a stride of %d, want at least %d groups of %d states", name, p.Stride, p.Groups, s.State)
	}
	return fits("scan", name, p.Data.n, strided(count(s.Batch, s.Length), p.stride(s.State), row))
}

func (s *Scan[T]) zStride() int {
	if s.ZStride > 0 {
		return s.ZStride
	}
	return s.Channels
}

func (p Projection[T]) stride(state int) int {
	if p.Stride > 0 {
		return p.Stride
	}
	return p.Groups * state
}
