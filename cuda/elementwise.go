package cuda

import "errors"

// Add queues sum = a + b. sum may be a or b.
func Add(s *Stream, a, b, sum Array[float32]) error {
	if a.Absent() {
		return errors.New("cuda: add: a is absent, want an array")
	}
	if err := expect("add", "b", b.n, a.n, "sum", sum.n, a.n); err != nil {
		return err
	}
	return s.run("elementwise", "add", blocksOf(a.n, 256), a.address, b.address, sum.address, a.n)
}

// Convert queues a copy of from into to, converted to to's type: rounded to bfloat16, or widened to float32.
func Convert[A, B Activation](s *Stream, from Array[A], to Array[B]) error {
	if from.Absent() {
		return errors.New("cuda: convert: from is absent, want an array")
	}
	if err := expect("convert", "to", to.n, from.n); err != nil {
		return err
	}
	a, b := typeName[A](), typeName[B]()
	if a == b {
		return Array[A](to).copy(s, from)
	}
	return s.run("elementwise", "convert_"+a+"_"+b, blocksOf(from.n, 256), from.address, to.address, from.n)
}

// AddBias queues the addition of bias (width) to each row of x. The rows are stride elements apart.
func AddBias[T Activation](s *Stream, rows, width int, x Array[T], stride int, bias Array[float32]) error {
	if err := firstError(
		atLeast(0, "bias", "rows", rows, "width", width), inRow("bias", "stride", stride, width),
		expect("bias", "x", x.n, strided(rows, stride, width), "bias", bias.n, width),
	); err != nil {
		return err
	}
	return s.run("elementwise", "add_bias_"+typeName[T](), blocksOf(rows*width, 256), x.address, bias.address, rows, width, stride)
}

// Largest queues, for each row of x (rows, width), the index of its largest number. Of several equal ones it takes the lowest index. The
// index is -1 if the largest number is infinite or if any number is NaN.
func Largest(s *Stream, rows, width int, x Array[float32], index Array[int32]) error {
	if err := firstError(
		atLeast(0, "largest", "rows", rows, "width", width), expect("largest", "x", x.n, count(rows, width), "index", index.n, rows),
	); err != nil {
		return err
	}
	return s.run("elementwise", "largest", grid{x: int64(rows), threads: 1024}, x.address, index.address, width)
}

// ColumnSums queues the sums (width) of the columns of x, added in a fixed order. The rows of x are stride elements apart.
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
