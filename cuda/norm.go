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
	return s.run("norm", "norm_forward_"+typeName[T](), blocksOf(rows*32, 256), x.address, w.address, y.address, rows, width, eps)
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
	warps := min(16, room/(4*width))
	each := max((rows+2*s.device.multiprocessors-1)/(2*s.device.multiprocessors), warps) // rows per block
	blocks := (rows + each - 1) / each
	parts, err := NewArray[float32](s, blocks*width)
	if err != nil {
		return err
	}
	defer parts.Free()
	g := grid{x: int64(blocks), threads: 32 * warps, shared: 4 * warps * width}
	if err := s.run("norm", "norm_backward_"+typeName[T](), g, x.address, w.address, dy.address, residual.address, dx.address,
		parts.address, rows, width, eps, each); err != nil {
		return err
	}
	return s.rowSums(parts, dw, blocks, width)
}

// columnBlocks returns the grid of the kernels that use columnSum.
func columnBlocks(size int) grid { return grid{x: (int64(size) + 31) / 32, threads: 256} }

// rowSums queues the sum (size) of the rows of parts (count, size), added in a fixed order.
func (s *Stream) rowSums(parts, sum Array[float32], count, size int) error {
	return s.run("elementwise", "row_sums", columnBlocks(size), parts.address, sum.address, count, size)
}
