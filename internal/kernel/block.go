package kernel

import (
	"sync"

	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas"
)

// Block is one Mamba block (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", figure 3 and
// section 3.4). With one row for each step:
//
//	n       = norm(x)
//	v, z    = n·InProjᵀ + InBias           one matrix (rows, 2·channels)
//	u       = silu(conv(v))
//	r, B, C = u·XProjᵀ                     one matrix (rows, rank + 2·state)
//	Δ       = r·DtProjᵀ
//	s       = scan(u, Δ, A, B, C, D, z)    A = -exp(ALog), Δ through softplus with DtBias
//	y       = x + s·OutProjᵀ + OutBias
//
// v, z and r, B, C are read, and their gradients written, in place in their matrix. Absent operands are nil. The caller has checked the
// sizes.
type Block[T Float] struct {
	Batch, Length                       int
	Model, Channels, State, Width, Rank int
	Eps                                 float64

	X []T // (batch, length, model)
	BlockWeights[[]T]
	Context []T    // optional: (batch, width-1, channels): what the convolution reads before the first step
	Initial []T    // optional: (batch, channels, state): the state before the first step
	Start   []bool // optional: (batch, length): a new sequence starts here

	Gemm     Gemm[T]
	Products *BlockWeights[Gemm[T]] // with each weight, where some are no slices; nil for Gemm

	among int // as Scan.Among

	// What depends on weights alone, which all groups read. share makes it.
	a, strips, taps []T // A; Scan.Strips and Conv.Taps, nil for one group

	// What a pass uses is here, so that it allocates little: the operations, the gradients of their operands, and the workspaces.
	normOf   RMSNorm[T]
	linearOf Linear[T]
	convOf   Conv[T]
	scanOf   Scan[T]
	convGrad ConvGrad[T]
	scanGrad ScanGrad[T]
	spaces   spaces[T]
}

// BlockValues are the intermediate values of a block that its backward pass needs. The backward pass recomputes those that are nil.
type BlockValues[T Float] struct {
	Normed []T // (rows, model): n
	VZ     []T // (rows, 2·channels)
	U      []T // (rows, channels)
	RBC    []T // (rows, rank + 2·state)
	Delta  []T // (rows, channels): Δ before bias and softplus
	States []T // Scan.States, of Scan.KeptStates elements

	slope []T // Conv.Slope, where the backward pass recomputes U
}

func (b *Block[T]) rows() int { return b.Batch * b.Length }

// columns returns the width of the matrix of r, B and C.
func (b *Block[T]) columns() int { return b.Rank + 2*b.State }

func (b *Block[T]) norm() *RMSNorm[T] {
	b.normOf = RMSNorm[T]{Channels: b.Model, Eps: b.Eps, X: b.X, Weight: b.Norm}
	return &b.normOf
}

func (b *Block[T]) linear(x, weight, bias []T, in, out int, product Gemm[T]) *Linear[T] {
	b.linearOf = Linear[T]{Rows: b.rows(), In: in, Out: out, X: x, Weight: weight, Bias: bias, Gemm: product}
	return &b.linearOf
}

// products returns the product with each weight.
func (b *Block[T]) products() BlockWeights[Gemm[T]] {
	if b.Products != nil {
		return *b.Products
	}
	return BlockWeights[Gemm[T]]{InProj: b.Gemm, XProj: b.Gemm, DtProj: b.Gemm, OutProj: b.Gemm}
}

func (b *Block[T]) conv(v *BlockValues[T]) *Conv[T] {
	b.convOf = Conv[T]{
		Batch: b.Batch, Length: b.Length, Channels: b.Channels, Width: b.Width,
		X: v.VZ, XStride: 2 * b.Channels, Weight: b.Conv, Bias: b.ConvBias, Context: b.Context, Start: b.Start, SiLU: true, Taps: b.taps, Slope: v.slope,
	}
	return &b.convOf
}

func (b *Block[T]) scan(v *BlockValues[T]) *Scan[T] {
	b.scanOf = Scan[T]{
		Batch: b.Batch, Length: b.Length, Channels: b.Channels, State: b.State, Among: b.among,
		U: v.U, Delta: v.Delta, A: b.a, Strips: b.strips,
		B: Projection[T]{Data: v.RBC[b.Rank:], Groups: 1, Stride: b.columns()},
		C: Projection[T]{Data: v.RBC[b.Rank+b.State:], Groups: 1, Stride: b.columns()},
		D: b.D, Z: v.VZ[b.Channels:], ZStride: 2 * b.Channels, DeltaBias: b.DtBias,
		Initial: b.Initial, Start: b.Start, Softplus: true, States: v.States,
	}
	return &b.scanOf
}

// spaces are the workspaces that a pass over a block has borrowed.
type spaces[T Float] struct {
	all  [16]work.Space[T]
	used int
}

func (w *spaces[T]) take(n int) []T {
	s := work.Borrow[T](n)
	w.all[w.used] = s
	w.used++
	return s.Data
}

func (w *spaces[T]) giveBack() {
	for _, s := range w.all[:w.used] {
		s.Return()
	}
	w.used = 0
}

// compute fills v. It computes a nil slice in memory borrowed by w. Other slices hold their values already if kept, and are written
// otherwise. Unless context is nil, compute writes to it the context of the steps that follow. It runs the same operations whatever is
// kept, so that the result is the same bit for bit.
func (b *Block[T]) compute(v *BlockValues[T], kept bool, context []T, w *spaces[T]) {
	missing := func(s *[]T, width int) bool {
		if *s != nil {
			return !kept
		}
		*s = w.take(b.rows() * width)
		return true
	}
	if missing(&v.Normed, b.Model) {
		b.norm().Forward(v.Normed)
	}
	if missing(&v.VZ, 2*b.Channels) {
		b.linear(v.Normed, b.InProj, b.InBias, b.Model, 2*b.Channels, b.products().InProj).Forward(v.VZ)
	}
	if missing(&v.U, b.Channels) {
		if kept { // in the backward pass
			v.slope = w.take(len(v.U))
		}
		b.conv(v).Forward(v.U, context)
	}
	if missing(&v.RBC, b.columns()) {
		b.xProj(v)
	}
	if missing(&v.Delta, b.Channels) {
		b.dtProj(v)
	}
}

// groups returns the number of groups that the batch is cut into. Where the values of a sequence fit into a processor's own cache, a processor goes through
// the whole block with one group after another. It then waits for the others once in a pass, not after each kernel. Else there is one group, and each
// kernel is for all processors. The cut depends on the sizes alone.
func (b *Block[T]) groups() int {
	const mostValues, mostGroups = 1 << 18, 16
	values := b.Length * (b.Model + 4*b.Channels + b.columns())
	// A group reads all weights, and has its own part of their gradients. Its sequences have too few steps to be cut into chunks, and enough for its products
	// to be the same as those of all sequences, bit for bit.
	if weights := b.Channels * (3*b.Model + b.columns() + b.Rank); values > mostValues || weights > values || b.Length < 32 || b.Length >= 2*minChunk {
		return 1
	}
	return min(b.Batch, mostGroups)
}

// group is a part of a batch: the sequences [from, to).
type group struct{ batch, from, to int }

func (b *Block[T]) group(i int) group {
	n := b.groups()
	return group{b.Batch, i * b.Batch / n, (i + 1) * b.Batch / n}
}

// part returns the group's part of s (batch, …), nil for nil.
func part[E any](g group, s []E) []E {
	size := len(s) / g.batch
	return s[g.from*size : g.to*size]
}

// groupOf is a block of a group, with the gradients of its operands. groupsOf has those that are not in use.
type groupOf[T Float] struct {
	Block[T]
	grad BlockGrad[T]
}

var groupsOf [2]sync.Pool

// ofGroup calls f with the block of a group.
func (b *Block[T]) ofGroup(g group, f func(own *groupOf[T])) {
	own := recycle[T, groupOf[T]](&groupsOf)
	own.Block = *b
	own.Batch, own.among, own.X, own.Start = g.to-g.from, b.Batch, part(g, b.X), part(g, b.Start)
	own.Context, own.Initial = part(g, b.Context), part(g, b.Initial)
	f(own)
	*own = groupOf[T]{}
	groupsOf[poolOf[T]()].Put(own)
}

// of returns the values of the group.
func (v BlockValues[T]) of(g group) BlockValues[T] {
	return BlockValues[T]{part(g, v.Normed), part(g, v.VZ), part(g, v.U), part(g, v.RBC), part(g, v.Delta), part(g, v.States), nil}
}

// share computes what depends on weights alone. The caller returns the memory.
func (b *Block[T]) share() work.Space[T] {
	var own work.Layout[T]
	groups := b.groups() > 1
	own.Lay(func(l *work.Layout[T]) {
		b.a = l.Array(len(b.ALog))
		b.strips = l.ArrayIf(groups, (&Scan[T]{Channels: b.Channels, State: b.State}).keptStride())
		b.taps = l.ArrayIf(groups, len(b.Conv))
	})
	NegExp(b.a, b.ALog)
	if groups {
		(&Scan[T]{Channels: b.Channels, State: b.State, A: b.a}).layStrips(b.strips)
		(&Conv[T]{Channels: b.Channels, Width: b.Width, Weight: b.Conv}).layTaps(b.taps)
	}
	return own.Space()
}

// xProj writes r, B and C.
func (b *Block[T]) xProj(v *BlockValues[T]) {
	b.linear(v.U, b.XProj, nil, b.Channels, b.columns(), b.products().XProj).Forward(v.RBC)
}

// dtProj writes Δ.
func (b *Block[T]) dtProj(v *BlockValues[T]) {
	b.products().DtProj(blas.NoTrans, blas.Trans, b.rows(), b.Channels, b.Rank, 1, v.RBC, b.columns(), b.DtProj, b.Rank, 0, v.Delta, b.Channels)
}

// Forward writes y (batch, length, model). Unless they are nil, it writes the context of the steps that follow
// (batch, width-1, channels), the state after the last step, final (batch, channels, state), and the slices of keep, which Backward
// reads.
func (b *Block[T]) Forward(y, context, final []T, keep BlockValues[T]) {
	shared := b.share()
	defer shared.Return()
	work.Parallel(b.groups(), func(i int) {
		g := b.group(i)
		b.ofGroup(g, func(own *groupOf[T]) { own.forward(part(g, y), part(g, context), part(g, final), keep.of(g)) })
	})
}

func (b *Block[T]) forward(y, context, final []T, keep BlockValues[T]) {
	w := &b.spaces
	defer w.giveBack()
	if keep.Normed == nil {
		keep.Normed = y // y serves as memory until it is written, at the end
	}
	b.compute(&keep, false, context, w)
	s := w.take(len(keep.U))
	b.scan(&keep).Forward(s, final)

	rows := max(piece/b.Model, 1)
	if work.Alone(pieces(b.rows(), rows)) {
		b.passOn(y, 0, b.rows())
	} else {
		work.ParallelRange(b.rows(), rows, func(from, to int) { b.passOn(y, from, to) })
	}
	b.products().OutProj(blas.NoTrans, blas.Trans, b.rows(), b.Model, b.Channels, 1, s, b.Channels, b.OutProj, b.Channels, 1, y, b.Model)
}

// passOn writes X + OutBias to the rows [from, to) of y.
func (b *Block[T]) passOn(y []T, from, to int) {
	copy(y[from*b.Model:to*b.Model], b.X[from*b.Model:])
	if b.OutBias != nil {
		for row := from; row < to; row++ {
			y := y[row*b.Model : (row+1)*b.Model]
			sumOf(y, y, b.OutBias)
		}
	}
}
