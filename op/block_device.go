package op

import (
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
)

// Fits returns an error if the kernels do not support a size of the block.
func (f *mambaBlock[T]) Fits(p cuda.Precision) error {
	if p == cuda.BF16 {
		return emptyBlock[cuda.BFloat16](f, p).Fits()
	}
	return emptyBlock[float32](f, p).Fits()
}

// emptyBlock returns a block without operands. Its products are in T.
func emptyBlock[T cuda.Activation, N kernel.Float](f *mambaBlock[N], p cuda.Precision) *cuda.Block[T] {
	return &cuda.Block[T]{
		Batch: f.batch, Length: f.length, Model: f.model, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank,
		Eps: float32(f.Eps), Precision: p,
	}
}

// blockOn returns a block with its operands. Call free after its kernels are queued.
func blockOn[T cuda.Activation, N kernel.Float](f *mambaBlock[N], s *cuda.Stream, p cuda.Precision, in []onDevice, training bool) (b *cuda.Block[T], free func(), err error) {
	b, w := blockWithout[T](f, p, in), blockWeights(in)
	for _, m := range []struct {
		weight *onDevice
		narrow **cuda.Weights
	}{{&w.InProj, &b.InNarrow}, {&w.XProj, &b.XNarrow}, {&w.OutProj, &b.OutNarrow}} {
		if n := m.weight.Narrow; n != nil && (p != cuda.BF16 || n.OnDevice().Half().Absent()) {
			*m.narrow, *m.weight = n.OnDevice(), onDevice{}
		}
	}
	products, free, err := as[T](s, training, w.InProj, w.XProj, w.DtProj, w.OutProj)
	if err != nil {
		return nil, nil, err
	}
	b.InProj, b.XProj, b.DtProj, b.OutProj = products[0], products[1], products[2], products[3]
	return b, free, nil
}

// blockWithout returns a block with its operands, but without the matrices of products.
func blockWithout[T cuda.Activation, N kernel.Float](f *mambaBlock[N], p cuda.Precision, in []onDevice) *cuda.Block[T] {
	b, w := emptyBlock[T](f, p), blockWeights(in)
	b.X, b.Norm, b.Conv, b.DtBias, b.ALog, b.D = in[blockX].Array, w.Norm.Array, w.Conv.Array, w.DtBias.Array, w.ALog.Array, w.D.Array
	b.InBias, b.ConvBias, b.OutBias = w.InBias.Array, w.ConvBias.Array, w.OutBias.Array
	b.Context, b.Initial, b.Start = in[blockContext].Array, in[blockInitial].Array, in[blockStart].Marks
	return b
}

// hasNarrow reports whether blockOn has set matrices that a Step does not take.
func hasNarrow[T cuda.Activation](b *cuda.Block[T]) bool {
	return b.InNarrow != nil || b.XNarrow != nil || b.OutNarrow != nil
}

// weightsStep returns the block as a step with narrow weights, or nil if it is none, or if there are no kernels for it.
func weightsStep[N kernel.Float](f *mambaBlock[N], s *cuda.Stream, p cuda.Precision, in []onDevice) (*cuda.WeightsStep, error) {
	w := blockWeights(in)
	if w.InProj.Narrow == nil || w.XProj.Narrow == nil || w.OutProj.Narrow == nil || !f.steps(in) {
		return nil, nil
	}
	step := &cuda.WeightsStep{
		Step: stepOf(blockWithout[float32](f, p, in)), In: w.InProj.Narrow.OnDevice(), X: w.XProj.Narrow.OnDevice(), Out: w.OutProj.Narrow.OnDevice(), Precision: p,
	}
	if !step.Runs(s) {
		return nil, nil
	}
	var err error
	if step.Step.DtProj = w.DtProj.Array; w.DtProj.Narrow != nil {
		step.Step.DtProj, err = w.DtProj.Narrow.Wide(s)
	}
	return step, err
}

func (f *mambaBlock[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return blockForward[cuda.BFloat16](f, s, p, in, out, keep)
	}
	return blockForward[float32](f, s, p, in, out, keep)
}

// Kept returns the memory of kept values, and a function that allocates it again: a block queues the same work for operands, results and kept values in the same memory.
func (f *mambaBlock[T]) Kept(k kept) (memory []uintptr, again func(*cuda.Stream) (kept, error)) {
	switch k := k.(type) {
	case *cuda.BlockKept[float32]:
		return blockKept(k)
	case *cuda.BlockKept[cuda.BFloat16]:
		return blockKept(k)
	}
	return nil, func(*cuda.Stream) (kept, error) { return nil, nil }
}

func blockKept[T cuda.Activation](k *cuda.BlockKept[T]) ([]uintptr, func(*cuda.Stream) (kept, error)) {
	if k == nil {
		return nil, func(*cuda.Stream) (kept, error) { return k, nil }
	}
	sizes := *k
	return k.Memory(), func(s *cuda.Stream) (kept, error) { return sizes.Again(s) }
}

func blockForward[T cuda.Activation, N kernel.Float](f *mambaBlock[N], s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	b, free, err := blockOn[T](f, s, p, in, keep)
	if err != nil {
		return nil, err
	}
	defer free()
	context, final := blockStates(f, out)
	if !keep && f.steps(in) && !hasNarrow(b) {
		return nil, stepOf(b).Forward(s, out[0], context, final)
	}
	if keep && f.Recompute == RecomputeAll {
		_, err := b.Forward(s, out[0], context, final, false)
		return new(cuda.BlockKept[T]), err
	}
	return b.Forward(s, out[0], context, final, keep)
}

// steps reports whether cuda.Step computes the block.
func (f *mambaBlock[T]) steps(in []onDevice) bool {
	return f.length == 1 && f.withState && !in[blockInitial].Absent() && in[blockStart].Marks.Absent() &&
		(f.width == 1 || !in[blockContext].Absent()) && max(f.model, f.channels) <= cuda.StepProductMost
}

func (f *mambaBlock[T]) ForwardChain(s *cuda.Stream, p cuda.Precision, links []operator.Link) error {
	if p == cuda.BF16 {
		return blockChain[cuda.BFloat16, T](s, p, links)
	}
	return blockChain[float32, T](s, p, links)
}

// blockChain queues blocks that follow each other, as a chain of steps if all are steps.
func blockChain[T cuda.Activation, N kernel.Float](s *cuda.Stream, p cuda.Precision, links []operator.Link) error {
	var steps []*cuda.Step[T]
	var results []cuda.StepResult
	for i, l := range links {
		f := l.F.(*mambaBlock[N])
		if n, err := weightsStep(f, s, p, l.In); n != nil || err != nil {
			if err == nil {
				err = cuda.StepChain(s, steps, results)
			}
			if err == nil {
				context, final := blockStates(f, l.Out)
				err = n.Forward(s, cuda.StepResult{Y: l.Out[0], Context: context, Scan: final}, i == 0)
			}
			if err != nil {
				return err
			}
			steps, results = nil, nil
			continue
		}
		b, free, err := blockOn[T](f, s, p, l.In, false)
		if err != nil {
			return err
		}
		defer free()
		context, final := blockStates(f, l.Out)
		if !f.steps(l.In) || hasNarrow(b) {
			if err := cuda.StepChain(s, steps, results); err != nil { // in their order
				return err
			}
			steps, results = nil, nil
			if _, err := b.Forward(s, l.Out[0], context, final, false); err != nil {
				return err
			}
			continue
		}
		steps = append(steps, stepOf(b))
		results = append(results, cuda.StepResult{Y: l.Out[0], Context: context, Scan: final})
	}
	return cuda.StepChain(s, steps, results)
}

func (f *mambaBlock[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	if p == cuda.BF16 {
		return blockBackward(f, s, p, in, dout, grad, values.(*cuda.BlockKept[cuda.BFloat16]))
	}
	return blockBackward(f, s, p, in, dout, grad, values.(*cuda.BlockKept[float32]))
}

func blockBackward[T cuda.Activation, N kernel.Float](
	f *mambaBlock[N], s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values *cuda.BlockKept[T],
) error {
	b, free, err := blockOn[T](f, s, p, in, true)
	if err != nil {
		return err
	}
	defer free()
	if f.Recompute == RecomputeAll {
		if values, err = b.Keep(s); err != nil {
			return err
		}
		defer values.Free()
	}
	w := blockWeights(grad)
	into := &cuda.BlockGrad{
		X: grad[blockX], Norm: w.Norm, InProj: w.InProj, Conv: w.Conv, XProj: w.XProj, DtProj: w.DtProj, DtBias: w.DtBias, ALog: w.ALog, D: w.D,
		OutProj: w.OutProj, InBias: w.InBias, ConvBias: w.ConvBias, OutBias: w.OutBias, Context: grad[blockContext], Initial: grad[blockInitial],
	}
	dcontext, dfinal := blockStates(f, dout)
	return orZeros(s, dout[0], in[blockX].Len(), func(dy array) error {
		return b.Backward(s, values, dy, dcontext, dfinal, into)
	})
}

// stepOf returns the block as a step.
func stepOf[T cuda.Activation](b *cuda.Block[T]) *cuda.Step[T] {
	return &cuda.Step[T]{
		Batch: b.Batch, Model: b.Model, Channels: b.Channels, State: b.State, Width: b.Width, Rank: b.Rank, Eps: b.Eps, Precision: b.Precision,
		X: b.X, Norm: b.Norm, Conv: b.Conv, DtBias: b.DtBias, ALog: b.ALog, D: b.D,
		InProj: b.InProj, XProj: b.XProj, DtProj: b.DtProj, OutProj: b.OutProj,
		InBias: b.InBias, ConvBias: b.ConvBias, OutBias: b.OutBias, Context: b.Context, Scan: b.Initial,
	}
}
