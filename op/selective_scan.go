package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// ScanInputs holds the operands of a selective scan. Optional operands may be nil.
type ScanInputs struct {
	U, Delta *G.Node // (batch, length, channels)
	A        *G.Node // (channels, state)
	B, C     *G.Node // (batch, length, state), (batch, length, groups, state), or constant over time (channels, state)

	D            *G.Node // optional: (channels)
	Z            *G.Node // optional: (batch, length, channels)
	DeltaBias    *G.Node // optional: (channels)
	InitialState *G.Node // optional: (batch, channels, state)
	Start        *G.Node // optional: (batch, length); a non-zero element starts a new sequence from a zero state at its step
}

// ScanConfig are the options of a selective scan.
type ScanConfig struct {
	DeltaSoftplus bool // Δ = softplus(Delta + DeltaBias)
	// Reverse scans from the last step to the first, without copying the operands. InitialState then enters at the last step. A Start
	// still separates its step from the steps before it in time.
	Reverse bool
}

// SelectiveScan returns the output of a selective scan (S6). For each batch b, channel d and state n, over time t:
//
//	Δ_t = Delta_t + DeltaBias_d, and softplus of this sum if cfg.DeltaSoftplus is set
//	h_t = exp(Δ_t A_dn) h_{t-1} + Δ_t B_tn u_t
//	y_t = (Σ_n C_tn h_t + D_d u_t) · silu(Z_t)
//
// The result y is (batch, length, channels). Each of B and C varies over time or is constant, independently of the other. Channel d reads
// group d/(channels/groups). No state, InitialState included, crosses the boundary between a step with a Start and the step before it.
// The backward pass recomputes the states from checkpoints. No value of shape (batch, length, channels, state) is ever held
// (docs/selective_scan.md).
//
// Errors: an operand that is missing, or of another type or shape than listed in ScanInputs; a number of groups that does not divide the
// channels.
//
// Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 2.
func SelectiveScan(in ScanInputs, cfg ScanConfig) (y *G.Node, err error) {
	f, c := newScan(in, cfg)
	return c.apply1(f, (*scan[float64])(f), f.result())
}

// SelectiveScanWithState returns what SelectiveScan returns, and the state after the last step scanned, final (batch, channels, state).
//
// To process a sequence in pieces, pass final as the InitialState of the next piece. With Reverse, the next piece is the one before in
// time. In that case do not pass final on if the piece begins with a Start: final belongs to the sequence that starts there.
func SelectiveScanWithState(in ScanInputs, cfg ScanConfig) (y, final *G.Node, err error) {
	f, c := newScan(in, cfg)
	f.withState = true
	return c.apply2(f, (*scan[float64])(f), f.result(), tensor.Shape{f.batch, f.channels, f.state})
}

// scan is the function of SelectiveScan and SelectiveScanWithState.
type scan[T kernel.Float] struct {
	ScanConfig
	withState                      bool
	batch, length, channels, state int
	bGroups, cGroups               int // 0 if constant over time
}

func (f *scan[T]) result() tensor.Shape { return tensor.Shape{f.batch, f.length, f.channels} }

// The operands are in the order of ScanInputs.
func newScan(in ScanInputs, cfg ScanConfig) (*scan[float32], *checker) {
	const row = "(batch, length, channels)"
	c := newChecker("selective scan", "U", in.U)
	s := c.required("U", in.U, row, 0, 0, 0)
	f := &scan[float32]{ScanConfig: cfg, batch: s[0], length: s[1], channels: s[2]}
	c.required("Delta", in.Delta, row, s...)
	f.state = c.required("A", in.A, "(channels, state)", f.channels, 0)[1]
	f.bGroups = f.groups(c, "B", in.B)
	f.cGroups = f.groups(c, "C", in.C)
	c.optional("D", in.D, "(channels)", f.channels)
	c.optional("Z", in.Z, row, s...)
	c.optional("DeltaBias", in.DeltaBias, "(channels)", f.channels)
	c.optional("InitialState", in.InitialState, "(batch, channels, state)", f.batch, f.channels, f.state)
	c.start(in.Start, f.batch, f.length)
	return f, c
}

// groups returns the number of groups of B or C, 0 if it is constant over time.
func (f *scan[T]) groups(c *checker, name string, n *G.Node) int {
	if n == nil {
		c.errorf("%s is missing, want a node of shape (batch, length, state), (batch, length, groups, state) or (channels, state)", name)
		return 0
	}
	switch s := n.Shape(); len(s) {
	case 2:
		c.required(name, n, "(channels, state)", f.channels, f.state)
		return 0
	case 3:
		c.required(name, n, "(batch, length, state)", f.batch, f.length, f.state)
		return 1
	case 4:
		c.required(name, n, "(batch, length, groups, state)", f.batch, f.length, 0, f.state)
		if c.err == nil && f.channels%s[2] != 0 {
			c.errorf("%s has %d groups, which does not divide %d channels", name, s[2], f.channels)
		}
		return s[2]
	default:
		c.errorf("%s has shape %v, want (batch, length, state), (batch, length, groups, state) or (channels, state)", name, s)
		return 0
	}
}

func (f *scan[T]) kernel(in []value[T]) *kernel.Scan[T] {
	return &kernel.Scan[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, State: f.state,
		U: in[0].Data, Delta: in[1].Data, A: in[2].Data,
		B: kernel.Projection[T]{Data: in[3].Data, Groups: f.bGroups},
		C: kernel.Projection[T]{Data: in[4].Data, Groups: f.cGroups},
		D: in[5].Data, Z: in[6].Data, DeltaBias: in[7].Data, Initial: in[8].Data, Start: in[9].Marks,
		Softplus: f.DeltaSoftplus, Reverse: f.Reverse,
	}
}

func (f *scan[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], second(out)) }

func (f *scan[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], second(dout), &kernel.ScanGrad[T]{
		U: grad[0], Delta: grad[1], A: grad[2], B: grad[3], C: grad[4],
		D: grad[5], Z: grad[6], DeltaBias: grad[7], Initial: grad[8],
	})
}

func (f *scan[T]) Fits(cuda.Precision) error { return stateFits(f.state) }

// stateFits returns an error if the state of a scan is too large for a device.
func stateFits(state int) error {
	if state > cuda.MaxState {
		return fmt.Errorf("the state is %d, want at most %d on a device", state, cuda.MaxState)
	}
	return nil
}

func (f *scan[T]) onDevice(in []onDevice) *cuda.Scan[float32] {
	return &cuda.Scan[float32]{
		Batch: f.batch, Length: f.length, Channels: f.channels, State: f.state,
		U: in[0].Array, Delta: in[1].Array, A: in[2].Array,
		B: cuda.Projection[float32]{Data: in[3].Array, Groups: f.bGroups},
		C: cuda.Projection[float32]{Data: in[4].Array, Groups: f.cGroups},
		D: in[5].Array, Z: in[6].Array, DeltaBias: in[7].Array, Initial: in[8].Array, Start: in[9].Marks,
		Softplus: f.DeltaSoftplus, Reverse: f.Reverse,
	}
}

// ForwardOn keeps the checkpoints of the states.
func (f *scan[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	on := f.onDevice(in)
	if !keep {
		return nil, on.Forward(s, out[0], second(out), array{})
	}
	checkpoints, err := cuda.NewArray[float32](s, on.CheckpointLen())
	if err != nil {
		return nil, err
	}
	if err := on.Forward(s, out[0], second(out), checkpoints); err != nil {
		checkpoints.Free()
		return nil, err
	}
	return checkpoints, nil
}

func (f *scan[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	return orZeros(s, dout[0], in[0].Len(), func(dy array) error {
		return f.onDevice(in).Backward(s, values.(array), dy, second(dout), &cuda.ScanGrad[float32]{
			U: grad[0], Delta: grad[1], A: grad[2], B: grad[3], C: grad[4],
			D: grad[5], Z: grad[6], DeltaBias: grad[7], Initial: grad[8],
		})
	})
}
