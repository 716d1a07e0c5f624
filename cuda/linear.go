package cuda

import "fmt"

// Linear is y = x·Weightᵀ + Bias, for Rows vectors x. Activations are float32. With BF16 the products have operands of bfloat16.
type Linear struct {
	Rows, In, Out int
	Precision     Precision // of the products

	X      Array[float32]  // (rows, in)
	Weight Array[float32]  // (out, in)
	Half   Array[BFloat16] // optional: Weight in bfloat16; BF16 reads it instead of converting Weight
	Bias   Array[float32]  // optional: (out)

	Narrow *Weights // optional: (out, in), instead of Weight and Half; there is no Backward then
}

// fewHead is the number of rows up to which Forward uses fewProduct, which reads the weight once for eight rows and is near the memory's speed.
const fewHead = 8

// Results of bfloat16 whose rows are no multiple of 16 bytes, of up to mostPadded rows of at least leastPadded numbers, are computed in rows that are, and then
// copied. cuBLAS computes 256 rows of 50277 logits in 40 instead of 166 µs so, and the copy takes about 25.
const mostPadded, leastPadded = 1024, 4096

// fewRows is the number of rows up to which Forward uses StepProduct, which reads the weight once for eight rows.
const fewRows = 32

func (l *Linear) check() error {
	if l == nil {
		return missing("linear")
	}
	if err := l.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: linear: %w", err)
	}
	if err := firstError(atLeast(0, "linear", "Rows", l.Rows), atLeast(1, "linear", "In", l.In, "Out", l.Out)); err != nil {
		return err
	}
	weight := expect("linear", "Weight", l.Weight.n, count(l.Out, l.In))
	if l.Narrow != nil {
		weight = l.Narrow.check("linear", l.Out, l.In)
	}
	return firstError(
		expect("linear", "X", l.X.n, count(l.Rows, l.In)), weight,
		optional("linear", "Half", l.Half, count(l.Out, l.In), "Bias", l.Bias, l.Out),
	)
}

// Forward queues y (rows, out). It can be captured.
func (l *Linear) Forward(s *Stream, y Array[float32]) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := firstError(expect("linear", "y", y.n, count(l.Rows, l.Out)), s.usable()); err != nil {
		return err
	}
	if n := l.Narrow; n != nil && l.Rows <= weightsMost && n.few(s.device, l.X) {
		return n.product(s, l.Precision, false, l.Rows, l.X, l.Bias, Array[float32]{}, y)
	}
	if l.Narrow != nil && l.Narrow.rounds(s.device) {
		rounded := *l
		rounded.Precision = BF16
		l = &rounded
	}
	if l.Precision == BF16 {
		return linearForward[BFloat16](l, s, y)
	}
	return linearForward[float32](l, s, y)
}

func linearForward[T Activation](l *Linear, s *Stream, y Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	weight := weightAs[T](l, s, &work, &err)
	if err != nil {
		return err
	}
	if half, ok := any(weight).(Array[BFloat16]); ok && l.Rows <= fewHead && fewFits(s.device, l.In, half, l.X) {
		return fewProduct(s, s.early, l.Rows, l.In, l.Out, l.X, half, l.Bias, Array[float32]{}, y)
	}
	wide := (l.Out + 7) / 8 * 8
	pads := wide > l.Out && size[T]() == 2 && l.Rows <= mostPadded && l.Out >= leastPadded
	if l.Rows <= fewRows && stepGroup(l.Rows, l.In) > 0 && !pads {
		return StepProduct(s, l.Rows, l.In, l.Out, l.X, Array[float32]{}, 0, weight, l.Bias, Array[float32]{}, y)
	}
	x := as[T](s, &work, l.X.Slice(0, l.Rows*l.In), &err)
	if err != nil {
		return err
	}
	if pads {
		padded := take[float32](s, &work, l.Rows*wide, &err)
		if err != nil {
			return err
		}
		if err := Multiply(s, l.Precision, l.Rows, l.In, l.Out, x, weight, padded, wide); err != nil {
			return err
		}
		g := grid{x: int64((l.Out + 1023) / 1024), y: int64(l.Rows), threads: 256}
		if err := s.run("elementwise", "copy_rows", g, padded.address, y.address, wide, l.Out); err != nil {
			return err
		}
	} else if err := Multiply(s, l.Precision, l.Rows, l.In, l.Out, x, weight, y, l.Out); err != nil {
		return err
	}
	if l.Bias.Absent() {
		return nil
	}
	return AddBias(s, l.Rows, l.Out, y, l.Out, l.Bias)
}

// weightAs returns the weight in the type of the products' operands.
func weightAs[T Activation](l *Linear, s *Stream, work *temporaries, err *error) Array[T] {
	if l.Narrow != nil {
		return widened[T](s, work, l.Narrow, err)
	}
	if half, ok := any(l.Half).(Array[T]); ok && !half.Absent() {
		return half
	}
	return as[T](s, work, l.Weight, err)
}

// Backward queues the gradients dx (rows, in), dweight (out, in) and dbias (out), from the gradient dy of y. It leaves out those that are
// absent. Sums are added in a fixed order.
func (l *Linear) Backward(s *Stream, dy, dx, dweight, dbias Array[float32]) error {
	if err := l.check(); err != nil {
		return err
	}
	if l.Narrow != nil {
		return l.Narrow.noGradient("linear")
	}
	if err := firstError(
		expect("linear", "dy", dy.n, count(l.Rows, l.Out)),
		optional("linear", "dx", dx, l.Rows*l.In, "dweight", dweight, l.Out*l.In, "dbias", dbias, l.Out), s.usable(),
	); err != nil {
		return err
	}
	if !dbias.Absent() {
		if err := ColumnSums(s, l.Rows, l.Out, dy, l.Out, dbias); err != nil {
			return err
		}
	}
	if l.Rows == 0 {
		return dweight.Fill(s, 0)
	}
	if l.Precision == BF16 {
		return linearBackward[BFloat16](l, s, dy, dx, dweight)
	}
	return linearBackward[float32](l, s, dy, dx, dweight)
}

func linearBackward[T Activation](l *Linear, s *Stream, dy, dx, dweight Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	x, d := as[T](s, &work, l.X.Slice(0, l.Rows*l.In), &err), as[T](s, &work, dy.Slice(0, l.Rows*l.Out), &err)
	var weight Array[T]
	if !dx.Absent() {
		weight = weightAs[T](l, s, &work, &err)
	}
	if err != nil {
		return err
	}
	return MultiplyBackward(s, l.Precision, l.Rows, l.In, l.Out, x, weight, d, l.Out, dx, dweight)
}

// Multiply queues y (rows, out) = x (rows, in) · weightᵀ, with weight (out, in). The rows of y are stride elements apart.
//
// It divides the columns of y into two parts, the first a multiple of eight. Without this cuBLAS uses kernels that have a third to an eighth of
// the speed of those for multiples of eight.
func Multiply[T, C Activation](s *Stream, p Precision, rows, in, out int, x, weight Array[T], y Array[C], stride int) error {
	if err := firstError(
		atLeast(0, "product", "rows", rows, "out", out), atLeast(1, "product", "in", in), inRow("product", "stride", stride, out),
	); err != nil {
		return err
	}
	if err := expect("product", "x", x.n, count(rows, in), "weight", weight.n, count(out, in), "y", y.n, strided(rows, stride, out)); err != nil {
		return err
	}
	if rows*out == 0 {
		return s.usable()
	}
	for _, columns := range halves(out) {
		from, n := columns[0], columns[1]-columns[0]
		if err := MatMul(s, p, rows, n, in, matrix(x, in), transposed(part(weight, from*in), in), 0, matrix(part(y, from), stride)); err != nil {
			return err
		}
	}
	return nil
}

// halves returns the bounds of the first columns, a multiple of eight, and of the others.
func halves(columns int) (bounds [][2]int) {
	whole := columns / 8 * 8
	if whole > 0 {
		bounds = append(bounds, [2]int{0, whole})
	}
	if whole < columns {
		bounds = append(bounds, [2]int{whole, columns})
	}
	return bounds
}

// MultiplyBackward queues the gradients dx (rows, in) and dweight (out, in) of Multiply's operands, from dy, whose rows are stride elements
// apart. It leaves out a gradient that is absent.
//
// It divides the columns of dy as Multiply divides those of y. Without this cuBLAS does not use tensor cores along the rows of dy, and its
// other kernels have a fifth of their speed.
func MultiplyBackward[T Activation](s *Stream, p Precision, rows, in, out int, x, weight, dy Array[T], stride int, dx, dweight Array[float32]) error {
	return multiplyBackward(s, p, rows, in, out, x, weight, dy, stride, dx, dweight, 0)
}

// In float32, sums over at least leastRowChunked numbers are computed for rowChunk rows at a time: cuBLAS computes 8192 × 768 × 50272 in 12.9 ms, and twice 4096 × 768 ×
// 50272 in 11.9. With 1,024 columns both take the same. On compute capability 9.0 the kernels of wide.go compute these products; they have the same rows at a time, and were not measured
// with more.
const leastRowChunked, rowChunk = 1 << 14, 4096

// multiplyBackward is MultiplyBackward that adds dweight to beta times what it was.
func multiplyBackward[T Activation](s *Stream, p Precision, rows, in, out int, x, weight, dy Array[T], stride int, dx, dweight Array[float32], beta float32) error {
	if err := firstError(
		atLeast(1, "product", "rows", rows, "in", in, "out", out), inRow("product", "stride", stride, out),
	); err != nil {
		return err
	}
	if err := expect("product", "dy", dy.n, strided(rows, stride, out)); err != nil {
		return err
	}
	if !dx.Absent() {
		if err := expect("product", "weight", weight.n, count(out, in), "dx", dx.n, count(rows, in)); err != nil {
			return err
		}
	}
	if !dweight.Absent() {
		if err := expect("product", "x", x.n, count(rows, in), "dweight", dweight.n, count(out, in)); err != nil {
			return err
		}
	}
	for _, columns := range halves(out) {
		from, n := columns[0], columns[1]-columns[0]
		d := matrix(part(dy, from), stride)
		if !dx.Absent() {
			chunk := rows
			if p == Strict && size[T]() == 4 && n >= leastRowChunked {
				chunk = rowChunk
			}
			for row := 0; row < rows; row += chunk {
				if err := MatMul(s, p, min(chunk, rows-row), in, n, matrix(part(dy, from+row*stride), stride), matrix(part(weight, from*in), in), float32(min(from, 1)),
					matrix(part(dx, row*in), in)); err != nil {
					return err
				}
			}
		}
		if !dweight.Absent() {
			d.Transposed = true
			if err := MatMul(s, p, n, in, rows, d, matrix(x, in), beta, matrix(part(dweight, from*in), in)); err != nil {
				return err
			}
		}
	}
	return nil
}
