package graph

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/op"
)

// BlockConfig holds the options of a Mamba block.
type BlockConfig struct {
	Eps       float64        // added to the mean of squares in the norm
	Precision cuda.Precision // of the matrix products
}

// MambaBlock is op.MambaBlockWithState on a device. The operands are nodes of this package's operators, or inputs whose values are Weights.
// Start is a node that Starts returned. If withState is false, context and final are nil.
//
// Errors: those of op.MambaBlock; an X that is not of float32; a size above what the kernels support.
func (c *Context) MambaBlock(in op.BlockInputs, cfg BlockConfig, withState bool) (y, context, final *G.Node, err error) {
	f, err := newBlock(in, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	list := operands{
		{"X", onDevice, in.X}, {"NormWeight", onDevice, in.NormWeight}, {"InProj", onDevice, in.InProj},
		{"ConvWeight", onDevice, in.ConvWeight}, {"XProj", onDevice, in.XProj}, {"DtProj", onDevice, in.DtProj},
		{"DtBias", onDevice, in.DtBias}, {"ALog", onDevice, in.ALog}, {"D", onDevice, in.D}, {"OutProj", onDevice, in.OutProj},
		{"InBias", onDevice, in.InBias}, {"ConvBias", onDevice, in.ConvBias}, {"OutBias", onDevice, in.OutBias},
		{"Context", onDevice, in.Context}, {"InitialState", onDevice, in.InitialState}, {"Start", asStarts, in.Start},
	}
	results := []tensor.Shape{in.X.Shape()}
	if withState {
		if f.Width > 1 {
			results = append(results, tensor.Shape{f.Batch, f.Width - 1, f.Channels})
		}
		results = append(results, tensor.Shape{f.Batch, f.Channels, f.State})
	}
	nodes, err := c.apply(f, list, results...)
	if err != nil {
		return nil, nil, nil, err
	}
	if y = nodes[0]; withState {
		final = nodes[len(nodes)-1]
		if f.Width > 1 {
			context = nodes[1]
		}
	}
	return y, context, final, nil
}

type block struct {
	BlockConfig
	op.BlockSizes
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

func newBlock(in op.BlockInputs, cfg BlockConfig) (*block, error) {
	sizes, err := in.Sizes()
	if err != nil {
		return nil, fmt.Errorf("graph: %w", err)
	}
	if dt := in.X.Dtype(); dt != tensor.Float32 {
		return nil, fmt.Errorf("graph: block: X is of %v, want float32", dt)
	}
	f := &block{cfg, sizes}
	if cfg.Precision == cuda.BF16 {
		err = sized[cuda.BFloat16](f).Fits()
	} else {
		err = sized[float32](f).Fits()
	}
	if err != nil {
		return nil, fmt.Errorf("graph: %w", err)
	}
	return f, nil
}

func (f *block) String() string {
	return fmt.Sprintf("Mamba block{eps: %v, precision: %v}", f.Eps, f.Precision)
}

func (f *block) differentiable() []bool {
	with := make([]bool, blockOperands)
	for i := range with {
		with[i] = i != blockStart
	}
	return with
}

// sized returns a block without operands.
func sized[T cuda.Activation](f *block) *cuda.Block[T] {
	return &cuda.Block[T]{
		Batch: f.Batch, Length: f.Length, Model: f.Model, Channels: f.Channels, State: f.State, Width: f.Width, Rank: f.Rank,
		Eps: float32(f.Eps), Precision: f.Precision,
	}
}

// blockOf returns a block with all operands but the weights of the matrix products, whose type depends on T.
func blockOf[T cuda.Activation](f *block, in []operand) *cuda.Block[T] {
	b := sized[T](f)
	b.X, b.Norm, b.Conv, b.DtBias = in[blockX].Array, in[blockNorm].Array, in[blockConv].Array, in[blockDtBias].Array
	b.ALog, b.D, b.InBias, b.ConvBias = in[blockALog].Array, in[blockD].Array, in[blockInBias].Array, in[blockConvBias].Array
	b.OutBias, b.Context, b.Initial, b.Start = in[blockOutBias].Array, in[blockContext].Array, in[blockInitial].Array, in[blockStart].starts
	return b
}

func (f *block) strict(in []operand) *cuda.Block[float32] {
	b := blockOf[float32](f, in)
	b.InProj, b.XProj, b.DtProj, b.OutProj = in[blockInProj].Array, in[blockXProj].Array, in[blockDtProj].Array, in[blockOutProj].Array
	return b
}

func (f *block) half(s *cuda.Stream, in []operand) (b *cuda.Block[cuda.BFloat16], free func(), err error) {
	half, free, err := halves(s, in[blockInProj], in[blockXProj], in[blockDtProj], in[blockOutProj])
	if err != nil {
		return nil, nil, err
	}
	b = blockOf[cuda.BFloat16](f, in)
	b.InProj, b.XProj, b.DtProj, b.OutProj = half[0], half[1], half[2], half[3]
	return b, free, nil
}

// states returns context and final from a block's results, or their gradients from the results' gradients. Absent results are absent arrays.
func (f *block) states(results []cuda.Array[float32]) (context, final cuda.Array[float32]) {
	if len(results) > 1 {
		final = results[len(results)-1]
		if f.Width > 1 {
			context = results[1]
		}
	}
	return context, final
}

func (f *block) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if f.Precision == cuda.BF16 {
		b, free, err := f.half(s, in)
		if err != nil {
			return nil, err
		}
		defer free()
		return blockForward(f, b, s, out, keep)
	}
	return blockForward(f, f.strict(in), s, out, keep)
}

func blockForward[T cuda.Activation](f *block, b *cuda.Block[T], s *cuda.Stream, out []cuda.Array[float32], keep bool) (*kept, error) {
	context, final := f.states(out)
	k, err := b.Forward(s, out[0], context, final, keep)
	if k == nil || err != nil {
		return nil, err
	}
	return &kept{values: k, free: k.Free}, nil
}

func (f *block) backward(s *cuda.Stream, in []operand, dout, grad []cuda.Array[float32], values any) error {
	into := &cuda.BlockGrad{
		X: grad[blockX], Norm: grad[blockNorm], InProj: grad[blockInProj], Conv: grad[blockConv], XProj: grad[blockXProj],
		DtProj: grad[blockDtProj], DtBias: grad[blockDtBias], ALog: grad[blockALog], D: grad[blockD], OutProj: grad[blockOutProj],
		InBias: grad[blockInBias], ConvBias: grad[blockConvBias], OutBias: grad[blockOutBias],
		Context: grad[blockContext], Initial: grad[blockInitial],
	}
	dcontext, dfinal := f.states(dout)
	dy := dout[0]
	if dy.Absent() { // the loss depends on the states only
		zeros, err := cuda.NewArray[float32](s, in[blockX].Len())
		if err != nil {
			return err
		}
		defer zeros.Free()
		if err := zeros.Fill(s, 0); err != nil {
			return err
		}
		dy = zeros
	}
	if f.Precision == cuda.BF16 {
		b, free, err := f.half(s, in)
		if err != nil {
			return err
		}
		defer free()
		return b.Backward(s, values.(*cuda.BlockKept[cuda.BFloat16]), dy, dcontext, dfinal, into)
	}
	return f.strict(in).Backward(s, values.(*cuda.BlockKept[float32]), dy, dcontext, dfinal, into)
}
