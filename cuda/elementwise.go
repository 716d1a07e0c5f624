package cuda

// Add writes sum = a + b, which may be one of them.
func Add(s *Stream, a, b, sum Array[float32]) error {
	if err := expect("add", "b", b.n, a.n, "sum", sum.n, a.n); err != nil {
		return err
	}
	return s.run("elementwise", "add", blocksOf(a.n, 256), a.address, b.address, sum.address, a.n)
}

// Convert rounds, or widens, or copies.
func Convert[A, B Activation](s *Stream, from Array[A], to Array[B]) error {
	if err := expect("convert", "to", to.n, from.n); err != nil {
		return err
	}
	a, b := typeName[A](), typeName[B]()
	if a == b {
		return Array[A]{to.stream, to.address, to.n}.copy(s, from)
	}
	return s.run("elementwise", "convert_"+a+"_"+b, blocksOf(from.n, 256), from.address, to.address, from.n)
}

// AddBias adds bias (width) to each of the rows of x, which are stride apart.
func AddBias[T Activation](s *Stream, rows, width int, x Array[T], stride int, bias Array[float32]) error {
	if err := firstError(
		atLeast(0, "bias", "rows", rows, "width", width), inRow("bias", "stride", stride, width),
		expect("bias", "x", x.n, strided(rows, stride, width), "bias", bias.n, width),
	); err != nil {
		return err
	}
	return s.run("elementwise", "add_bias_"+typeName[T](), blocksOf(rows*width, 256), x.address, bias.address, rows, width, stride)
}

// Largest writes the index of the largest number of each of the rows of x (rows, width), the lowest of several; -1 where that is
// infinite, or where a number is none.
func Largest(s *Stream, rows, width int, x Array[float32], index Array[int32]) error {
	if err := firstError(
		atLeast(0, "largest", "rows", rows, "width", width), expect("largest", "x", x.n, count(rows, width), "index", index.n, rows),
	); err != nil {
		return err
	}
	return s.run("elementwise", "largest", grid{x: int64(rows), threads: 1024}, x.address, index.address, width)
}

// ColumnSums writes the sums (width) of the columns of x, whose rows are stride apart, in a fixed order.
func ColumnSums[T Activation](s *Stream, rows, width int, x Array[T], stride int, sums Array[float32]) error {
	if err := firstError(
		atLeast(0, "column sums", "rows", rows, "width", width), inRow("column sums", "stride", stride, width),
		expect("column sums", "x", x.n, strided(rows, stride, width), "sums", sums.n, width),
	); err != nil {
		return err
	}
	each := max(64, (rows+255)/256)
	count := (rows + each - 1) / each
	parts, err := NewArray[float32](s, count*width)
	if err != nil {
		return err
	}
	defer parts.Free()
	g := blocksOf(width, 64)
	g.y = int64(count)
	if count > 0 {
		if err := s.run("elementwise", "column_sums_"+typeName[T](), g, x.address, parts.address, rows, width, stride, each); err != nil {
			return err
		}
	}
	return s.rowSums(parts, sums, count, width)
}
