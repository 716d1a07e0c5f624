package op

import (
	"math"

	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// AttentionInputs are the operands of causal attention; the optional ones may be nil.
type AttentionInputs struct {
	Q, K, V *G.Node // (batch, length, width), the heads side by side

	Context *G.Node // optional, with a window: (batch, window-1, 2·width + 1); for each step before the first key, value, and 1
	Start   *G.Node // optional: (batch, length); where it is non-zero a new sequence starts
}

// AttentionConfig are the options of attention.
type AttentionConfig struct {
	Heads  int     // required; they divide the width
	Window int     // steps that each one sees, itself among them; 0 for all
	Rotary float64 // base of rotary positions, usually 10000; 0 for none. The halves of a head are its pairs
}

// Attention is causal attention (Vaswani et al., "Attention Is All You Need", section 3.2.1) with heads of dimension
// d = width/Heads. For each head and step t, over the steps s that t sees:
//
//	y_t = Σ_s softmax_s(Q_t·K_s/√d) V_s
//
// A step sees itself and what came before it, up to where its sequence started, and no more than Window steps. With rotary
// positions, queries and keys are turned by their place first (Su et al., "RoFormer", section 3.2.2), so that their product
// depends on how far they are apart.
//
// The result is (batch, length, width). Scores are computed a tile at a time (Dao et al., "FlashAttention"), forward and
// backward: memory is linear in the length, time is not. Every operand but Start has a gradient. Result and gradients are the
// same bit for bit for any number of processors. The errors name the operand that is missing or does not fit.
func Attention(in AttentionInputs, cfg AttentionConfig) (*G.Node, error) {
	f, err := newAttention(in, cfg)
	if err != nil {
		return nil, err
	}
	return apply1(f, f.operands(in), in.Q.Dtype(), in.Q.Shape())
}

// AttentionWithContext is Attention that also returns the Context of what comes next, (batch, window-1, 2·width + 1). It needs a
// window of at least 2: without one, what has to be remembered grows with every step. Pieces are then one sequence, to within
// rounding, gradients included.
func AttentionWithContext(in AttentionInputs, cfg AttentionConfig) (y, context *G.Node, err error) {
	f, err := newAttention(in, cfg)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Window < 2 {
		return nil, nil, fmt.Errorf("op: attention: Window is %d, want at least 2: only a window has a context of fixed size", cfg.Window)
	}
	f.withContext = true
	nodes, err := apply(f, f.operands(in), in.Q.Dtype(), in.Q.Shape(), tensor.Shape{f.batch, f.Window - 1, 2*f.width + 1})
	if err != nil {
		return nil, nil, err
	}
	return nodes[0], nodes[1], nil
}

// attention is the function of both operators.
type attention struct {
	AttentionConfig
	withContext          bool
	batch, length, width int
}

// The places of its operands.
const (
	attentionQ = iota
	attentionK
	attentionV
	attentionContext
	attentionStart
)

func (f *attention) operands(in AttentionInputs) operands {
	return operands{[]string{"Q", "K", "V", "Context", "Start"}, G.Nodes{in.Q, in.K, in.V, in.Context, in.Start}}
}

func newAttention(in AttentionInputs, cfg AttentionConfig) (*attention, error) {
	const row = "(batch, length, width)"
	c := newChecker("attention", "Q", in.Q)
	c.required("Q", in.Q, row, 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := in.Q.Shape()
	f := &attention{AttentionConfig: cfg, batch: s[0], length: s[1], width: s[2]}
	c.required("K", in.K, row, s...)
	c.required("V", in.V, row, s...)
	switch {
	case cfg.Heads < 1 || f.width%cfg.Heads != 0:
		c.errorf("Heads is %d, want a number that divides the width, %d", cfg.Heads, f.width)
	case cfg.Window < 0:
		c.errorf("Window is %d, want at least 1, or 0 for all steps", cfg.Window)
	case !(cfg.Rotary == 0 || cfg.Rotary > 1 && !math.IsInf(cfg.Rotary, 1)):
		c.errorf("Rotary is %v, want a base above 1, or 0 for none", cfg.Rotary)
	case cfg.Rotary > 0 && f.width/cfg.Heads%2 != 0:
		c.errorf("Rotary needs an even head dimension, and width/Heads is %d", f.width/cfg.Heads)
	case in.Context != nil && cfg.Window < 2:
		c.errorf("Context has shape %v, want none: Window is %d, and only one of at least 2 has a context", in.Context.Shape(), cfg.Window)
	}
	if c.err == nil {
		c.optional("Context", in.Context, "(batch, window-1, 2·width+1)", f.batch, cfg.Window-1, 2*f.width+1)
	}
	c.start(in.Start, f.batch, f.length)
	return f, c.err
}

func (f *attention) String() string {
	return fmt.Sprintf("attention{heads: %d, window: %d, rotary: %v, context: %t}", f.Heads, f.Window, f.Rotary, f.withContext)
}

func (f *attention) differentiable() []bool { return []bool{true, true, true, true, false} }

func (f *attention) forward(in, out []operand) {
	if out[0].is32() {
		attentionForward(f, in, out, product().Sgemm)
	} else {
		attentionForward(f, in, out, product().Dgemm)
	}
}

func (f *attention) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		attentionBackward(f, in, dout, grad, product().Sgemm)
	} else {
		attentionBackward(f, in, dout, grad, product().Dgemm)
	}
}

func attentionForward[T kernel.Float](f *attention, in, out []operand, gemm kernel.Gemm[T]) {
	var next []T
	if f.withContext {
		next = floats[T](out[1])
	}
	attentionKernel(f, in, gemm).Forward(floats[T](out[0]), next)
}

func attentionBackward[T kernel.Float](f *attention, in, dout, grad []operand, gemm kernel.Gemm[T]) {
	var dnext []T
	if f.withContext {
		dnext = floats[T](dout[1])
	}
	attentionKernel(f, in, gemm).Backward(floats[T](dout[0]), dnext, &kernel.AttentionGrad[T]{
		Q: floats[T](grad[attentionQ]), K: floats[T](grad[attentionK]), V: floats[T](grad[attentionV]),
		Context: floats[T](grad[attentionContext]),
	})
}

func attentionKernel[T kernel.Float](f *attention, in []operand, gemm kernel.Gemm[T]) *kernel.Attention[T] {
	return &kernel.Attention[T]{
		Batch: f.batch, Length: f.length, Width: f.width, Heads: f.Heads, Window: f.Window, Base: f.Rotary, Gemm: gemm,
		Q: floats[T](in[attentionQ]), K: floats[T](in[attentionK]), V: floats[T](in[attentionV]),
		Context: floats[T](in[attentionContext]), Start: starts(in[attentionStart]),
	}
}
