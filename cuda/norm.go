package cuda

import "fmt"

// expect reports arrays that are shorter than what is read or written of them, given as name, length and least length in turn.
func expect(what string, sizes ...any) error {
	for i := 0; i < len(sizes); i += 3 {
		if n, want := sizes[i+1].(int), sizes[i+2].(int); n < want {
			return fmt.Errorf("cuda: %s: %s has %d elements, want %d", what, sizes[i], n, want)
		}
	}
	return nil
}

// RMSNormForward writes y (rows, width) = x / sqrt(mean(x²) + eps) · w (Zhang and Sennrich, "Root Mean Square Layer
// Normalization"), of x (rows, width) and w (width).
func RMSNormForward[T Activation](s *Stream, rows, width int, eps float32, x, w Array[float32], y Array[T]) error {
	if err := expect("RMS norm", "x", x.n, rows*width, "w", w.n, width, "y", y.n, rows*width); err != nil {
		return err
	}
	return s.run("norm", "norm_forward_"+typeName[T](), blocksOf(rows*32, 256), x.address, w.address, y.address, rows, width, eps)
}

// RMSNormBackward writes dx = residual + the gradient of x, and dw, from dy. The residual may be absent, or be dx itself.
func RMSNormBackward[T Activation](s *Stream, rows, width int, eps float32, x, w Array[float32], dy Array[T], residual, dx, dw Array[float32]) error {
	err := expect("RMS norm", "x", x.n, rows*width, "w", w.n, width, "dy", dy.n, rows*width, "dx", dx.n, rows*width, "dw", dw.n, width)
	if err != nil {
		return err
	}
	if rows*width == 0 {
		return dw.Fill(s, 0)
	}
	const room = 48 << 10
	if 4*width > room {
		return fmt.Errorf("cuda: RMS norm: width is %d, want at most %d", width, room/4)
	}
	if !residual.Absent() {
		if err := expect("RMS norm", "residual", residual.n, rows*width); err != nil {
			return err
		}
	}
	warps := min(16, room/(4*width))
	each := max((rows+2*s.device.multiprocessors-1)/(2*s.device.multiprocessors), warps) // rows of a block
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

// columnBlocks is the grid of the kernels' columnSum.
func columnBlocks(size int) grid { return grid{x: (int64(size) + 31) / 32, threads: 256} }

// rowSums adds up count rows of size numbers, in their order.
func (s *Stream) rowSums(parts, sum Array[float32], count, size int) error {
	return s.run("elementwise", "row_sums", columnBlocks(size), parts.address, sum.address, count, size)
}
