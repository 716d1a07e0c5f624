package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
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
// K_j = s·Re Σ_n C_n b_n w_n^j. With one of them it is computed step by step. Both give the same result to within rounding.
//
// Errors: an operand that is missing, or of another type or shape than listed in S4Inputs.
//
// Sources: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 1; Gu et al., "On the
// Parameterization and Initialization of Diagonal State Space Models" (S4D), for the parameters.
func S4(in S4Inputs, cfg S4Config) (y *G.Node, err error) {
	f, c := newS4(in, cfg)
	f.steps = in.InitialState != nil || in.Start != nil
	return c.apply1(f, (*s4[float64])(f), tensor.Shape{f.batch, f.length, f.channels})
}

// S4WithState returns what S4 returns, and the state after the last step, final (batch, channels, state). It always computes step by
// step. To process a sequence in pieces, pass final as the InitialState of the next piece.
func S4WithState(in S4Inputs, cfg S4Config) (y, final *G.Node, err error) {
	f, c := newS4(in, cfg)
	f.steps, f.withState = true, true
	row, state := tensor.Shape{f.batch, f.length, f.channels}, tensor.Shape{f.batch, f.channels, f.state}
	return c.apply2(f, (*s4[float64])(f), row, state)
}

// s4 is the function of S4 and S4WithState.
type s4[T kernel.Float] struct {
	S4Config
	steps, withState                      bool
	batch, length, channels, modes, state int
}

// The operands are checked in the order of kernel and onDevice.
func newS4(in S4Inputs, cfg S4Config) (*s4[float32], *checker) {
	c := newChecker("S4", "U", in.U)
	s := c.required("U", in.U, "(batch, length, channels)", 0, 0, 0)
	f := &s4[float32]{S4Config: cfg, batch: s[0], length: s[1], channels: s[2]}
	c.required("LogDelta", in.LogDelta, "(channels)", f.channels)
	f.modes = c.required("LogDecay", in.LogDecay, "(channels, modes)", f.channels, 0)[1]
	f.state = f.modes
	if in.Frequency != nil {
		f.state = 2 * f.modes
	}
	c.optional("Frequency", in.Frequency, "(channels, modes)", f.channels, f.modes)
	c.required("C", in.C, "(channels, state)", f.channels, f.state)
	c.optional("D", in.D, "(channels)", f.channels)
	c.optional("InitialState", in.InitialState, "(batch, channels, state)", f.batch, f.channels, f.state)
	c.start(in.Start, f.batch, f.length)
	return f, c
}

func (f *s4[T]) kernel(in []value[T]) *kernel.S4[T] {
	return &kernel.S4[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Modes: f.modes, Bilinear: f.Bilinear,
		U: in[0].Data, LogDelta: in[1].Data, LogDecay: in[2].Data, Frequency: in[3].Data,
		C: in[4].Data, D: in[5].Data, Initial: in[6].Data, Start: in[7].Marks,
	}
}

func (f *s4[T]) Forward(in []value[T], out [][]T) {
	if k := f.kernel(in); f.steps {
		k.Scan(out[0], second(out))
	} else {
		k.Convolve(out[0])
	}
}

func (f *s4[T]) Backward(in []value[T], dout, grad [][]T) {
	into := &kernel.S4Grad[T]{
		U: grad[0], LogDelta: grad[1], LogDecay: grad[2], Frequency: grad[3], C: grad[4], D: grad[5], Initial: grad[6],
	}
	if k := f.kernel(in); f.steps {
		k.ScanBackward(dout[0], second(dout), into)
	} else {
		k.ConvolveBackward(dout[0], into)
	}
}

// Fits returns an error for more modes than the device function supports.
func (f *s4[T]) Fits(cuda.Precision) error {
	if f.modes > cuda.MaxModes {
		return fmt.Errorf("LogDecay has %d modes, want at most %d on a device", f.modes, cuda.MaxModes)
	}
	return nil
}

func (f *s4[T]) onDevice(in []onDevice) *cuda.S4 {
	return &cuda.S4{
		Batch: f.batch, Length: f.length, Channels: f.channels, Modes: f.modes, Bilinear: f.Bilinear,
		U: in[0].Array, LogDelta: in[1].Array, LogDecay: in[2].Array, Frequency: in[3].Array,
		C: in[4].Array, D: in[5].Array, Initial: in[6].Array, Start: in[7].Marks,
	}
}

func (f *s4[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(in).Forward(s, out[0], second(out))
}

func (f *s4[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice(in).Backward(s, dout[0], second(dout), &cuda.S4Grad{
		U: grad[0], LogDelta: grad[1], LogDecay: grad[2], Frequency: grad[3], C: grad[4], D: grad[5], Initial: grad[6],
	})
}
