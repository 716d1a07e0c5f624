package graph

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
)

// BlockInputs are the operands of a Mamba block, as op.BlockInputs has them; all but Start, which is a node of Starts, are on the
// device: weights, or nodes of this package.
type BlockInputs struct {
	X                                                                       *G.Node
	NormWeight, InProj, ConvWeight, XProj, DtProj, DtBias, ALog, D, OutProj *G.Node
	InBias, ConvBias, OutBias, Context, InitialState, Start                 *G.Node // optional
}

// BlockConfig are the options of a Mamba block.
type BlockConfig struct {
	Eps       float64 // what the norm adds to the mean of squares
	Precision cuda.Precision
}

// MambaBlock is op.MambaBlockWithState on a device; without withState, context and final are nil.
func (c *Context) MambaBlock(in BlockInputs, cfg BlockConfig, withState bool) (y, context, final *G.Node, err error) {
	list := operands{
		{"X", onDevice, in.X}, {"NormWeight", onDevice, in.NormWeight}, {"InProj", onDevice, in.InProj},
		{"ConvWeight", onDevice, in.ConvWeight}, {"XProj", onDevice, in.XProj}, {"DtProj", onDevice, in.DtProj},
		{"DtBias", onDevice, in.DtBias}, {"ALog", onDevice, in.ALog}, {"D", onDevice, in.D}, {"OutProj", onDevice, in.OutProj},
		{"InBias", onDevice, in.InBias}, {"ConvBias", onDevice, in.ConvBias}, {"OutBias", onDevice, in.OutBias},
		{"Context", onDevice, in.Context}, {"InitialState", onDevice, in.InitialState}, {"Start", asStarts, in.Start},
	}
	f, err := newBlock(list, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	results := []tensor.Shape{in.X.Shape()}
	if withState {
		if f.width > 1 {
			results = append(results, tensor.Shape{f.batch, f.width - 1, f.channels})
		}
		results = append(results, tensor.Shape{f.batch, f.channels, f.state})
	}
	nodes, err := c.apply(f, list, results...)
	if err != nil {
		return nil, nil, nil, err
	}
	if y = nodes[0]; withState {
		final = nodes[len(nodes)-1]
		if f.width > 1 {
			context = nodes[1]
		}
	}
	return y, context, final, nil
}

type block struct {
	BlockConfig
	batch, length, model, channels, state, width, rank int
}

// The places of a block's operands.
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

func newBlock(in operands, cfg BlockConfig) (*block, error) {
	f := &block{BlockConfig: cfg}
	shape := func(i int, axes string, want ...*int) error {
		n := in[i].node
		if n == nil {
			if i >= blockInBias {
				return nil
			}
			return fmt.Errorf("graph: block: %s is missing, want a node of shape %s", in[i].name, axes)
		}
		s := n.Shape()
		ok := len(s) == len(want)
		for axis := range want {
			if ok && *want[axis] == 0 {
				*want[axis] = s[axis]
			}
			ok = ok && s[axis] == *want[axis]
		}
		if !ok {
			return fmt.Errorf("graph: block: %s has shape %v, want %s", in[i].name, s, axes)
		}
		return nil
	}
	one, two, columns, context := 1, 0, 0, 0
	if err := shape(blockX, "(batch, length, model)", &f.batch, &f.length, &f.model); err != nil {
		return nil, err
	}
	if err := shape(blockALog, "(channels, state)", &f.channels, &f.state); err != nil {
		return nil, err
	}
	if err := shape(blockConv, "(channels, 1, width)", &f.channels, &one, &f.width); err != nil {
		return nil, err
	}
	if err := shape(blockDtProj, "(channels, rank)", &f.channels, &f.rank); err != nil {
		return nil, err
	}
	two, columns, context = 2*f.channels, f.rank+2*f.state, f.width-1
	for _, s := range []struct {
		i    int
		axes string
		want []*int
	}{
		{blockNorm, "(model)", []*int{&f.model}},
		{blockInProj, "(2·channels, model)", []*int{&two, &f.model}},
		{blockXProj, "(rank + 2·state, channels)", []*int{&columns, &f.channels}},
		{blockDtBias, "(channels)", []*int{&f.channels}},
		{blockD, "(channels)", []*int{&f.channels}},
		{blockOutProj, "(model, channels)", []*int{&f.model, &f.channels}},
		{blockInBias, "(2·channels)", []*int{&two}},
		{blockConvBias, "(channels)", []*int{&f.channels}},
		{blockOutBias, "(model)", []*int{&f.model}},
		{blockContext, "(batch, width-1, channels)", []*int{&f.batch, &context, &f.channels}},
		{blockInitial, "(batch, channels, state)", []*int{&f.batch, &f.channels, &f.state}},
		{blockStart, "(batch, length)", []*int{&f.batch, &f.length}},
	} {
		if err := shape(s.i, s.axes, s.want...); err != nil {
			return nil, err
		}
	}
	err := (&cuda.Block[float32]{Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank}).Fits()
	if f.Precision == cuda.BF16 {
		err = (&cuda.Block[cuda.BFloat16]{Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank}).Fits()
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

// sized sets all of a block but the weights that are of its activations' type.
func sized[T cuda.Activation](f *block, in []operand) *cuda.Block[T] {
	return &cuda.Block[T]{
		Batch: f.batch, Length: f.length, Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank,
		Eps: float32(f.Eps), Precision: f.Precision,
		X: in[blockX].Array, Norm: in[blockNorm].Array, Conv: in[blockConv].Array, DtBias: in[blockDtBias].Array,
		ALog: in[blockALog].Array, D: in[blockD].Array, InBias: in[blockInBias].Array, ConvBias: in[blockConvBias].Array,
		OutBias: in[blockOutBias].Array, Context: in[blockContext].Array, Initial: in[blockInitial].Array, Start: in[blockStart].starts,
	}
}

func (f *block) strict(in []operand) *cuda.Block[float32] {
	b := sized[float32](f, in)
	b.InProj, b.XProj, b.DtProj, b.OutProj = in[blockInProj].Array, in[blockXProj].Array, in[blockDtProj].Array, in[blockOutProj].Array
	return b
}

func (f *block) half(in []operand) (*cuda.Block[cuda.BFloat16], error) {
	b := sized[cuda.BFloat16](f, in)
	for _, w := range []struct {
		i  int
		to *cuda.Array[cuda.BFloat16]
	}{{blockInProj, &b.InProj}, {blockXProj, &b.XProj}, {blockDtProj, &b.DtProj}, {blockOutProj, &b.OutProj}} {
		var err error
		if *w.to, err = in[w.i].half(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// states returns the results that are context and final, or their gradients.
func (f *block) states(results []cuda.Array[float32]) (context, final cuda.Array[float32]) {
	if len(results) > 1 {
		final = results[len(results)-1]
		if f.width > 1 {
			context = results[1]
		}
	}
	return context, final
}

func (f *block) forward(s *cuda.Stream, in []operand, out []cuda.Array[float32], keep bool) (*kept, error) {
	if f.Precision == cuda.BF16 {
		b, err := f.half(in)
		if err != nil {
			return nil, err
		}
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
	return &kept{k, k.Free}, nil
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
	if dy.Absent() { // only the states were used
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
		b, err := f.half(in)
		if err != nil {
			return err
		}
		return b.Backward(s, values.(*cuda.BlockKept[cuda.BFloat16]), dy, dcontext, dfinal, into)
	}
	return f.strict(in).Backward(s, values.(*cuda.BlockKept[float32]), dy, dcontext, dfinal, into)
}
