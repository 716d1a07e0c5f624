package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// BlockInputs holds the operands of a Mamba block. Optional operands may be nil. The number of channels is expand · d_model, which other
// implementations call d_inner.
type BlockInputs struct {
	X          *G.Node // (batch, length, model)
	NormWeight *G.Node // (model)
	InProj     *G.Node // (2·channels, model)
	ConvWeight *G.Node // (channels, 1, width); the last tap is for the step itself
	XProj      *G.Node // (rank + 2·state, channels)
	DtProj     *G.Node // (channels, rank)
	DtBias     *G.Node // (channels)
	ALog       *G.Node // (channels, state); A = -exp(ALog)
	D          *G.Node // (channels)
	OutProj    *G.Node // (model, channels)

	InBias       *G.Node // optional: (2·channels)
	ConvBias     *G.Node // optional: (channels)
	OutBias      *G.Node // optional: (model)
	Context      *G.Node // optional: (batch, width-1, channels); the convolution's inputs before the first step, the oldest first
	InitialState *G.Node // optional: (batch, channels, state)
	Start        *G.Node // optional: (batch, length); a non-zero element starts a new sequence at its step
}

// Recompute says which values of the forward pass a block keeps for its backward pass. It recomputes the others. Results and gradients
// are the same bit for bit. A graph without gradients keeps nothing, nor does a graph on the lisp machine.
//
// The comments of the constants give the memory that a block keeps for each step beside its result, in float32 for a model of width 768
// (channels 1536, rank 48, state 16).
type Recompute int

const (
	// RecomputeCheap keeps the values that are expensive to recompute, the products with InProj and XProj: 2·channels + rank + 2·state
	// numbers, 12.3 KiB. It recomputes the norm, the convolution and Δ.
	RecomputeCheap Recompute = iota
	// RecomputeNone keeps all of these: 4·channels + model + rank + 2·state numbers, 27.3 KiB.
	RecomputeNone
	// RecomputeAll keeps nothing. It recomputes the block up to the scan.
	RecomputeAll
)

func (r Recompute) String() string {
	switch r {
	case RecomputeCheap:
		return "cheap"
	case RecomputeNone:
		return "none"
	case RecomputeAll:
		return "all"
	}
	return fmt.Sprintf("Recompute(%d)", int(r))
}

// BlockConfig are the options of a Mamba block.
type BlockConfig struct {
	Eps       float64   // added to the mean of squares in the norm
	Recompute Recompute // what the backward pass recomputes
}

// MambaBlock returns the result of a Mamba block, computed by one operator:
//
//	v, z    = RMSNorm(X)·InProjᵀ + InBias
//	u       = silu(causal convolution of v)
//	r, B, C = u·XProjᵀ
//	y       = X + SelectiveScan(u, r·DtProjᵀ, A, B, C, D, z)·OutProjᵀ + OutBias
//
// with Δ = softplus(r·DtProjᵀ + DtBias) in the scan. The result y has X's shape. It equals the composition of RMSNorm, Linear, CausalConv
// and SelectiveScan, but the machine holds none of the values between them. The weights have the layout of Hugging Face's
// implementation. All operands are float32, or all float64. Start may also be of int, and works as in CausalConv and SelectiveScan.
//
// Every operand but Start has a gradient. Result and gradients are the same bit for bit for any number of processors, if the BLAS in use
// computes the same products for any number.
//
// Errors: an operand that is missing, or of another type or shape than listed in BlockInputs; a field of cfg out of its range.
//
// Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", figure 3 and section 3.4.
func MambaBlock(in BlockInputs, cfg BlockConfig) (y *G.Node, err error) {
	f, err := newBlock(in, cfg)
	if err != nil {
		return nil, err
	}
	return apply1(f, f.operands(in), in.X.Dtype(), in.X.Shape())
}

// MambaBlockWithState returns what MambaBlock returns, and the state after the last step: context (batch, width-1, channels) and final
// (batch, channels, state), the Context and the InitialState for the steps that follow. Gradients of both flow back. If the width is 1
// the convolution reads no earlier step: context is nil, and Context must be nil.
func MambaBlockWithState(in BlockInputs, cfg BlockConfig) (y, context, final *G.Node, err error) {
	f, err := newBlock(in, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	f.withState = true
	nodes, err := apply(f, f.operands(in), in.X.Dtype(), f.results()...)
	if err != nil {
		return nil, nil, nil, err
	}
	if f.width > 1 {
		context = nodes[1]
	}
	return nodes[0], context, nodes[len(nodes)-1], nil
}

// mambaBlock is the function of MambaBlock and MambaBlockWithState.
type mambaBlock struct {
	BlockConfig
	withState                           bool
	batch, length                       int
	model, channels, state, width, rank int
}

// The indices of a block's operands.
const (
	blockX = iota
	blockNorm
	blockInProj
	blockConv
	blockXProj
	blockDtProj
	blockDtBias
	blockALog
	blockD
	blockOutProj
	blockInBias
	blockConvBias
	blockOutBias
	blockContext
	blockInitial
	blockStart
	blockOperands
)

func (f *mambaBlock) operands(in BlockInputs) operands {
	return operands{
		names: []string{"X", "NormWeight", "InProj", "ConvWeight", "XProj", "DtProj", "DtBias", "ALog", "D", "OutProj",
			"InBias", "ConvBias", "OutBias", "Context", "InitialState", "Start"},
		nodes: G.Nodes{in.X, in.NormWeight, in.InProj, in.ConvWeight, in.XProj, in.DtProj, in.DtBias, in.ALog, in.D, in.OutProj,
			in.InBias, in.ConvBias, in.OutBias, in.Context, in.InitialState, in.Start},
	}
}

// BlockSizes holds the sizes of a Mamba block.
type BlockSizes struct{ Batch, Length, Model, Channels, State, Width, Rank int }

// Sizes returns the sizes of a block with these operands. Errors: those of MambaBlock that are about operands.
func (in BlockInputs) Sizes() (s BlockSizes, err error) {
	c := newChecker(blockName, "X", in.X)
	c.required("X", in.X, "(batch, length, model)", 0, 0, 0)
	if c.err != nil {
		return s, c.err
	}
	s.Batch, s.Length, s.Model = in.X.Shape()[0], in.X.Shape()[1], in.X.Shape()[2]
	c.required("NormWeight", in.NormWeight, "(model)", s.Model)
	c.required("ALog", in.ALog, "(channels, state)", 0, 0)
	if c.err != nil {
		return s, c.err
	}
	s.Channels, s.State = in.ALog.Shape()[0], in.ALog.Shape()[1]
	c.required("InProj", in.InProj, "(2·channels, model)", 2*s.Channels, s.Model)
	c.required("ConvWeight", in.ConvWeight, "(channels, 1, width)", s.Channels, 1, 0)
	c.required("DtProj", in.DtProj, "(channels, rank)", s.Channels, 0)
	if c.err != nil {
		return s, c.err
	}
	s.Width, s.Rank = in.ConvWeight.Shape()[2], in.DtProj.Shape()[1]
	c.required("XProj", in.XProj, "(rank + 2·state, channels)", s.Rank+2*s.State, s.Channels)
	c.required("DtBias", in.DtBias, "(channels)", s.Channels)
	c.required("D", in.D, "(channels)", s.Channels)
	c.required("OutProj", in.OutProj, "(model, channels)", s.Model, s.Channels)
	c.optional("InBias", in.InBias, "(2·channels)", 2*s.Channels)
	c.optional("ConvBias", in.ConvBias, "(channels)", s.Channels)
	c.optional("OutBias", in.OutBias, "(model)", s.Model)
	if s.Width > 1 {
		c.optional("Context", in.Context, "(batch, width-1, channels)", s.Batch, s.Width-1, s.Channels)
	} else if in.Context != nil {
		c.errorf("Context has shape %v, want none: a width of 1 reads no earlier step", in.Context.Shape())
	}
	c.optional("InitialState", in.InitialState, "(batch, channels, state)", s.Batch, s.Channels, s.State)
	c.start(in.Start, s.Batch, s.Length)
	return s, c.err
}

const blockName = "Mamba block"

func newBlock(in BlockInputs, cfg BlockConfig) (*mambaBlock, error) {
	s, err := in.Sizes()
	c := &checker{op: blockName, err: err}
	if !(cfg.Eps >= 0) || math.IsInf(cfg.Eps, 1) {
		c.errorf("Eps is %v, want a finite number that is not negative", cfg.Eps)
	}
	if cfg.Recompute < RecomputeCheap || cfg.Recompute > RecomputeAll {
		c.errorf("Recompute is %d, want RecomputeCheap, RecomputeNone or RecomputeAll", int(cfg.Recompute))
	}
	if c.err != nil {
		return nil, c.err
	}
	return &mambaBlock{
		BlockConfig: cfg, batch: s.Batch, length: s.Length, model: s.Model, channels: s.Channels, state: s.State, width: s.Width, rank: s.Rank,
	}, nil
}

// results returns the shapes of the results: y, and with state also context (if the width is above 1) and final.
func (f *mambaBlock) results() []tensor.Shape {
	shapes := []tensor.Shape{{f.batch, f.length, f.model}}
	if f.withState && f.width > 1 {
		shapes = append(shapes, tensor.Shape{f.batch, f.width - 1, f.channels})
	}
	if f.withState {
		shapes = append(shapes, tensor.Shape{f.batch, f.channels, f.state})
	}
	return shapes
}

func (f *mambaBlock) String() string {
	return fmt.Sprintf("Mamba block{eps: %v, recompute: %v, state: %t}", f.Eps, f.Recompute, f.withState)
}

func (f *mambaBlock) differentiable() []bool {
	with := make([]bool, blockOperands)
	for i := range with {
		with[i] = i != blockStart
	}
	return with
}

func (f *mambaBlock) forward(in, out []operand)         { f.forwardKeeping(in, out, operand{}) }
func (f *mambaBlock) backward(in, dout, grad []operand) { f.backwardKept(in, dout, grad, operand{}) }

func (f *mambaBlock) forwardKeeping(in, out []operand, kept operand) {
	if out[0].is32() {
		blockForward(f, in, out, kept, product().Sgemm)
	} else {
		blockForward(f, in, out, kept, product().Dgemm)
	}
}

func (f *mambaBlock) backwardKept(in, dout, grad []operand, kept operand) {
	if dout[0].is32() {
		blockBackward(f, in, dout, grad, kept, product().Sgemm)
	} else {
		blockBackward(f, in, dout, grad, kept, product().Dgemm)
	}
}

// states returns context and final from a block's results, or their gradients from the results' gradients. It returns nil for absent ones.
func states[T kernel.Float](f *mambaBlock, results []operand) (context, final []T) {
	if f.withState && f.width > 1 {
		context = floats[T](results[1])
	}
	if f.withState {
		final = floats[T](results[len(results)-1])
	}
	return context, final
}

func blockForward[T kernel.Float](f *mambaBlock, in, out []operand, kept operand, gemm kernel.Gemm[T]) {
	context, final := states[T](f, out)
	blockKernel(f, in, gemm).Forward(floats[T](out[0]), context, final, keptValues[T](f, kept))
}

func blockBackward[T kernel.Float](f *mambaBlock, in, dout, grad []operand, kept operand, gemm kernel.Gemm[T]) {
	dcontext, dfinal := states[T](f, dout)
	blockKernel(f, in, gemm).Backward(floats[T](dout[0]), dcontext, dfinal, keptValues[T](f, kept), &kernel.BlockGrad[T]{
		X: floats[T](grad[blockX]), Norm: floats[T](grad[blockNorm]), InProj: floats[T](grad[blockInProj]),
		Conv: floats[T](grad[blockConv]), XProj: floats[T](grad[blockXProj]), DtProj: floats[T](grad[blockDtProj]),
		DtBias: floats[T](grad[blockDtBias]), ALog: floats[T](grad[blockALog]), D: floats[T](grad[blockD]),
		OutProj: floats[T](grad[blockOutProj]), InBias: floats[T](grad[blockInBias]), ConvBias: floats[T](grad[blockConvBias]),
		OutBias: floats[T](grad[blockOutBias]), Context: floats[T](grad[blockContext]), Initial: floats[T](grad[blockInitial]),
	})
}

func blockKernel[T kernel.Float](f *mambaBlock, in []operand, gemm kernel.Gemm[T]) *kernel.Block[T] {
	return &kernel.Block[T]{
		Batch: f.batch, Length: f.length,
		Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank, Eps: f.Eps,
		X: floats[T](in[blockX]), Norm: floats[T](in[blockNorm]), InProj: floats[T](in[blockInProj]),
		Conv: floats[T](in[blockConv]), XProj: floats[T](in[blockXProj]), DtProj: floats[T](in[blockDtProj]),
		DtBias: floats[T](in[blockDtBias]), ALog: floats[T](in[blockALog]), D: floats[T](in[blockD]),
		OutProj: floats[T](in[blockOutProj]), InBias: floats[T](in[blockInBias]), ConvBias: floats[T](in[blockConvBias]),
		OutBias: floats[T](in[blockOutBias]), Context: floats[T](in[blockContext]), Initial: floats[T](in[blockInitial]),
		Start: starts(in[blockStart]), Gemm: gemm,
	}
}

// keptWidths returns how many elements of each of a block's values are kept for each step.
func (f *mambaBlock) keptWidths() (normed, vz, u, rbc, delta int) {
	switch f.Recompute {
	case RecomputeNone:
		return f.model, 2 * f.channels, f.channels, f.rank + 2*f.state, f.channels
	case RecomputeCheap:
		return 0, 2 * f.channels, 0, f.rank + 2*f.state, 0
	}
	return 0, 0, 0, 0, 0
}

func (f *mambaBlock) keeps() int {
	normed, vz, u, rbc, delta := f.keptWidths()
	return f.batch * f.length * (normed + vz + u + rbc + delta)
}

// keptValues divides the vector of kept elements into a block's values.
func keptValues[T kernel.Float](f *mambaBlock, kept operand) (v kernel.BlockValues[T]) {
	rest := floats[T](kept)
	if rest == nil {
		return v
	}
	cut := func(width int) []T {
		if width == 0 {
			return nil
		}
		n := f.batch * f.length * width
		s := rest[:n:n]
		rest = rest[n:]
		return s
	}
	normed, vz, u, rbc, delta := f.keptWidths()
	v.Normed, v.VZ, v.U, v.RBC, v.Delta = cut(normed), cut(vz), cut(u), cut(rbc), cut(delta)
	return v
}
