package op

import (
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Fits returns an error if the kernels do not support a size of the block.
func (f *mambaBlock[T]) Fits(p cuda.Precision) error {
	if p == cuda.BF16 {
		return emptyBlock[T, cuda.BFloat16](f, p).Fits()
	}
	return emptyBlock[T, float32](f, p).Fits()
}

// emptyBlock returns a block without operands.
func emptyBlock[N kernel.Float, T cuda.Activation](f *mambaBlock[N], p cuda.Precision) *cuda.Block[T] {
	return &cuda.Block[T]{
		Batch: f.batch, Length: f.length, Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank,
		Eps: float32(f.Eps), Precision: p,
	}
}

// withOperands adds the operands to a block. products are InProj, XProj, DtProj and OutProj in the type of the products.
func withOperands[T cuda.Activation](b *cuda.Block[T], in []onDevice, products []cuda.Array[T]) *cuda.Block[T] {
	w := blockWeights(in)
	b.X, b.Norm, b.Conv, b.DtBias, b.ALog, b.D = in[blockX].Array, w.Norm.Array, w.Conv.Array, w.DtBias.Array, w.ALog.Array, w.D.Array
	b.InBias, b.ConvBias, b.OutBias = w.InBias.Array, w.ConvBias.Array, w.OutBias.Array
	b.Context, b.Initial, b.Start = in[blockContext].Array, in[blockInitial].Array, in[blockStart].Marks
	b.InProj, b.XProj, b.DtProj, b.OutProj = products[0], products[1], products[2], products[3]
	return b
}

func (f *mambaBlock[T]) strict(p cuda.Precision, in []onDevice) *cuda.Block[float32] {
	w := blockWeights(in)
	products := []array{w.InProj.Array, w.XProj.Array, w.DtProj.Array, w.OutProj.Array}
	return withOperands(emptyBlock[T, float32](f, p), in, products)
}

func (f *mambaBlock[T]) half(s *cuda.Stream, p cuda.Precision, in []onDevice) (b *cuda.Block[cuda.BFloat16], free func(), err error) {
	w := blockWeights(in)
	products, free, err := halves(s, w.InProj, w.XProj, w.DtProj, w.OutProj)
	if err != nil {
		return nil, nil, err
	}
	return withOperands(emptyBlock[T, cuda.BFloat16](f, p), in, products), free, nil
}

func (f *mambaBlock[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (*kept, error) {
	if p != cuda.BF16 {
		return blockForward(f, f.strict(p, in), s, out, keep)
	}
	b, free, err := f.half(s, p, in)
	if err != nil {
		return nil, err
	}
	defer free()
	return blockForward(f, b, s, out, keep)
}

func blockForward[N kernel.Float, T cuda.Activation](f *mambaBlock[N], b *cuda.Block[T], s *cuda.Stream, out []array, keep bool) (*kept, error) {
	context, final := blockStates(f, out)
	if !keep && f.length == 1 && f.withState && !b.Initial.Absent() && b.Start.Absent() && (f.width == 1 || !b.Context.Absent()) {
		return nil, blockStep(b, s, out[0], context, final)
	}
	k, err := b.Forward(s, out[0], context, final, keep)
	if k == nil || err != nil {
		return nil, err
	}
	return &kept{Values: k, Free: k.Free}, nil
}

func (f *mambaBlock[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values any) error {
	w := blockWeights(grad)
	into := &cuda.BlockGrad{
		X: grad[blockX], Norm: w.Norm, InProj: w.InProj, Conv: w.Conv, XProj: w.XProj, DtProj: w.DtProj, DtBias: w.DtBias, ALog: w.ALog, D: w.D,
		OutProj: w.OutProj, InBias: w.InBias, ConvBias: w.ConvBias, OutBias: w.OutBias, Context: grad[blockContext], Initial: grad[blockInitial],
	}
	dcontext, dfinal := blockStates(f, dout)
	return orZeros(s, dout[0], in[blockX].Len(), func(dy array) error {
		if p != cuda.BF16 {
			return f.strict(p, in).Backward(s, values.(*cuda.BlockKept[float32]), dy, dcontext, dfinal, into)
		}
		b, free, err := f.half(s, p, in)
		if err != nil {
			return err
		}
		defer free()
		return b.Backward(s, values.(*cuda.BlockKept[cuda.BFloat16]), dy, dcontext, dfinal, into)
	})
}

// blockStep queues one step of each sequence.
func blockStep[T cuda.Activation](b *cuda.Block[T], s *cuda.Stream, y, context, final array) error {
	step := &cuda.Step[T]{
		Batch: b.Batch, Model: b.Model, Channels: b.Channels, State: b.State, Width: b.Width, Rank: b.Rank, Eps: b.Eps,
		X: b.X, Norm: b.Norm, Conv: b.Conv, DtBias: b.DtBias, ALog: b.ALog, D: b.D,
		InProj: b.InProj, XProj: b.XProj, DtProj: b.DtProj, OutProj: b.OutProj,
		InBias: b.InBias, ConvBias: b.ConvBias, OutBias: b.OutBias, Context: b.Context, Scan: b.Initial,
	}
	return step.Forward(s, y, context, final)
}
