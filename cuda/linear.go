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
}

// fewRows is the number of rows up to which Forward uses StepProduct, which reads the weight once.
const fewRows = 8

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
	return firstError(
		expect("linear", "X", l.X.n, count(l.Rows, l.In), "Weight", l.Weight.n, count(l.Out, l.In)),
		optional("linear", "Half", l.Half, count(l.Out, l.In), "Bias", l.Bias, l.Out),
	)
}

// Forward queues y (rows, out). With up to eight rows it can be captured.
func (l *Linear) Forward(s *Stream, y Array[float32]) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := firstError(expect("linear", "y", y.n, count(l.Rows, l.Out)), s.usable()); err != nil {
		return err
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
	if l.Rows <= fewRows && stepGroup(l.Rows, l.In) > 0 {
		return StepProduct(s, l.Rows, l.In, l.Out, l.X, Array[float32]{}, 0, weight, l.Bias, Array[float32]{}, y)
	}
	x := as[T](s, &work, l.X.Slice(0, l.Rows*l.In), &err)
	if err != nil {
		return err
	}
	if err := MatMul(s, l.Precision, l.Rows, l.Out, l.In, matrix(x, l.In), transposed(weight, l.In), 0, matrix(y, l.Out)); err != nil || l.Bias.Absent() {
		return err
	}
	return AddBias(s, l.Rows, l.Out, y, l.Out, l.Bias)
}

// weightAs returns the weight in the type of the products' operands.
func weightAs[T Activation](l *Linear, s *Stream, work *temporaries, err *error) Array[T] {
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

// linearBackward divides the outputs into two parts, the first a multiple of eight. Without this cuBLAS does not use tensor cores along the
// rows of dy, and its other kernels have a fifth of their speed.
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
	whole := l.Out / 8 * 8
	for _, p := range [][2]int{{0, whole}, {whole, l.Out}} {
		from, n := p[0], p[1]-p[0]
		if n == 0 {
			continue
		}
		beta := min(float32(from), 1)
		d := matrix(part(d, from), l.Out)
		if !dx.Absent() {
			if err := MatMul(s, l.Precision, l.Rows, l.In, n, d, matrix(part(weight, from*l.In), l.In), beta, matrix(dx, l.In)); err != nil {
				return err
			}
		}
		if !dweight.Absent() {
			d.Transposed = true
			if err := MatMul(s, l.Precision, n, l.In, l.Rows, d, matrix(x, l.In), 0, matrix(part(dweight, from*l.In), l.In)); err != nil {
				return err
			}
		}
	}
	return nil
}
