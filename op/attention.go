package op

import (
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// AttentionInputs holds the operands of causal attention. Optional operands may be nil.
type AttentionInputs struct {
	Q, K, V *G.Node // (batch, length, channels); the heads are side by side along the channels

	// Context is optional, and only for a Window of at least 2: (batch, window-1, 2·channels + 1). It holds the steps before the first one,
	// the oldest first: for each step its key, its value, and 1, or 0 if there is no such step.
	Context *G.Node
	Start   *G.Node // optional: (batch, length); a non-zero element starts a new sequence at its step
}

// AttentionConfig are the options of attention.
type AttentionConfig struct {
	Heads  int     // number of heads; required; it divides the channels
	Window int     // number of steps that a step sees, itself included; 0 for all
	Rotary float64 // base of rotary positions, usually 10000; 0 for none. Elements i and i + d/2 of a head are a pair
}

// Attention returns causal attention with heads of dimension d = channels/Heads. For each head and step t, over the steps s that t sees:
//
//	y_t = Σ_s softmax_s(Q_t·K_s/√d) V_s
//
// A step sees itself and the earlier steps of its sequence, at most Window steps in all. With rotary positions, each query and key is
// first rotated by an angle that grows with its position. Their product then depends only on the distance between the two steps.
//
// The result is (batch, length, channels). Scores are computed tile by tile in both passes, so memory is linear in the length; time is
// quadratic in the length if there is no window.
//
// Errors: an operand that is missing, or of another type or shape than listed in AttentionInputs; a field of cfg out of its range.
//
// Sources: Vaswani et al., "Attention Is All You Need", section 3.2.1; Su et al., "RoFormer", section 3.2.2; Dao et al.,
// "FlashAttention", algorithm 1.
func Attention(in AttentionInputs, cfg AttentionConfig) (*G.Node, error) {
	f, c := newAttention(in, cfg)
	return c.apply1(f, (*attention[float64])(f), tensor.Shape{f.batch, f.length, f.channels})
}

// AttentionWithContext returns what Attention returns, and the Context for the steps that follow, (batch, window-1, 2·channels + 1). Use it
// to process a sequence in pieces: the results are those of the whole sequence to within rounding, gradients included.
//
// Errors: those of Attention, and a Window below 2, since without a window the context would grow with every step.
func AttentionWithContext(in AttentionInputs, cfg AttentionConfig) (y, context *G.Node, err error) {
	f, c := newAttention(in, cfg)
	if cfg.Window < 2 {
		c.errorf("Window is %d, want at least 2: only a window has a context of fixed size", cfg.Window)
	}
	f.withContext = true
	row, steps := tensor.Shape{f.batch, f.length, f.channels}, tensor.Shape{f.batch, f.Window - 1, 2*f.channels + 1}
	return c.apply2(f, (*attention[float64])(f), row, steps)
}

// attention is the function of Attention and AttentionWithContext.
type attention[T kernel.Float] struct {
	AttentionConfig
	withContext             bool
	batch, length, channels int
}

// The operands are in the order of AttentionInputs.
func newAttention(in AttentionInputs, cfg AttentionConfig) (*attention[float32], *checker) {
	const row = "(batch, length, channels)"
	c := newChecker("attention", "Q", in.Q)
	s := c.required("Q", in.Q, row, 0, 0, 0)
	f := &attention[float32]{AttentionConfig: cfg, batch: s[0], length: s[1], channels: s[2]}
	c.required("K", in.K, row, s...)
	c.required("V", in.V, row, s...)
	switch {
	case cfg.Heads < 1 || f.channels%cfg.Heads != 0:
		c.errorf("Heads is %d, want a number that divides the channels, %d", cfg.Heads, f.channels)
	case cfg.Window < 0:
		c.errorf("Window is %d, want at least 1, or 0 for all steps", cfg.Window)
	case !(cfg.Rotary == 0 || cfg.Rotary > 1 && !math.IsInf(cfg.Rotary, 1)):
		c.errorf("Rotary is %v, want a base above 1, or 0 for none", cfg.Rotary)
	case cfg.Rotary > 0 && f.channels/cfg.Heads%2 != 0:
		c.errorf("Rotary needs an even head dimension, and channels/Heads is %d", f.channels/cfg.Heads)
	case in.Context != nil && cfg.Window < 2:
		c.errorf("Context has shape %v, want none: Window is %d, and only one of at least 2 has a context", in.Context.Shape(), cfg.Window)
	}
	c.optional("Context", in.Context, "(batch, window-1, 2·channels+1)", f.batch, cfg.Window-1, 2*f.channels+1)
	c.start(in.Start, f.batch, f.length)
	return f, c
}

func (f *attention[T]) kernel(in []value[T]) *kernel.Attention[T] {
	return &kernel.Attention[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, Heads: f.Heads, Window: f.Window, Base: f.Rotary, Gemm: gemm[T](),
		Q: in[0].Data, K: in[1].Data, V: in[2].Data, Context: in[3].Data, Start: in[4].Marks,
	}
}

func (f *attention[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], second(out)) }

func (f *attention[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], second(dout), &kernel.AttentionGrad[T]{Q: grad[0], K: grad[1], V: grad[2], Context: grad[3]})
}

// Fits returns an error if the kernels do not support a size.
func (f *attention[T]) Fits(p cuda.Precision) error {
	return f.on(p, make([]onDevice, 5)).Fits()
}

func (f *attention[T]) on(p cuda.Precision, in []onDevice) *cuda.Attention {
	return &cuda.Attention{
		Batch: f.batch, Length: f.length, Channels: f.channels, Heads: f.Heads, Window: f.Window, Base: f.Rotary, Precision: p,
		Q: in[0].Array, K: in[1].Array, V: in[2].Array, Context: in[3].Array, Start: in[4].Marks,
	}
}

func (f *attention[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	return f.on(p, in).Forward(s, out[0], second(out), keep)
}

func (f *attention[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	return f.on(p, in).Backward(s, values.(*cuda.AttentionKept), dout[0], second(dout), &cuda.AttentionGrad{
		Q: grad[0], K: grad[1], V: grad[2], Context: grad[3],
	})
}
