package cuda

import "fmt"

// Add queues sum = a + b. sum may be a or b.
func Add(s *Stream, a, b, sum Array[float32]) error {
	if err := firstError(present("add", "a", a), expect("add", "b", b.n, a.n, "sum", sum.n, a.n)); err != nil {
		return err
	}
	return s.run("elementwise", "add", blocksOf((a.n+3)/4, 256), a.address, b.address, sum.address, a.n)
}

// AddRows queues sum = a + b, where b is added to each row of as many elements as b has. sum may be a.
func AddRows(s *Stream, a, b, sum Array[float32]) error {
	if err := firstError(present("add rows", "a", a), expect("add rows", "b", b.n, 1, "sum", sum.n, a.n)); err != nil {
		return err
	}
	if a.n%b.n != 0 {
		return fmt.Errorf("cuda: add rows: a has %d elements, want a multiple of the %d of b", a.n, b.n)
	}
	if a.n == b.n {
		return Add(s, a, b, sum)
	}
	return s.run("elementwise", "add_rows", blocksOf((a.n+3)/4, 256), a.address, b.address, sum.address, a.n, b.n)
}

// Average queues average = keep·average + by·x, element by element.
func Average(s *Stream, keep, by float32, x, average Array[float32]) error {
	if err := firstError(present("average", "x", x), expect("average", "average", average.n, x.n)); err != nil {
		return err
	}
	return s.run("elementwise", "average", blocksOf(x.n, 256), x.address, average.address, x.n, keep, by)
}

// Set queues setting every element of x to v.
func Set(s *Stream, x Array[float32], v float32) error {
	if err := present("set", "x", x); err != nil {
		return err
	}
	return s.run("elementwise", "set", blocksOf(x.n, 256).wait(s), x.address, x.n, v)
}

// NegExp queues y = -exp(x), element by element.
func NegExp(s *Stream, x, y Array[float32]) error {
	if err := firstError(present("negative exponential", "x", x), expect("negative exponential", "y", y.n, x.n)); err != nil {
		return err
	}
	return s.run("elementwise", "neg_exp", blocksOf(x.n, 256), x.address, y.address, x.n)
}

// NegExpBackward queues dx = -exp(x)·dy, the gradient of NegExp's operand.
func NegExpBackward(s *Stream, x, dy, dx Array[float32]) error {
	if err := firstError(
		present("negative exponential", "x", x), expect("negative exponential", "dy", dy.n, x.n, "dx", dx.n, x.n),
	); err != nil {
		return err
	}
	return s.run("elementwise", "neg_exp_backward", blocksOf(x.n, 256), x.address, dy.address, dx.address, x.n)
}

// CopyColumns queues a copy of the columns [from, from+width) of x (rows, stride) to y (rows, width).
func CopyColumns(s *Stream, rows, stride, from, width int, x, y Array[float32]) error {
	if err := checkColumns(rows, stride, from, width, x, y); err != nil {
		return err
	}
	return s.run("elementwise", "copy_columns", blocksOf(rows*width, 256), x.address, y.address, rows, stride, from, width)
}

// ScatterColumns queues a copy of y (rows, width) to the columns [from, from+width) of x (rows, stride). It sets the other columns to zero.
func ScatterColumns(s *Stream, rows, stride, from, width int, y, x Array[float32]) error {
	if err := checkColumns(rows, stride, from, width, x, y); err != nil {
		return err
	}
	return s.run("elementwise", "scatter_columns", blocksOf(rows*stride, 256), y.address, x.address, rows, stride, from, width)
}

func checkColumns(rows, stride, from, width int, x, y Array[float32]) error {
	if err := atLeast(0, "columns", "rows", rows, "stride", stride, "from", from, "width", width); err != nil {
		return err
	}
	if from > stride || width > stride-from {
		return fmt.Errorf("cuda: columns: from is %d and width %d, want columns of the %d of a row", from, width, stride)
	}
	return expect("columns", "x", x.n, count(rows, stride), "y", y.n, count(rows, width))
}

// Convert queues a copy of from into to, converted to to's type: rounded to bfloat16, or widened to float32.
func Convert[A, B Activation](s *Stream, from Array[A], to Array[B]) error {
	if err := firstError(present("convert", "from", from), expect("convert", "to", to.n, from.n)); err != nil {
		return err
	}
	a, b := typeName[A](), typeName[B]()
	if a == b {
		return Array[A](to).copy(s, from)
	}
	return s.run("elementwise", "convert_"+a+"_"+b, blocksOf((from.n+3)/4, 256), from.address, to.address, from.n)
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
		atLeast(0, "largest", "rows", rows, "width", width), expect("largest", "x", x.n, count(rows, width), "index", index.n, rows), s.usable(),
	); err != nil {
		return err
	}
	const least = 2048                                                      // numbers of a part
	count := min(max(1, width/least), 1+2*s.multiprocessors()/max(1, rows)) // parts of a row
	parts, err := NewArray[float32](s, 2*rows*count)
	if err != nil || rows == 0 {
		return err
	}
	defer parts.Free()
	each := (width + count - 1) / count
	if err := s.run("elementwise", "largest_parts", grid{x: int64(rows), y: int64(count), threads: 256}.follow(s), x.address, parts.address, width, each); err != nil {
		return err
	}
	return s.run("elementwise", "largest", grid{x: int64(rows), threads: 32}.follow(s), parts.address, index.address, count)
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
	g := blocksOf(width, 64)
	g.y = int64(count)
	if count > 0 {
		if err := s.run("elementwise", "column_sums_"+typeName[T](), g, x.address, parts.address, rows, width, stride, each); err != nil {
			parts.Free()
			return err
		}
	}
	return s.sum(nil, []partSum{sumOf(sums.Slice(0, width), parts, count)}, parts)
}
