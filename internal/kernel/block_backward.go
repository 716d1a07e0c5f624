package kernel

import (
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// BlockGrad receives the gradients of a Block's operands, in their shapes. Those of absent operands are nil.
type BlockGrad[T Float] struct {
	BlockWeights[[]T]
	X, Context, Initial []T
}

// Backward writes every element of grad's slices. dy is the gradient of y. dcontext and dfinal are the gradients of Forward's context
// and final, nil for zeros. Backward reads the values of kept that are not nil and recomputes the others.
//
// As in the forward pass, the gradients of v and z share a matrix: the convolution writes the columns of v, the scan those of z. The
// gradients of r, B and C share another.
//
// Where the batch is cut into groups, each group has its own gradients of the weights. They are then added in float64, in the order of the groups.
func (b *Block[T]) Backward(dy, dcontext, dfinal []T, kept BlockValues[T], grad *BlockGrad[T]) {
	shared := b.share()
	defer shared.Return()
	n := b.groups()
	if n == 1 {
		b.backward(dy, dcontext, dfinal, kept, grad)
		return
	}
	size := 0
	grad.Each(func(_ BlockWeight, w *[]T) { size += len(*w) })
	parts := work.Borrow[T](n * size)
	defer parts.Return()
	work.Parallel(n, func(i int) {
		g, weights := b.group(i), parts.Data[i*size:][:size]
		b.ofGroup(g, func(own *groupOf[T]) {
			own.grad = BlockGrad[T]{BlockWeights: grad.BlockWeights, X: part(g, grad.X), Context: part(g, grad.Context), Initial: part(g, grad.Initial)}
			own.grad.Each(func(_ BlockWeight, w *[]T) {
				if n := len(*w); n > 0 {
					*w, weights = weights[:n], weights[n:]
				}
			})
			own.backward(part(g, dy), part(g, dcontext), part(g, dfinal), kept.of(g), &own.grad)
		})
	})
	var lengths [12]int
	var weights [12][]T
	k := 0
	grad.Each(func(_ BlockWeight, w *[]T) {
		lengths[k], weights[k] = len(*w), *w
		k++
	})
	work.ParallelRanges(lengths[:], sumPiece, func(k, from, to int) {
		first := from
		for _, n := range lengths[:k] {
			first += n
		}
		sumColumns(weights[k][from:to], parts.Data[first:], n, size)
	})
}

func (b *Block[T]) backward(dy, dcontext, dfinal []T, kept BlockValues[T], grad *BlockGrad[T]) {
	w := &b.spaces
	defer w.giveBack()
	v := &kept
	b.compute(v, true, nil, w)

	rows, columns := b.rows(), b.columns()
	s, ds := w.take(rows*b.Channels), w.take(rows*b.Channels)
	du, dDelta := w.take(rows*b.Channels), w.take(rows*b.Channels)
	dVZ, dRBC := w.take(rows*2*b.Channels), w.take(rows*columns)

	// y = x + s·OutProjᵀ + OutBias
	b.Gemm(blas.NoTrans, blas.NoTrans, rows, b.Channels, b.Model, 1, dy, b.Model, b.OutProj, b.Channels, 0, ds, b.Channels)
	b.scanGrad = ScanGrad[T]{
		U: du, Delta: dDelta, A: grad.ALog, B: dRBC[b.Rank:], C: dRBC[b.Rank+b.State:],
		D: grad.D, Z: dVZ[b.Channels:], DeltaBias: grad.DtBias, Initial: grad.Initial,
		Y: s,
	}
	b.scan(v).Backward(ds, dfinal, &b.scanGrad)
	b.Gemm(blas.Trans, blas.NoTrans, b.Model, b.Channels, rows, 1, dy, b.Model, s, b.Channels, 0, grad.OutProj, b.Channels)
	if grad.OutBias != nil {
		sumRows(grad.OutBias, dy)
	}
	b.convGrad = ConvGrad[T]{X: dVZ, Weight: grad.Conv, Bias: grad.ConvBias, Context: grad.Context}
	b.projectBack(b.conv(v), v, du, dDelta, dRBC, dcontext, &b.convGrad, grad)

	// v, z = n·InProjᵀ + InBias, n = norm(x)
	dNormed := w.take(rows * b.Model)
	b.linear(v.Normed, b.InProj, nil, b.Model, 2*b.Channels, b.Gemm).Backward(dVZ, dNormed, grad.InProj, grad.InBias)
	b.norm().Backward(dNormed, grad.X, grad.Norm)
	Add(grad.X, dy)
}

// projectBack writes the gradients of the weights and of the convolution's operands, from the scan's gradients of A (in grad.ALog), of u, of Δ, and of B
// and C (in dRBC). It overwrites these.
func (b *Block[T]) projectBack(conv *Conv[T], v *BlockValues[T], du, dDelta, dRBC, dcontext []T, convGrad *ConvGrad[T], grad *BlockGrad[T]) {
	rows, columns := b.rows(), b.columns()
	NegExpBackward(grad.ALog, grad.ALog, b.ALog)

	// Δ = r·DtProjᵀ
	b.Gemm(blas.NoTrans, blas.NoTrans, rows, b.Rank, b.Channels, 1, dDelta, b.Channels, b.DtProj, b.Rank, 0, dRBC, columns)
	if b.Rank < lanes { // as columns, so few numbers would leave a large part of each vector unused
		turned := work.Borrow[T](len(grad.DtProj))
		defer turned.Return()
		b.Gemm(blas.Trans, blas.NoTrans, b.Rank, b.Channels, rows, 1, v.RBC, columns, dDelta, b.Channels, 0, turned.Data, b.Channels)
		for i := range b.Rank {
			for d, g := range turned.Data[i*b.Channels:][:b.Channels] {
				grad.DtProj[d*b.Rank+i] = g
			}
		}
	} else {
		b.Gemm(blas.Trans, blas.NoTrans, b.Channels, b.Rank, rows, 1, dDelta, b.Channels, v.RBC, columns, 0, grad.DtProj, b.Rank)
	}

	// r, B, C = u·XProjᵀ. du already holds the gradient from the scan.
	b.Gemm(blas.NoTrans, blas.NoTrans, rows, b.Channels, columns, 1, dRBC, columns, b.XProj, b.Channels, 1, du, b.Channels)
	b.Gemm(blas.Trans, blas.NoTrans, columns, b.Channels, rows, 1, dRBC, columns, v.U, b.Channels, 0, grad.XProj, b.Channels)

	conv.Backward(du, dcontext, convGrad)
}
