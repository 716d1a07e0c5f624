package cuda

import "fmt"

// RMSNormForward queues y = x / sqrt(mean(x²) + eps) · w (Zhang and Sennrich, "Root Mean Square Layer Normalization"). x and y are
// (rows, width), w is (width).
func RMSNormForward[T Activation](s *Stream, rows, width int, eps float32, x, w Array[float32], y Array[T]) error {
	if err := firstError(
		atLeast(0, "RMS norm", "rows", rows, "width", width),
		expect("RMS norm", "x", x.n, count(rows, width), "w", w.n, width, "y", y.n, count(rows, width)),
		checkEps("RMS norm", eps),
	); err != nil {
		return err
	}
	return normForward(s, rows, width, eps, x, w, y, Array[float32]{})
}

// normForward is RMSNormForward that also copies x to same, unless same is absent. The lengths have been checked.
func normForward[T Activation](s *Stream, rows, width int, eps float32, x, w Array[float32], y Array[T], same Array[float32]) error {
	name, g := "norm_forward_"+typeName[T](), blocksOf(rows*32, 256)
	if rowsOf := normRows[T](width, y.address, x.address, w.address, same.address); rowsOf != nil {
		name, g = name+rowsOf.name, blocksOf(rows*rowsOf.group, 256).follow(s) // the other kernel does not wait for the one before
	}
	return s.run("norm", name, g, x.address, w.address, y.address, same.address, rows, width, eps)
}

// normKernel describes the kernels that keep a row of up to most numbers in the registers of a group of threads.
type normKernel struct {
	most, group int
	name        string
}

var normKernels = []normKernel{{64, 16, "_16x1"}, {128, 32, "_32x1"}, {256, 32, "_32x2"}, {768, 32, "_32x6"}, {1024, 256, "_256x1"}, {3072, 256, "_256x3"}, {4096, 256, "_256x4"}}

// normRows returns the kernels for rows that begin at multiples of four numbers, or nil if none fit. typed is the address of an array of T.
func normRows[T Activation](width int, typed uintptr, addresses ...uintptr) *normKernel {
	together := uintptr(width) | typed/uintptr(size[T]())
	for _, address := range addresses {
		together |= address / 4
	}
	for i := range normKernels {
		if k := &normKernels[i]; together%4 == 0 && width <= k.most {
			return k
		}
	}
	return nil
}

// RMSNormBackward queues dx (rows, width), the gradient of x plus residual, and dw (width), the gradient of w. dy (rows, width) is the
// gradient of y. residual (rows, width) may be absent or the same array as dx. It returns an error if width is larger than 12288.
func RMSNormBackward[T Activation](s *Stream, rows, width int, eps float32, x, w Array[float32], dy Array[T], residual, dx, dw Array[float32]) error {
	size := count(rows, width)
	if err := firstError(
		atLeast(0, "RMS norm", "rows", rows, "width", width),
		expect("RMS norm", "x", x.n, size, "w", w.n, width, "dy", dy.n, size, "dx", dx.n, size, "dw", dw.n, width),
		optional("RMS norm", "residual", residual, size), checkEps("RMS norm", eps),
		s.usable(),
	); err != nil {
		return err
	}
	if size == 0 {
		return dw.Fill(s, 0)
	}
	const room = 48 << 10
	if 4*width > room {
		return fmt.Errorf("cuda: RMS norm: width is %d, want at most %d", width, room/4)
	}
	name, most := "norm_backward_"+typeName[T](), 2*s.device.multiprocessors // blocks
	together := min(16, room/(4*width))                                      // rows that a block processes at the same time
	g := grid{threads: 32 * together, shared: 4 * together * width}
	if k := normRows[T](width, dy.address, x.address, w.address, residual.address, dx.address); k != nil {
		name, together = name+k.name, 256/k.group
		if g = (grid{threads: 256, shared: 4 * together * width}); together == 1 {
			g.shared = 0
		}
		if together == 1 || width <= 128 { // more blocks fit on a multiprocessor
			most *= 2
		}
	}
	each := max((rows+most-1)/most, together) // rows per block
	blocks := (rows + each - 1) / each
	parts, err := NewArray[float32](s, blocks*width)
	if err != nil {
		return err
	}
	g.x = int64(blocks)
	if err := s.run("norm", name, g.wait(s), x.address, w.address, dy.address, residual.address, dx.address,
		parts.address, rows, width, eps, each); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(dw.Slice(0, width), parts, blocks)}, parts)
}

// columnBlocks returns the grid of the kernels that use columnSum.
func columnBlocks(size int) grid { return grid{x: (int64(size) + 31) / 32, threads: 256} }
