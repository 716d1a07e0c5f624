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
	case !a.Transposed && splitFits(m, n, k):
		return true, splitRows(s, m, n, k, x, y, z, z, beta)
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
	return s.run("narrowasync", fmt.Sprintf("rows_product_%d_%s", block.columns, way), g, a.Data.address, a.Stride, b.Data.address, b.Stride,
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
	if err := s.run("narrowasync", fmt.Sprintf("columns_product_%dx%d", down, across), g, a.Data.address, a.Stride, b.Data.address, b.Stride,
		parts.address, m, n, k, each); err != nil {
		parts.Free()
		return true, err
	}
	return true, s.sum(nil, []partSum{sumOf(c.Data.Slice(0, m*n), parts, blocks)}, parts)
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

// splitNorm queues c (m, n) = norm(x) (m, k) · wᵀ, for w (n, k), where norm is the RMSNorm with the given weight.
func splitNorm(s *Stream, m, n, k int, eps float32, x, weight, w, c Array[float32]) error {
	return s.run("splitmma", "split_norm", splitBlocks(s, m, n, k), x.address, weight.address, eps, w.address, c.address, m, n, k)
}

// splitNormBackward queues the gradients of splitNorm's x, plus residual, and of its weight, from the gradient dc of c.
func splitNormBackward(s *Stream, m, n, k int, eps float32, x, weight, w, dc, residual, dx, dweight Array[float32]) error {
	g := splitBlocks(s, m, k, n)
	parts, err := NewArray[float32](s, int(g.x)*k)
	if err != nil {
		return err
	}
	if err := s.run("splitmma", "split_norm_backward", g, dc.address, n, w.address, x.address, weight.address, eps, residual.address, dx.address, parts.address, m, k, n); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(dweight.Slice(0, k), parts, int(g.x))}, parts)
}
