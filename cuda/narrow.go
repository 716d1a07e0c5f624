package cuda

import (
	"fmt"
)

// Products of float32 with at least leastNarrowRows rows use kernels of ours (kernels/narrowasync.cu) if one of their sizes is at most narrowest, and
// the sums over up to mostNarrowRows rows, as for the gradient of a weight, if their result has up to mostNarrowSum elements. cuBLAS is slower there,
// since it adds the parts of such a sum in a kernel of their own, and faster for other sizes.
const (
	leastNarrowRows = 2048
	mostNarrowRows  = 64 << 10
	narrowest       = 16
	mostNarrow      = 256
	mostNarrowSum   = 8 << 10
)

// narrowColumns are the columns of a block of the kernels of many rows, with the rows of a block and its threads.
var narrowColumns = []struct{ columns, rows, threads int }{{4, 128, 128}, {16, 128, 64}, {64, 128, 128}, {128, 128, 256}}

// narrow queues c = a·b + beta·c if its kernels fit, and reports whether they do.
func narrow[A, C Activation](s *Stream, m, n, k int, alpha float32, a, b Matrix[A], beta float32, c Matrix[C]) (bool, error) {
	x, ok := any(a).(Matrix[float32])
	y, ok2 := any(b).(Matrix[float32])
	z, ok3 := any(c).(Matrix[float32])
	if !ok || !ok2 || !ok3 || alpha != 1 || s.device.kernels < 80 || s.device.shared < narrowShared {
		return false, nil
	}
	together := uintptr(x.Stride | y.Stride | z.Stride | n)
	if a.Transposed {
		together |= uintptr(m)
	} else {
		together |= uintptr(k)
	}
	if together%4|(x.Data.address|y.Data.address|z.Data.address)%16 != 0 {
		return false, nil
	}
	switch {
	case !a.Transposed && tensorFits(s, m, n, k, beta != 0):
		return true, tensorRows(s, m, n, k, x, y, z, z, beta, s.early)
	case a.Transposed && !b.Transposed && beta == 0 && z.Stride == n && groupSumFits(s, m, n, k):
		return true, groupSum(s, m, n, k, x, y, z)
	case !a.Transposed && m >= leastNarrowRows && min(n, k) <= narrowest && max(n, k) <= mostNarrow:
		return true, rowsProduct(s, m, n, k, x, y, beta, z)
	case a.Transposed && !b.Transposed && k >= leastNarrowRows && beta == 0 && z.Stride == n &&
		(min(m, n) <= narrowest || k <= mostNarrowRows && m*n <= mostNarrowSum):
		return columnsProduct(s, m, n, k, x, y, z)
	}
	return false, nil
}

// narrowShared is the most shared memory that the kernels need.
const narrowShared = 96 << 10

// rowsProduct queues c (m, n) = a (m, k) · b (k, n) + beta·c for many rows.
func rowsProduct(s *Stream, m, n, k int, a, b Matrix[float32], beta float32, c Matrix[float32]) error {
	i := 0
	for i < len(narrowColumns)-1 && narrowColumns[i].columns < n {
		i++
	}
	block, way := narrowColumns[i], "across"
	if b.Transposed {
		way = "along"
	}
	g := blocksOf(m, block.rows)
	g.y, g.threads, g.shared = int64((n+block.columns-1)/block.columns), block.threads, 4*(block.rows*(64+4)+64*block.columns)
	return s.run("narrowasync", fmt.Sprintf("rows_product_%d_%s", block.columns, way), g.wait(s), a.Data.address, a.Stride, b.Data.address, b.Stride,
		c.Data.address, c.Stride, m, n, k, beta)
}

// columnsProduct queues c (m, n) = aᵀ·b for a (k, m) and b (k, n) of many rows, added in a fixed order. It reports whether there is a kernel for m and n.
func columnsProduct(s *Stream, m, n, k int, a, b, c Matrix[float32]) (bool, error) {
	down, across := 8, 8 // elements of c of a thread
	if m%8 != 0 || m*n <= 64*128 {
		down = 4
	}
	if n%8 != 0 || m*n <= 64*64 {
		across = 4
	}
	if m/down*(n/across) > 256 || down > across || max(m, n) > mostNarrow {
		return false, nil
	}
	const rows = 32 // of a tile
	blocks := 2 * s.device.multiprocessors
	each := (k + blocks - 1) / blocks
	blocks = (k + each - 1) / each
	parts, err := NewArray[float32](s, blocks*m*n)
	if err != nil {
		return true, err
	}
	g := grid{x: int64(blocks), threads: 256, shared: 4 * max(2*rows*(m+n), m*n)}
	if err := s.run("narrowasync", fmt.Sprintf("columns_product_%dx%d", down, across), g.early(s), a.Data.address, a.Stride, b.Data.address, b.Stride,
		parts.address, m, n, k, each); err != nil {
		parts.Free()
		return true, err
	}
	return true, s.sum(nil, []partSum{sumOf(c.Data.Slice(0, m*n), parts, blocks)}, parts)
}

// leastGroupRows is the number of rows from which on products use the kernels of compute capability 9.0 alone (kernels/narrow90a.cu). It is a variable for tests.
var leastGroupRows = 8 << 10

// Sizes of those kernels.
const (
	groupNarrow = 64        // the smaller size of a matrix is at most this
	groupWide   = 256       // the larger size of a sum over rows is at most this
	groups      = 3         // groups of 128 threads in a block of groupRows, with 64 rows each
	groupStage  = 16 << 10  // bytes of 64 rows and 64 columns
	groupShared = 226 << 10 // the most shared memory of a block
	groupStages = 1         // blocks of 64 numbers of k that are copied ahead: two take as long, and a kernel with 192 KiB of shared memory after one with little waits 3 to 5 µs
)

// groupBlocks returns the grid of groupRows for a product with a matrix (k, n), of a block for each multiprocessor. held says whether it copies what it adds to shared memory, too.
func groupBlocks(s *Stream, m, n, k int, held bool) grid {
	columns, blocks, copied := (n+63)/64, (k+63)/64, groupStages
	if held {
		copied += columns
	}
	return grid{x: int64(min((m+63)/64, s.device.multiprocessors)), threads: 128 * groups, shared: 3*columns*blocks*groupStage/2 + groups*copied*groupStage}
}

// flag returns 1 for true, as an argument of a kernel.
func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// groupFits reports whether groupRows computes a product: of many rows, with a matrix (k, n) of which one size is small and whose three parts fit into shared memory.
func groupFits(s *Stream, m, n, k int, held bool) bool {
	return s.device.hopper && s.device.shared >= groupShared && m >= leastGroupRows && min(n, k) > narrowest && min(n, k) <= groupNarrow && groupBlocks(s, m, n, k, held).shared <= groupShared
}

// groupRows is splitRows with those kernels. groupFits must be true, and narrow's other conditions. With before, b is read before the kernel before has ended, which does not write it.
func groupRows(s *Stream, m, n, k int, a, b, c, added Matrix[float32], beta float32, before bool) error {
	way, size := "across", "wide"
	if b.Transposed {
		way = "along"
	}
	if k > groupNarrow {
		size = "deep"
	}
	return s.run("narrow90a", "narrow_rows_"+size+"_"+way, groupBlocks(s, m, n, k, beta != 0).wait(s), a.Data.address, a.Stride, b.Data.address, b.Stride, c.Data.address, c.Stride,
		added.Data.address, added.Stride, beta, m, n, k, groupStages, flag(before))
}

// groupStepsFit reports whether groupSteps computes c and the step sizes.
func groupStepsFit(s *Stream, m, n, k, rank int, b, weight Array[float32]) bool {
	return rank == stepRank && n <= groupNarrow && n%4 == 0 && groupFits(s, m, n, k, false) && groupBlocks(s, m, n, k, false).shared+groupSteps16(k) <= groupShared && (b.address|weight.address)%16 == 0
}

// groupSteps16 returns the bytes of the three parts of a matrix (16, k), to which the step sizes' weight is extended. Two blocks of 64 columns are computed together.
func groupSteps16(k int) int { return (k + 127) / 128 * 2 * 3 * 64 * 16 * 2 }

// groupSteps queues, after a kernel that does not write b or weight, c (m, n) = a (m, k) · bᵀ, for b (n, k), and to (m, k) = the first four columns of c · weightᵀ, for weight (k, 4).
func groupSteps(s *Stream, m, n, k int, a, b, c, weight, to Array[float32]) error {
	g := groupBlocks(s, m, n, k, false)
	g.shared += groupSteps16(k)
	return s.run("narrow90a", "narrow_steps", g.early(s), a.address, b.address, c.address, weight.address, to.address, m, n, k, groupStages, flag(true))
}

// groupSumFits reports whether groupSum computes a sum over many rows.
func groupSumFits(s *Stream, m, n, k int) bool {
	return s.device.hopper && k >= leastGroupRows && min(m, n) > narrowest && min(m, n) <= groupNarrow && max(m, n) <= groupWide
}

// groupParts returns the grid of a sum over rows for a result whose larger size is wide, and the rows of each part. g.x is the number of parts.
func groupParts(s *Stream, wide, rows int) (g grid, each int) {
	const columns, step = 128, 32                                                  // of a block, and rows of a step of the kernel
	const copied, slots = 3 * 256 * (8*8 + 2*16 + 2*4), 2 * 2 * 3 * 8 * (256 + 16) // bytes of shared memory
	g = grid{y: int64((wide + columns - 1) / columns), threads: 256, shared: copied + slots}
	all := max(1, 2*s.device.multiprocessors/int(g.y))
	each = ((rows+all-1)/all + step - 1) / step * step
	g.x = int64((rows + each - 1) / each)
	return g, each
}

// groupSum queues c (m, n) = aᵀ·b for a (k, m) and b (k, n) of many rows, added in a fixed order. groupSumFits must be true.
func groupSum(s *Stream, m, n, k int, a, b, c Matrix[float32]) error {
	g, each := groupParts(s, max(m, n), k)
	parts, err := NewArray[float32](s, int(g.x)*m*n)
	if err != nil {
		return err
	}
	name, down, across := "narrow_columns", m, n
	if n > groupNarrow {
		name, a, b, down, across = "narrow_columns_turned", b, a, n, m
	}
	if err := s.run("narrow90a", name, g.early(s), a.Data.address, a.Stride, b.Data.address, b.Stride, parts.address, k, down, across, each); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(c.Data.Slice(0, m*n), parts, int(g.x))}, parts)
}

// groupNormSum is groupSum of a (rows, m) and RMSNorm of x (rows, n) with the given weight. splitNorm has written scales.
func groupNormSum(s *Stream, m, n, rows int, a, x, scales, weight, c Array[float32]) error {
	g, each := groupParts(s, m, rows)
	parts, err := NewArray[float32](s, int(g.x)*m*n)
	if err != nil {
		return err
	}
	if err := s.run("narrow90a", "narrow_columns_norm", g.early(s), a.address, x.address, scales.address, weight.address, parts.address, rows, m, n, each); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(c.Slice(0, m*n), parts, int(g.x))}, parts)
}

// tensorFits reports whether tensorRows computes a product.
func tensorFits(s *Stream, m, n, k int, held bool) bool {
	return groupFits(s, m, n, k, held) || splitFits(m, n, k)
}

// tensorRows queues c (m, n) = a (m, k) · b (k, n) + beta·added in tensor cores. tensorFits must be true, and narrow's other conditions. before is that of groupRows.
func tensorRows(s *Stream, m, n, k int, a, b, c, added Matrix[float32], beta float32, before bool) error {
	if groupFits(s, m, n, k, beta != 0) {
		return groupRows(s, m, n, k, a, b, c, added, beta, before)
	}
	return splitRows(s, m, n, k, a, b, c, added, beta)
}

// stepRank is the only rank of step sizes, and mostStepChannels the largest number of channels, for which stepGradients has a kernel.
const (
	stepRank         = 4
	mostStepChannels = 128
)

// stepGradientsFit reports whether stepGradients computes the gradients of a block's step sizes r (rows, 4) · weightᵀ, where the rows of r and of its gradient are columns elements
// apart.
func stepGradientsFit(s *Stream, rows, channels, rank, columns int, weight Array[float32]) bool {
	return s.device.kernels >= 80 && rank == stepRank && rows >= leastNarrowRows && channels <= mostStepChannels && (channels|columns)%4 == 0 && weight.address%16 == 0
}

// stepGradients queues them, from the gradient d (rows, channels): that of r to dr, and that of weight (channels, 4) to dweight.
func stepGradients(s *Stream, rows, channels, columns int, d, weight, r, dr, dweight Array[float32]) error {
	blocks := 2 * s.device.multiprocessors
	each := (rows + blocks - 1) / blocks
	blocks = (rows + each - 1) / each
	parts, err := NewArray[float32](s, blocks*channels*stepRank)
	if err != nil {
		return err
	}
	if err := s.run("narrowasync", "step_gradients", grid{x: int64(blocks), threads: 256}.early(s), d.address, weight.address, r.address, columns, dr.address, columns, parts.address, rows,
		channels, each); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(dweight.Slice(0, channels*stepRank), parts, blocks)}, parts)
}

// leastSplitRows is the number of rows from which on products use tensor cores (splitRows). It is a variable for tests.
var leastSplitRows = 128 << 10

// splitFits reports whether splitRows is faster than cuBLAS: for many rows, and a matrix (k, n) whose three parts fit into shared memory.
func splitFits(m, n, k int) bool {
	return m >= leastSplitRows && min(n, k) > narrowest && k%16 == 0 && splitShared(n, k) <= narrowShared
}

// splitShared returns the bytes of the three parts in bfloat16 of a matrix (k, n).
func splitShared(n, k int) int { return (n + 15) / 16 * 16 * k * 3 * 2 }

// splitRows queues c (m, n) = a (m, k) · b (k, n) + beta·added in tensor cores (kernels/splitmma.cu). splitFits must be true, and narrow's other conditions.
func splitRows(s *Stream, m, n, k int, a, b, c, added Matrix[float32], beta float32) error {
	way := "across"
	if b.Transposed {
		way = "along"
	}
	return s.run("splitmma", "split_rows_"+way, splitBlocks(s, m, n, k), a.Data.address, a.Stride, b.Data.address, b.Stride, c.Data.address, c.Stride,
		added.Data.address, added.Stride, beta, m, n, k)
}

// splitBlocks returns the grid of splitRows, of two blocks for each multiprocessor.
func splitBlocks(s *Stream, m, n, k int) grid {
	const rows = 8 * 16 // of a block
	return grid{x: int64(min((m+rows-1)/rows, 2*s.device.multiprocessors)), threads: 256, shared: splitShared(n, k)}
}

// mostSplitNorm is the largest width of splitNorm and of splitNormBackward.
const mostSplitNorm = 64

// splitNorm queues c (m, n) = norm(x) (m, k) · wᵀ, for w (n, k), where norm is the RMSNorm with the given weight. Where groupFits, it writes to scales (m), unless that is absent, what
// it multiplies each row by.
func splitNorm(s *Stream, m, n, k int, eps float32, x, weight, w, c, scales Array[float32]) error {
	if groupFits(s, m, n, k, false) {
		return s.run("narrow90a", "narrow_norm", groupBlocks(s, m, n, k, false).early(s), x.address, weight.address, eps, w.address, c.address, scales.address, m, n, k, groupStages,
			flag(s.early))
	}
	return s.run("splitmma", "split_norm", splitBlocks(s, m, n, k), x.address, weight.address, eps, w.address, c.address, m, n, k)
}

// splitNormBackward queues, after a kernel that does not write w, the gradients of splitNorm's x, plus residual, and of its weight, from the gradient dc of c.
func splitNormBackward(s *Stream, m, n, k int, eps float32, x, weight, w, dc, residual, dx, dweight Array[float32]) error {
	g, group := splitBlocks(s, m, k, n), groupFits(s, m, k, n, false)
	if group {
		g = groupBlocks(s, m, k, n, false)
	}
	parts, err := NewArray[float32](s, int(g.x)*k)
	if err != nil {
		return err
	}
	if group {
		err = s.run("narrow90a", "narrow_norm_backward", g.wait(s), dc.address, n, w.address, x.address, weight.address, eps, residual.address, dx.address, parts.address, m, k, n, groupStages,
			flag(true))
	} else {
		err = s.run("splitmma", "split_norm_backward", g, dc.address, n, w.address, x.address, weight.address, eps, residual.address, dx.address, parts.address, m, k, n)
	}
	if err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(dweight.Slice(0, k), parts, int(g.x))}, parts)
}
