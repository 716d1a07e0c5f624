package cuda

import "fmt"

// Step computes one token for each sequence of a batch: what Block computes for a length of 1. It uses few launches, which read each weight
// once for up to eight sequences. T is the type of the weights of the matrix products. Activations are float32. The arrays are those of
// Block.
type Step[T Activation] struct {
	Batch, Model, Channels, State, Width, Rank int
	Eps                                        float32
	Precision                                  Precision // of the matrix products of many sequences

	X                              Array[float32] // (batch, model)
	Norm, Conv, DtBias, ALog, D    Array[float32]
	InProj, XProj, DtProj, OutProj Array[T]
	InBias, ConvBias, OutBias      Array[float32] // optional

	Context Array[float32] // (batch, width-1, channels); absent for a width of 1
	Scan    Array[float32] // (batch, channels, state)
}

// Up to chainMost sequences are computed by a chain, and up to fewSequences by four kernels a block where there is no chain, in groups of up to eight
// after each other. More are computed by products that read a weight once for all of them.
const chainMost, fewSequences = 24, 16

// stepRoom is the shared memory that a kernel can use on every device, in float32.
const stepRoom = 48 << 10 / 4

// StepProductMost is the largest in of StepProduct.
const StepProductMost = stepRoom - 1024

// stepGroup returns the batch group size (1, 4 or 8) of the product kernel for inputs of length in: the smallest that covers batch and
// whose inputs fit into shared memory, or the largest that fits. It returns 0 if none fits.
func stepGroup(batch, in int) int {
	group := 0
	for _, g := range []int{1, 4, 8} {
		if g*in <= stepRoom-1024 && (group == 0 || group < batch) {
			group = g
		}
	}
	return group
}

// columns returns the width of the matrix of r, B and C.
func (s *Step[T]) columns() int { return s.Rank + 2*s.State }

// Fits returns an error that names the first size or option that no kernel supports.
func (s *Step[T]) Fits() error {
	if s == nil {
		return missing("step")
	}
	for _, size := range []struct {
		name    string
		n, most int
	}{{"Model", s.Model, StepProductMost}, {"Channels", s.Channels, StepProductMost}, {"Width", s.Width, maxConvWidth}} {
		if size.n < 1 || size.n > size.most {
			return fmt.Errorf("cuda: step: %s is %d, want 1 to %d", size.name, size.n, size.most)
		}
	}
	if err := s.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: step: %w", err)
	}
	return firstError(atLeast(0, "step", "Batch", s.Batch), atLeast(1, "step", "State", s.State, "Rank", s.Rank), checkEps("step", s.Eps))
}

// StepProduct queues y (batch, out) = weight (out, in) · x (batch, in). Unless norm is absent, x first goes through RMSNorm. Unless bias is
// absent, it is added. So is residual (batch, out), which may be y itself.
func StepProduct[T Activation](s *Stream, batch, in, out int, x, norm Array[float32], eps float32, weight Array[T], bias, residual, y Array[float32]) error {
	if err := atLeast(0, "step", "batch", batch, "in", in, "out", out); err != nil {
		return err
	}
	g := stepGroup(batch, in)
	if g == 0 {
		return fmt.Errorf("cuda: step: in is %d, want at most %d", in, stepRoom-1024)
	}
	if err := firstError(
		expect("step", "x", x.n, count(batch, in), "weight", weight.n, count(out, in), "y", y.n, count(batch, out)),
		optional("step", "norm", norm, in, "bias", bias, out, "residual", residual, count(batch, out)), checkEps("step", eps),
		s.usable(),
	); err != nil {
		return err
	}
	const warps = 8
	each := max(1, out/(warps*8*s.device.multiprocessors)) // rows per warp, enough to be worth the cost of loading x
	where := grid{x: int64((out + warps*each - 1) / (warps * each)), y: int64((batch + g - 1) / g), threads: 32 * warps, shared: 4 * g * in}
	return s.run("step"+typeName[T](), fmt.Sprintf("step_product_%s_%d", typeName[T](), g), where, x.address, norm.address, weight.address, bias.address,
		residual.address, y.address, batch, in, out, eps, each)
}

// Forward queues the step: a chain of one.
func (s *Step[T]) Forward(stream *Stream, y, context, scan Array[float32]) error {
	return StepChain(stream, []*Step[T]{s}, []StepResult{{y, context, scan}})
}

// check returns an error that names the first operand or result that does not fit.
func (s *Step[T]) check(stream *Stream, r StepResult) error {
	if err := s.Fits(); err != nil {
		return err
	}
	inner := count(s.Batch, s.Channels)
	outer, taps, states := count(s.Batch, s.Model), count(inner, s.Width-1), count(inner, s.State)
	return firstError(
		expect("step", "X", s.X.n, outer, "Norm", s.Norm.n, s.Model, "InProj", s.InProj.n, 2*s.Channels*s.Model,
			"Conv", s.Conv.n, s.Channels*s.Width, "XProj", s.XProj.n, count(s.columns(), s.Channels), "DtProj", s.DtProj.n, count(s.Channels, s.Rank),
			"DtBias", s.DtBias.n, s.Channels, "ALog", s.ALog.n, count(s.Channels, s.State), "D", s.D.n, s.Channels,
			"OutProj", s.OutProj.n, s.Model*s.Channels, "Context", s.Context.n, taps, "Scan", s.Scan.n, states,
			"y", r.Y.n, outer, "context", r.Context.n, taps, "scan", r.Scan.n, states),
		optional("step", "InBias", s.InBias, 2*s.Channels, "ConvBias", s.ConvBias, s.Channels, "OutBias", s.OutBias, s.Model),
		stream.usable(),
	)
}

// many queues the step as Block does it, with products on tensor cores in bfloat16 and TF32, and activations of type T. It reads each weight
// once for all sequences.
func (s *Step[T]) many(stream *Stream, r StepResult) error {
	var err error
	var work temporaries
	defer func() { work.free() }()
	inner, columns := s.Batch*s.Channels, s.columns()
	n, vz := take[T](stream, &work, s.Batch*s.Model, &err), take[T](stream, &work, 2*inner, &err)
	u, rbc := take[T](stream, &work, inner, &err), take[T](stream, &work, s.Batch*columns, &err)
	if err != nil {
		return err
	}
	if err := RMSNormForward(stream, s.Batch, s.Model, s.Eps, s.X, s.Norm, n); err != nil {
		return err
	}
	if err := Multiply(stream, s.Precision, s.Batch, s.Model, 2*s.Channels, n, s.InProj, vz, 2*s.Channels); err != nil {
		return err
	}
	if !s.InBias.Absent() {
		if err := AddBias(stream, s.Batch, 2*s.Channels, vz, 2*s.Channels, s.InBias); err != nil {
			return err
		}
	}
	if err := stream.run("step"+typeName[T](), "step_convolve_"+typeName[T](), blocksOf(inner, 256), vz.address, s.Context.address, s.Conv.address,
		s.ConvBias.address, u.address, s.Batch, s.Channels, s.Width); err != nil {
		return err
	}
	if err := Multiply(stream, s.Precision, s.Batch, s.Channels, columns, u, s.XProj, rbc, columns); err != nil {
		return err
	}
	if err := s.scan(stream, "step_scan_many_", vz.address, u.address, rbc.address, u.address, r); err != nil { // y takes the place of u
		return err
	}
	if r.Y.address != s.X.address {
		if err := r.Y.copy(stream, s.X.Slice(0, s.Batch*s.Model)); err != nil {
			return err
		}
	}
	if err := MatMul(stream, s.Precision, s.Batch, s.Model, s.Channels, matrix(u, s.Channels), transposed(s.OutProj, s.Channels), 1, matrix(r.Y, s.Model)); err != nil {
		return err
	}
	if s.OutBias.Absent() {
		return nil
	}
	return AddBias(stream, s.Batch, s.Model, r.Y, s.Model, s.OutBias)
}

// scan queues a kernel that computes Δ, the gated output y, and the next state and context.
func (s *Step[T]) scan(stream *Stream, kernel string, vz, u, rbc, y uintptr, r StepResult) error {
	over := blocksOf(s.Channels*16, 128)
	over.y = int64(s.Batch)
	return stream.run("step"+typeName[T](), kernel+typeName[T](), over, vz, u, rbc, s.DtProj.address, s.DtBias.address, s.ALog.address, s.D.address,
		s.Scan.address, s.Context.address, y, r.Scan.address, r.Context.address, s.Channels, s.State, s.Width, s.Rank)
}

// forward queues the step as four kernels, for few sequences.
func (s *Step[T]) forward(stream *Stream, r StepResult) error {
	columns, inner := s.columns(), s.Batch*s.Channels
	var err error
	var work temporaries
	defer func() { work.free() }()
	vz, u := take[float32](stream, &work, 2*inner, &err), take[float32](stream, &work, inner, &err)
	rbc, gated := take[float32](stream, &work, count(s.Batch, columns), &err), take[float32](stream, &work, inner, &err)
	if err != nil {
		return err
	}
	var none Array[float32]
	if err := StepProduct(stream, s.Batch, s.Model, 2*s.Channels, s.X, s.Norm, s.Eps, s.InProj, s.InBias, none, vz); err != nil {
		return err
	}
	const warps = 8
	g := stepGroup(s.Batch, s.Channels)
	where := grid{x: int64((columns + warps - 1) / warps), y: int64((s.Batch + g - 1) / g), threads: 32 * warps, shared: 4 * g * s.Channels}
	if err := stream.run("step"+typeName[T](), fmt.Sprintf("step_conv_%s_%d", typeName[T](), g), where, vz.address, s.Context.address, s.Conv.address,
		s.ConvBias.address, s.XProj.address, u.address, rbc.address, s.Batch, s.Channels, s.Width, columns); err != nil {
		return err
	}
	if err := s.scan(stream, "step_scan_", vz.address, u.address, rbc.address, gated.address, r); err != nil {
		return err
	}
	return StepProduct(stream, s.Batch, s.Channels, s.Model, gated, none, 0, s.OutProj, s.OutBias, s.X, r.Y)
}
