package cuda

import "fmt"

// Step computes one token for each sequence of a batch: what Block computes for a length of 1. It uses few launches, which read each weight
// once for up to eight sequences. T is the type of the weights of the matrix products. Activations are float32. The arrays are those of
// Block.
type Step[T Activation] struct {
	Batch, Model, Channels, State, Width, Rank int
	Eps                                        float32

	X                              Array[float32] // (batch, model)
	Norm, Conv, DtBias, ALog, D    Array[float32]
	InProj, XProj, DtProj, OutProj Array[T]
	InBias, ConvBias, OutBias      Array[float32] // optional

	Context Array[float32] // (batch, width-1, channels); absent for a width of 1
	Scan    Array[float32] // (batch, channels, state)
}

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

// Forward queues the step. It computes y (batch, model), and the context and scan after the step, with the shapes of Context and Scan. Each of
// the three may be the array that it follows: X, Context and Scan.
func (s *Step[T]) Forward(stream *Stream, y, context, scan Array[float32]) error {
	if err := s.Fits(); err != nil {
		return err
	}
	columns := s.columns()
	inner := count(s.Batch, s.Channels)
	outer, taps, states := count(s.Batch, s.Model), count(inner, s.Width-1), count(inner, s.State)
	if err := firstError(
		expect("step", "X", s.X.n, outer, "Norm", s.Norm.n, s.Model, "InProj", s.InProj.n, 2*s.Channels*s.Model,
			"Conv", s.Conv.n, s.Channels*s.Width, "XProj", s.XProj.n, count(columns, s.Channels), "DtProj", s.DtProj.n, count(s.Channels, s.Rank),
			"DtBias", s.DtBias.n, s.Channels, "ALog", s.ALog.n, count(s.Channels, s.State), "D", s.D.n, s.Channels,
			"OutProj", s.OutProj.n, s.Model*s.Channels, "Context", s.Context.n, taps, "Scan", s.Scan.n, states,
			"y", y.n, outer, "context", context.n, taps, "scan", scan.n, states),
		optional("step", "InBias", s.InBias, 2*s.Channels, "ConvBias", s.ConvBias, s.Channels, "OutBias", s.OutBias, s.Model),
		stream.usable(),
	); err != nil {
		return err
	}
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
	over := blocksOf(s.Channels*16, 128)
	over.y = int64(s.Batch)
	if err := stream.run("step"+typeName[T](), "step_scan_"+typeName[T](), over, vz.address, u.address, rbc.address, s.DtProj.address,
		s.DtBias.address, s.ALog.address, s.D.address, s.Scan.address, s.Context.address, gated.address, scan.address, context.address,
		s.Channels, s.State, s.Width, s.Rank); err != nil {
		return err
	}
	return StepProduct(stream, s.Batch, s.Channels, s.Model, gated, none, 0, s.OutProj, s.OutBias, s.X, y)
}
