package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// CausalConvInputs holds the operands of a causal convolution. Optional operands may be nil.
type CausalConvInputs struct {
	X      *G.Node // (batch, length, channels)
	Weight *G.Node // (channels, 1, width); the last tap is for the step itself

	Bias    *G.Node // optional: (channels)
	Context *G.Node // optional: (batch, width-1, channels); the steps before the first one, the oldest first
	Start   *G.Node // optional: (batch, length); a non-zero element starts a new sequence at its step
}

// CausalConvConfig are the options of a causal convolution.
type CausalConvConfig struct {
	SiLU bool // apply silu(x) = x·sigmoid(x) to the result
}

// CausalConv returns the causal depthwise convolution over time that a Mamba block applies before its scan. The weight has the layout of
// Hugging Face's conv1d.weight. For each batch b and channel d, over time t:
//
//	y_t = Σ_k Weight_dk · X_{t-(width-1)+k} + Bias_d, and silu of this sum if cfg.SiLU is set
//
// The result y is (batch, length, channels). Steps before the first are those of Context, or zero without it. The steps of a new sequence
// read all earlier steps, and Context, as zero, whatever their values are. The backward pass recomputes the sums before silu.
//
// Errors: an operand that is missing, or of another type or shape than listed in CausalConvInputs.
//
// Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.4.
func CausalConv(in CausalConvInputs, cfg CausalConvConfig) (y *G.Node, err error) {
	f, c := newConv(in, cfg)
	return c.apply1(f, (*conv[float64])(f), f.result())
}

// CausalConvWithContext returns what CausalConv returns, and the context for the steps that follow, (batch, width-1, channels): the last
// width-1 steps of Context and X, with zeros for steps before the last Start.
//
// To process a sequence in pieces, pass context as the Context of the next piece: the results are those of the whole sequence. If the
// width is 1 the convolution reads no earlier step: context is nil, and Context must be nil.
func CausalConvWithContext(in CausalConvInputs, cfg CausalConvConfig) (y, context *G.Node, err error) {
	f, c := newConv(in, cfg)
	if f.width == 1 {
		y, err = c.apply1(f, (*conv[float64])(f), f.result())
		return y, nil, err
	}
	f.withContext = true
	return c.apply2(f, (*conv[float64])(f), f.result(), tensor.Shape{f.batch, f.width - 1, f.channels})
}

// conv is the function of CausalConv and CausalConvWithContext.
type conv[T kernel.Float] struct {
	CausalConvConfig
	withContext                    bool
	batch, length, channels, width int
}

func (f *conv[T]) result() tensor.Shape { return tensor.Shape{f.batch, f.length, f.channels} }

// The operands are in the order of CausalConvInputs.
func newConv(in CausalConvInputs, cfg CausalConvConfig) (*conv[float32], *checker) {
	c := newChecker("causal convolution", "X", in.X)
	s := c.required("X", in.X, "(batch, length, channels)", 0, 0, 0)
	f := &conv[float32]{CausalConvConfig: cfg, batch: s[0], length: s[1], channels: s[2]}
	f.width = c.required("Weight", in.Weight, "(channels, 1, width)", f.channels, 1, 0)[2]
	c.optional("Bias", in.Bias, "(channels)", f.channels)
	c.convContext(in.Context, f.batch, f.width-1, f.channels)
	c.start(in.Start, f.batch, f.length)
	return f, c
}

// convContext checks the Context of a convolution, which holds the given number of steps.
func (c *checker) convContext(n *G.Node, batch, steps, channels int) {
	if steps == 0 && n != nil {
		c.errorf("Context has shape %v, want none: a width of 1 reads no earlier step", n.Shape())
	}
	c.optional("Context", n, "(batch, width-1, channels)", batch, steps, channels)
}

func (f *conv[T]) kernel(in []value[T]) *kernel.Conv[T] {
	return &kernel.Conv[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Width: f.width,
		X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data, Context: in[3].Data, Start: in[4].Marks, SiLU: f.SiLU,
	}
}

func (f *conv[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], second(out)) }

func (f *conv[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], second(dout), &kernel.ConvGrad[T]{X: grad[0], Weight: grad[1], Bias: grad[2], Context: grad[3]})
}

func (f *conv[T]) onDevice(in []onDevice) *cuda.Conv[float32] {
	return &cuda.Conv[float32]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Width: f.width, X: in[0].Array, XStride: f.channels,
		Weight: in[1].Array, Bias: in[2].Array, Context: in[3].Array, Start: in[4].Marks, SiLU: f.SiLU,
	}
}

func (f *conv[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(in).Forward(s, out[0], second(out))
}

func (f *conv[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return orZeros(s, dout[0], in[0].Len(), func(dy array) error {
		return f.onDevice(in).Backward(s, dy, second(dout), grad[0], f.channels, grad[1], grad[2], grad[3])
	})
}
