package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// S4Inputs holds the operands of a time-invariant state space. Optional operands may be nil. The size of the state is the number of modes
// if they are real, and twice that number if they are complex.
type S4Inputs struct {
	U        *G.Node // (batch, length, channels)
	LogDelta *G.Node // (channels): Δ = e^LogDelta
	LogDecay *G.Node // (channels, modes): Re a = -e^LogDecay
	C        *G.Node // (channels, state): the real parts of all modes, then, if complex, the imaginary parts

	Frequency *G.Node // optional: (channels, modes): Im a; if it is nil, the modes are real
	D         *G.Node // optional: (channels)

	InitialState *G.Node // optional: (batch, channels, state), in the order of C
	Start        *G.Node // optional: (batch, length); a non-zero element starts a new sequence from a zero state at its step
}

// S4Config are the options of a time-invariant state space.
type S4Config struct {
	Bilinear bool // discretise by w = (1 + Δa/2)/(1 - Δa/2), b = Δ/(1 - Δa/2) instead of the zero-order hold
}

// S4 returns the output of a diagonal, time-invariant state space for each channel. For each batch b, channel d and mode n, over time t:
//
//	w_dn = e^(Δ_d a_dn),  b_dn = (w_dn - 1)/a_dn                    (zero-order hold)
//	h_t = w_dn h_{t-1} + b_dn U_t
//	y_t = s·Re Σ_n C_dn h_t + D_d U_t
//
// Complex modes come in conjugate pairs, of which one is stored: s = 2. For real modes s = 1. The paper's B is 1, since only its product
// with C enters y.
//
// The result y is (batch, length, channels). Without InitialState and Start it is computed by FFT, as a convolution with the kernel
// K_j = s·Re Σ_n C_n b_n w_n^j. With one of them it is computed step by step. Both give the same result to within rounding. All operands
// are float32, or all float64. Start may also be of int.
//
// Every operand but Start has a gradient. Result and gradients are the same bit for bit for any number of processors.
//
// Errors: an operand that is missing, or of another type or shape than listed in S4Inputs.
//
// Sources: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 1; Gu et al., "On the
// Parameterization and Initialization of Diagonal State Space Models" (S4D), for the parameters.
func S4(in S4Inputs, cfg S4Config) (y *G.Node, err error) {
	f, err := newS4(in, cfg)
	if err != nil {
		return nil, err
	}
	f.steps = in.InitialState != nil || in.Start != nil
	return apply1(f, f.operands(in), in.U.Dtype(), in.U.Shape())
}

// S4WithState returns what S4 returns, and the state after the last step, final (batch, channels, state). It always computes step by
// step. The gradient of final flows back. To process a sequence in pieces, pass final as the InitialState of the next piece.
func S4WithState(in S4Inputs, cfg S4Config) (y, final *G.Node, err error) {
	f, err := newS4(in, cfg)
	if err != nil {
		return nil, nil, err
	}
	f.steps, f.withState = true, true
	nodes, err := apply(f, f.operands(in), in.U.Dtype(), in.U.Shape(), tensor.Shape{f.batch, f.channels, f.state})
	if err != nil {
		return nil, nil, err
	}
	return nodes[0], nodes[1], nil
}

// s4 is the function of S4 and S4WithState.
type s4 struct {
	S4Config
	steps, withState                      bool
	batch, length, channels, modes, state int
}

// The indices of S4's operands.
const (
	s4U = iota
	s4LogDelta
	s4LogDecay
	s4Frequency
	s4C
	s4D
	s4Initial
	s4Start
)

func (f *s4) operands(in S4Inputs) operands {
	return operands{
		names: []string{"U", "LogDelta", "LogDecay", "Frequency", "C", "D", "InitialState", "Start"},
		nodes: G.Nodes{in.U, in.LogDelta, in.LogDecay, in.Frequency, in.C, in.D, in.InitialState, in.Start},
	}
}

func newS4(in S4Inputs, cfg S4Config) (*s4, error) {
	c := newChecker("S4", "U", in.U)
	c.required("U", in.U, "(batch, length, channels)", 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := in.U.Shape()
	f := &s4{S4Config: cfg, batch: s[0], length: s[1], channels: s[2]}
	c.required("LogDelta", in.LogDelta, "(channels)", f.channels)
	c.required("LogDecay", in.LogDecay, "(channels, modes)", f.channels, 0)
	if c.err != nil {
		return nil, c.err
	}
	f.modes = in.LogDecay.Shape()[1]
	f.state = f.modes
	if in.Frequency != nil {
		f.state = 2 * f.modes
	}
	c.optional("Frequency", in.Frequency, "(channels, modes)", f.channels, f.modes)
	c.required("C", in.C, "(channels, state)", f.channels, f.state)
	c.optional("D", in.D, "(channels)", f.channels)
	c.optional("InitialState", in.InitialState, "(batch, channels, state)", f.batch, f.channels, f.state)
	c.start(in.Start, f.batch, f.length)
	return f, c.err
}

func (f *s4) String() string {
	return fmt.Sprintf("S4{bilinear: %t, step by step: %t, state: %t}", f.Bilinear, f.steps, f.withState)
}

func (f *s4) differentiable() []bool { return []bool{true, true, true, true, true, true, true, false} }

func (f *s4) forward(in, out []operand) {
	if out[0].is32() {
		s4Forward[float32](f, in, out)
	} else {
		s4Forward[float64](f, in, out)
	}
}

func (f *s4) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		s4Backward[float32](f, in, dout, grad)
	} else {
		s4Backward[float64](f, in, dout, grad)
	}
}

func s4Forward[T kernel.Float](f *s4, in, out []operand) {
	k := s4Kernel[T](f, in)
	if !f.steps {
		k.Convolve(floats[T](out[0]))
		return
	}
	var final []T
	if f.withState {
		final = floats[T](out[1])
	}
	k.Scan(floats[T](out[0]), final)
}

func s4Backward[T kernel.Float](f *s4, in, dout, grad []operand) {
	k, into := s4Kernel[T](f, in), &kernel.S4Grad[T]{
		U: floats[T](grad[s4U]), LogDelta: floats[T](grad[s4LogDelta]), LogDecay: floats[T](grad[s4LogDecay]),
		Frequency: floats[T](grad[s4Frequency]), C: floats[T](grad[s4C]), D: floats[T](grad[s4D]), Initial: floats[T](grad[s4Initial]),
	}
	if !f.steps {
		k.ConvolveBackward(floats[T](dout[0]), into)
		return
	}
	var dfinal []T
	if f.withState {
		dfinal = floats[T](dout[1])
	}
	k.ScanBackward(floats[T](dout[0]), dfinal, into)
}

func s4Kernel[T kernel.Float](f *s4, in []operand) *kernel.S4[T] {
	return &kernel.S4[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Modes: f.modes, Bilinear: f.Bilinear,
		U: floats[T](in[s4U]), LogDelta: floats[T](in[s4LogDelta]), LogDecay: floats[T](in[s4LogDecay]),
		Frequency: floats[T](in[s4Frequency]), C: floats[T](in[s4C]), D: floats[T](in[s4D]),
		Initial: floats[T](in[s4Initial]), Start: starts(in[s4Start]),
	}
}
