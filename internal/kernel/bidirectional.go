package kernel

import "github.com/gomamba/mamba/internal/work"

// Bidirectional is the part between InProj and OutProj of a Mamba block that reads its sequences in both directions (Zhu et al., "Vision Mamba:
// Efficient Visual Representation Learning with Bidirectional State Space Model", algorithm 1). Each direction d has weights of its own. The second
// reads each sequence from its end to its beginning:
//
//	u       = silu(conv(x))
//	r, B, C = u·XProjᵀ
//	s_d     = scan(u, r·DtProjᵀ, A, B, C, D)    as in Block, without z
//
//	y = Scale·(s_0 + s_1)·silu(z)
//
// Absent operands are nil. The caller has checked the sizes.
type Bidirectional[T Float] struct {
	Batch, Length, Channels, State, Width, Rank int

	XZ         []T                      // (batch, length, 2·channels): x and z
	Directions [2]BlockWeights[[]T]     // without Norm, InProj and OutProj
	Products   [2]BlockWeights[Gemm[T]] // with XProj and DtProj
	Start      []bool                   // optional: (batch, length): a new sequence starts here
	Scale      T
	Gemm       Gemm[T]
}

// BidirectionalGrad receives the gradients of a Bidirectional's operands, in their shapes. Those of absent operands are nil.
type BidirectionalGrad[T Float] struct {
	XZ         []T
	Directions [2]BlockWeights[[]T]
}

// direction is one of the directions, with its values: those of the second in the order in which it reads them, from the last step to the first.
type direction[T Float] struct {
	*Block[T]
	conv   *Conv[T]
	scan   *Scan[T]
	values BlockValues[T]
}

// direction computes the values of direction d before the scan. It gets memory from take.
func (b *Bidirectional[T]) direction(d int, take func(n int) []T) *direction[T] {
	k := &direction[T]{Block: &Block[T]{
		Batch: b.Batch, Length: b.Length, Channels: b.Channels, State: b.State, Width: b.Width, Rank: b.Rank,
		BlockWeights: b.Directions[d], Start: b.Start, Gemm: b.Gemm, Products: &b.Products[d],
	}}
	if d == 1 {
		k.Start = b.startsFromEnd()
	}
	n := k.rows()
	k.values = BlockValues[T]{VZ: b.XZ, U: take(n * b.Channels), RBC: take(n * k.columns()), Delta: take(n * b.Channels)}
	k.conv, k.a = k.Block.conv(&k.values), take(len(k.ALog))
	k.conv.FromEnd = d == 1
	k.conv.Forward(k.values.U, nil)
	k.xProj(&k.values)
	k.dtProj(&k.values)
	NegExp(k.a, k.ALog)
	k.scan = k.Block.scan(&k.values)
	k.scan.Z, k.scan.ZStride = nil, 0
	return k
}

// startsFromEnd returns Start for the steps in reverse order: a sequence then starts where it ended.
func (b *Bidirectional[T]) startsFromEnd() []bool {
	if b.Start == nil {
		return nil
	}
	starts := make([]bool, len(b.Start))
	for i, start := range b.Start {
		if start && i%b.Length > 0 {
			starts[b.mirror(i-1)] = true
		}
	}
	return starts
}

// mirror returns the row that the second direction has at the step of row i.
func (b *Bidirectional[T]) mirror(i int) int { return i + b.Length - 1 - 2*(i%b.Length) }

// Forward writes y (batch, length, channels).
func (b *Bidirectional[T]) Forward(y []T) {
	var w [2]spaces[T]
	var s [2][]T
	defer w[0].giveBack()
	defer w[1].giveBack()
	work.Parallel(2, func(d int) { // a task for each direction, so that few processors wait for each other once only
		s[d] = w[d].take(len(y))
		b.direction(d, w[d].take).scan.Forward(s[d], nil)
	})
	b.eachRow(func(i int, z, gate []T) {
		y, sum := b.row(y, i), b.row(s[0], i)
		b.sum(sum, s, i)
		siluOf(gate, z)
		clear(y)
		addProduct(y, sum, gate)
	})
}

// Backward writes every element of grad's slices. dy is the gradient of y. It computes the values before the scans again.
func (b *Bidirectional[T]) Backward(dy []T, grad *BidirectionalGrad[T]) {
	n := len(dy)
	var all spaces[T]
	var w [2]spaces[T]
	defer all.giveBack()
	defer w[0].giveBack()
	defer w[1].giveBack()
	ds, s := [2][]T{all.take(n), all.take(n)}, [2][]T{all.take(n), all.take(n)}
	dxz := [2][]T{grad.XZ, all.take(2 * n)} // the gradient of x by each direction, in rows as those of XZ
	b.eachRow(func(i int, z, gate []T) {
		own := b.row(ds[0], i)
		siluOf(gate, z)
		scaleOf(gate, gate, b.Scale)
		clear(own)
		addProduct(own, b.row(dy, i), gate)
		copy(b.row(ds[1], b.mirror(i)), own)
	})
	work.Parallel(2, func(d int) {
		take, g := w[d].take, &BlockGrad[T]{BlockWeights: grad.Directions[d]}
		k := b.direction(d, take)
		du, dDelta, dRBC := take(n), take(n), take(len(k.values.RBC))
		k.scan.Backward(ds[d], nil, &ScanGrad[T]{U: du, Delta: dDelta, A: g.ALog, B: dRBC[b.Rank:], C: dRBC[b.Rank+b.State:], D: g.D, DeltaBias: g.DtBias, Y: s[d]})
		k.projectBack(k.conv, &k.values, du, dDelta, dRBC, nil, &ConvGrad[T]{X: dxz[d], Weight: g.Conv, Bias: g.ConvBias}, g)
	})
	b.eachRow(func(i int, z, dsum []T) {
		dx, dz, sum := b.row(grad.XZ, 2*i), b.row(grad.XZ, 2*i+1), b.row(s[0], i)
		sumOf(dx, dx, b.row(dxz[1], 2*i))
		b.sum(sum, s, i)
		clear(dsum)
		addProduct(dsum, sum, b.row(dy, i))
		siluBack(dz, dsum, z)
	})
}

// row returns row i of (rows, channels).
func (b *Bidirectional[T]) row(x []T, i int) []T { return x[i*b.Channels:][:b.Channels] }

// sum writes row i of Scale·(s_0 + s_1).
func (b *Bidirectional[T]) sum(sum []T, s [2][]T, i int) {
	sumOf(sum, b.row(s[0], i), b.row(s[1], b.mirror(i)))
	scaleOf(sum, sum, b.Scale)
}

// eachRow calls f for each row, with its z and memory for as many numbers.
func (b *Bidirectional[T]) eachRow(f func(i int, z, memory []T)) {
	c := b.Channels
	work.ParallelRange(b.Batch*b.Length, max(piece/c, 1), func(from, to int) {
		memory := work.Borrow[T](c)
		defer memory.Return()
		for i := from; i < to; i++ {
			f(i, b.row(b.XZ, 2*i+1), memory.Data)
		}
	})
}
