package op

import (
	"fmt"
	"math"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// BlockWeights holds the weights of a Mamba block in any form: nodes, parameters, slices, arrays on a device. Its fields are Norm (model);
// ALog (channels, state), where A = -exp(ALog), and D (channels); InProj (2·channels, model); Conv (channels, 1, width), whose last tap is
// for the step itself; XProj (rank + 2·state, channels); DtProj (channels, rank) and DtBias (channels); OutProj (model, channels); and
// the optional InBias (2·channels), ConvBias (channels) and OutBias (model). Its method Each calls a function for each weight.
type BlockWeights[W any] = kernel.BlockWeights[W]

// BlockWeight describes a weight of a Mamba block: its Field in BlockWeights, its Name in the Hugging Face layout, and whether it is the
// matrix of a Product, and Optional.
type BlockWeight = kernel.BlockWeight

// BlockShapes returns the shapes of the weights of a Mamba block of these sizes.
func BlockShapes(model, channels, state, width, rank int) BlockWeights[[]int] {
	return kernel.BlockShapes(model, channels, state, width, rank)
}

// MapBlock returns the weights of a Mamba block in another form: f of each, in the order of BlockWeights.Each.
func MapBlock[V, W any](from BlockWeights[V], f func(about BlockWeight, v V) W) BlockWeights[W] {
	return kernel.MapBlock(from, f)
}

// BlockInputs holds the operands of a Mamba block. Optional operands may be nil. The number of channels is expand · d_model, which other
// implementations call d_inner.
type BlockInputs struct {
	X *G.Node // (batch, length, model)
	BlockWeights[*G.Node]
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
	// numbers, 12.3 KiB. It recomputes the norm, the convolution and Δ. If there are 4 to 16 states, it also keeps the scan's state after every 16 steps:
	// channels·state/16 numbers a step, 6 KiB.
	RecomputeCheap Recompute = iota
	// RecomputeNone keeps all of these: 4·channels + model + rank + 2·state numbers, 27.3 KiB, and the same states.
	RecomputeNone
	// RecomputeAll keeps nothing. It recomputes the block up to the scan.
	RecomputeAll
)

func (r Recompute) String() string {
	if r < RecomputeCheap || r > RecomputeAll {
		return fmt.Sprintf("Recompute(%d)", int(r))
	}
	return [...]string{"cheap", "none", "all"}[r]
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
// implementation. Start works as in CausalConv and SelectiveScan.
//
// Errors: an operand that is missing, or of another type or shape than listed in BlockInputs; a field of cfg out of its range.
//
// Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", figure 3 and section 3.4.
func MambaBlock(in BlockInputs, cfg BlockConfig) (y *G.Node, err error) {
	f, c := newBlock(in, cfg)
	return c.apply1(f, (*mambaBlock[float64])(f), f.results()[0])
}

// MambaBlockWithState returns what MambaBlock returns, and the state after the last step: context (batch, width-1, channels) and final
// (batch, channels, state), the Context and the InitialState for the steps that follow. Gradients of both flow back. If the width is 1
// the convolution reads no earlier step: context is nil, and Context must be nil.
func MambaBlockWithState(in BlockInputs, cfg BlockConfig) (y, context, final *G.Node, err error) {
	f, c := newBlock(in, cfg)
	f.withState = true
	nodes, err := c.apply(f, (*mambaBlock[float64])(f), f.results()...)
	if err != nil {
		return nil, nil, nil, err
	}
	context, final = blockStates(f, nodes)
	return nodes[0], context, final, nil
}

// mambaBlock is the function of MambaBlock and MambaBlockWithState.
type mambaBlock[T kernel.Float] struct {
	BlockConfig
	withState                           bool
	batch, length                       int
	model, channels, state, width, rank int
}

// The indices of a block's operands: the weights are between X and Context.
const (
	blockX       = 0
	blockContext = 12 + iota
	blockInitial
	blockStart
)

// blockWeights returns the weights among what belongs to the operands.
func blockWeights[V any](all []V) (w BlockWeights[V]) {
	setWeights(&w, func(i int) V { return all[i] })
	return w
}

// setWeights sets each weight to of its index among the operands.
func setWeights[V any](w *BlockWeights[V], of func(i int) V) {
	i := blockX
	w.Each(func(_ BlockWeight, v *V) {
		i++
		*v = of(i)
	})
}

func newBlock(in BlockInputs, cfg BlockConfig) (*mambaBlock[float32], *checker) {
	c := newChecker("Mamba block", "X", in.X)
	s := c.required("X", in.X, "(batch, length, model)", 0, 0, 0)
	f := &mambaBlock[float32]{BlockConfig: cfg, batch: s[0], length: s[1], model: s[2]}
	c.required("Norm", in.Norm, "(model)", f.model)
	a := c.required("ALog", in.ALog, "(channels, state)", 0, 0)
	f.channels, f.state = a[0], a[1]
	c.required("InProj", in.InProj, "(2·channels, model)", 2*f.channels, f.model)
	f.width = c.required("Conv", in.Conv, "(channels, 1, width)", f.channels, 1, 0)[2]
	f.rank = c.required("DtProj", in.DtProj, "(channels, rank)", f.channels, 0)[1]
	c.required("XProj", in.XProj, "(rank + 2·state, channels)", f.rank+2*f.state, f.channels)
	c.required("DtBias", in.DtBias, "(channels)", f.channels)
	c.required("D", in.D, "(channels)", f.channels)
	c.required("OutProj", in.OutProj, "(model, channels)", f.model, f.channels)
	c.optional("InBias", in.InBias, "(2·channels)", 2*f.channels)
	c.optional("ConvBias", in.ConvBias, "(channels)", f.channels)
	c.optional("OutBias", in.OutBias, "(model)", f.model)
	c.in = c.in[:1] // X; the weights follow in the order of BlockWeights
	in.Each(func(about BlockWeight, w **G.Node) { c.numbers(about.Field, *w) })
	c.convContext(in.Context, f.batch, f.width-1, f.channels)
	c.optional("InitialState", in.InitialState, "(batch, channels, state)", f.batch, f.channels, f.state)
	c.start(in.Start, f.batch, f.length)
	if !(cfg.Eps >= 0) || math.IsInf(cfg.Eps, 1) {
		c.errorf("Eps is %v, want a finite number that is not negative", cfg.Eps)
	}
	if cfg.Recompute < RecomputeCheap || cfg.Recompute > RecomputeAll {
		c.errorf("Recompute is %d, want RecomputeCheap, RecomputeNone or RecomputeAll", int(cfg.Recompute))
	}
	return f, c
}

// results returns the shapes of the results: y, and with state also context (if the width is above 1) and final.
func (f *mambaBlock[T]) results() []tensor.Shape {
	shapes := []tensor.Shape{{f.batch, f.length, f.model}}
	if f.withState && f.width > 1 {
		shapes = append(shapes, tensor.Shape{f.batch, f.width - 1, f.channels})
	}
	if f.withState {
		shapes = append(shapes, tensor.Shape{f.batch, f.channels, f.state})
	}
	return shapes
}

// blockStates returns context and final from a block's results, or their gradients from the results' gradients, zero for absent ones.
func blockStates[T kernel.Float, V any](f *mambaBlock[T], results []V) (context, final V) {
	if f.withState && f.width > 1 {
		context = results[1]
	}
	if f.withState {
		final = results[len(results)-1]
	}
	return context, final
}

func (f *mambaBlock[T]) kernel(in []value[T]) *kernel.Block[T] {
	b := &kernel.Block[T]{
		Batch: f.batch, Length: f.length,
		Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank, Eps: f.Eps,
		X:       in[blockX].Data,
		Context: in[blockContext].Data, Initial: in[blockInitial].Data, Start: in[blockStart].Marks, Gemm: gemm[T](),
	}
	setWeights(&b.BlockWeights, func(i int) []T { return in[i].Data })
	if slices.ContainsFunc(in, func(v value[T]) bool { return v.Narrow != nil }) {
		products := MapBlock(blockWeights(in), func(_ BlockWeight, v value[T]) kernel.Gemm[T] { return gemmWith(v) })
		b.Products = &products
	}
	return b
}

// TakesNarrow says that the matrices of products may be narrow.
func (f *mambaBlock[T]) TakesNarrow(i int) bool {
	all := make([]int, blockContext)
	for j := range all {
		all[j] = j
	}
	w, product := blockWeights(all), false
	w.Each(func(about BlockWeight, at *int) { product = product || about.Product && *at == i })
	return product
}

func (f *mambaBlock[T]) Forward(in []value[T], out [][]T) { f.ForwardKeeping(in, out, nil) }
func (f *mambaBlock[T]) Backward(in []value[T], dout, grad [][]T) {
	f.BackwardKept(in, dout, grad, nil)
}

func (f *mambaBlock[T]) ForwardKeeping(in []value[T], out [][]T, kept []T) {
	context, final := blockStates(f, out)
	values, _ := f.keptValues(kept)
	f.kernel(in).Forward(out[0], context, final, values)
}

func (f *mambaBlock[T]) BackwardKept(in []value[T], dout, grad [][]T, kept []T) {
	dcontext, dfinal := blockStates(f, dout)
	values, _ := f.keptValues(kept)
	all := &kernel.BlockGrad[T]{X: grad[blockX], Context: grad[blockContext], Initial: grad[blockInitial]}
	setWeights(&all.BlockWeights, func(i int) []T { return grad[i] })
	f.kernel(in).Backward(dout[0], dcontext, dfinal, values, all)
}

// keptValues divides the vector of kept elements into a block's values. It also returns their number, for nil as well.
func (f *mambaBlock[T]) keptValues(kept []T) (v kernel.BlockValues[T], n int) {
	takeAll := func(of *[]T, size int) {
		if n += size; kept != nil && size > 0 {
			*of = kept[n-size : n : n]
		}
	}
	take := func(of *[]T, channels int, keep bool) {
		if keep {
			takeAll(of, f.batch*f.length*channels)
		}
	}
	all, products := f.Recompute == RecomputeNone, f.Recompute != RecomputeAll
	take(&v.Normed, f.model, all)
	take(&v.VZ, 2*f.channels, products)
	take(&v.U, f.channels, all)
	take(&v.RBC, f.rank+2*f.state, products)
	take(&v.Delta, f.channels, all)
	if products {
		takeAll(&v.States, (&kernel.Scan[T]{Batch: f.batch, Length: f.length, Channels: f.channels, State: f.state}).KeptStates())
	}
	return v, n
}

func (f *mambaBlock[T]) Keeps() int {
	_, n := f.keptValues(nil)
	return n
}
