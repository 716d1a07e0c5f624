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

// In bfloat16, up to fewMost sequences are computed by few and up to rowsMost by rows. Where these do not run, and in float32, up to exactMost
// sequences are computed by a chain. Without it, up to fewSequences of them are computed by four kernels a block, in groups of up to eight. More are
// computed by products that read a weight once for all of them. fewTiles, rowsIn, rowsX and rowsOut are sizes of blocks of threads. All but
// fewSequences are measured on an H200 (docs/cuda.md).
const chainMost, fewSequences, fewMost, rowsMost, fewTiles, rowsIn, rowsX, rowsOut = 8, 16, 16, 128, 6, 8, 1, 4

// exactMost returns how many sequences are computed without rounding their activations to the type of the products. In TF32 the chain is faster
// than cuBLAS for chainMost sequences only, but more of them have been computed in float32 from the beginning, and generation there must not become less exact.
func (s *Step[T]) exactMost() int {
	if size[T]() == 4 && s.Precision != TF32 {
		return chainMost
	}
	return 3 * chainMost
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
	return firstError(
		expect("step", "InProj", s.InProj.n, 2*s.Channels*s.Model, "XProj", s.XProj.n, count(s.columns(), s.Channels), "OutProj", s.OutProj.n, s.Model*s.Channels),
		s.checkOthers(stream, r),
	)
}

// checkOthers is check without InProj, XProj and OutProj.
func (s *Step[T]) checkOthers(stream *Stream, r StepResult) error {
	if err := s.Fits(); err != nil {
		return err
	}
	inner := count(s.Batch, s.Channels)
	outer, taps, states := count(s.Batch, s.Model), count(inner, s.Width-1), count(inner, s.State)
	return firstError(
		expect("step", "X", s.X.n, outer, "Norm", s.Norm.n, s.Model, "Conv", s.Conv.n, s.Channels*s.Width, "DtProj", s.DtProj.n,
			count(s.Channels, s.Rank), "DtBias", s.DtBias.n, s.Channels, "ALog", s.ALog.n, count(s.Channels, s.State), "D", s.D.n, s.Channels,
			"Context", s.Context.n, taps, "Scan", s.Scan.n, states, "y", r.Y.n, outer, "context", r.Context.n, taps, "scan", r.Scan.n, states),
		optional("step", "InBias", s.InBias, 2*s.Channels, "ConvBias", s.ConvBias, s.Channels, "OutBias", s.OutBias, s.Model),
		stream.usable(),
	)
}

// many queues the step as Block does it, with products on tensor cores in bfloat16 and TF32, and activations of type T. It reads each weight
// once for all sequences. Unless it is the first of a chain, its first kernel can begin before the work that was queued before it has ended.
func (s *Step[T]) many(stream *Stream, r StepResult, first bool) error {
	var err error
	var work temporaries
	defer func() { work.free() }()
	inner, columns, few := s.Batch*s.Channels, s.columns(), s.isFew(stream.device)
	n, vz := take[T](stream, &work, s.Batch*s.Model, &err), take[T](stream, &work, 2*inner, &err)
	u, rbc := take[T](stream, &work, inner, &err), take[T](stream, &work, s.Batch*columns, &err)
	if err != nil {
		return err
	}
	if few {
		err = s.normRows(stream, n.address, first)
	} else {
		err = RMSNormForward(stream, s.Batch, s.Model, s.Eps, s.X, s.Norm, n)
	}
	if err != nil {
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
	vector := 1 // channels of a thread
	if s.Channels%4 == 0 && (s.Context.address|r.Context.address)%16 == 0 {
		vector = 4
	}
	if err := stream.run("steprows", fmt.Sprintf("step_convolve_%s_%d", typeName[T](), vector), blocksOf(inner/vector, 256).early(stream), vz.address, s.Context.address,
		s.Conv.address, s.ConvBias.address, u.address, r.Context.address, s.Batch, s.Channels, int32(2*s.Channels), int32(s.Width)); err != nil {
		return err
	}
	if few {
		err = s.columnsOf(stream, s.manyKernels(), u.address, rbc.address)
	} else {
		err = Multiply(stream, s.Precision, s.Batch, s.Channels, columns, u, s.XProj, rbc, columns)
	}
	if err != nil {
		return err
	}
	// y takes the place of u.
	if err := s.scanRows(stream, s.manyKernels(), part(vz, s.Channels).address, u.address, rbc.address, u.address, r.Scan.address, 2*s.Channels); err != nil {
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

// scanRow is the number of channels of a block of threads of stepScanRows.
const scanRow = 64

// fewFits reports whether fewProduct supports a weight (out, in) and vectors x (batch, in).
func fewFits(d *Device, in int, weight Array[BFloat16], x Array[float32]) bool {
	return d.kernels >= 80 && in%8 == 0 && (weight.address|x.address)%16 == 0
}

// early returns the grid for a kernel that can begin before the kernel before it has ended, where the device can do that.
func (g grid) early(s *Stream) grid {
	if s != nil && s.device != nil && s.device.overlaps && s.device.kernels >= 90 { // run says what is wrong with a stream without a device
		g.mode = overlapping
	}
	return g
}

// wait returns the grid for a kernel that begins early, and may write what others read before they wait.
func (g grid) wait(s *Stream) grid {
	if g = g.early(s); g.mode == overlapping {
		g.mode = waiting
	}
	return g
}

// follow returns the grid for a kernel that can begin before the kernel before it has ended, if that one began so too. Such kernels write no weights, which the next kernel reads
// without waiting.
func (g grid) follow(s *Stream) grid {
	if s != nil && s.early {
		return g.early(s)
	}
	return g
}

// fewGrid returns the grid of a kernel of kernels/fewrows.cuh over the tiles of so many rows of a weight. If early is true, the kernel begins before
// the kernel before it has ended.
func fewGrid(s *Stream, early bool, batch, rows, tiles, threads int) grid {
	const tile, sequences = 16, 8
	g := grid{x: int64((rows + tile*tiles - 1) / (tile * tiles)), y: int64((batch + sequences - 1) / sequences), threads: threads}
	if early {
		return g.early(s)
	}
	return g
}

// fewProduct queues y (batch, out) = weight (out, in) · x (batch, in), plus bias and residual unless they are absent, in tensor cores.
func fewProduct(s *Stream, early bool, batch, in, out int, x Array[float32], weight Array[BFloat16], bias, residual, y Array[float32]) error {
	ahead, tiles := 6, 1 // runs that a warp reads ahead, and tiles of a block
	if out > 64*s.device.multiprocessors {
		ahead, tiles = 3, fewTiles
	}
	return s.run("fewmma", fmt.Sprintf("few_product_%d", ahead), fewGrid(s, early, batch, out, tiles, 256), x.address, weight.address, bias.address,
		residual.address, y.address, int32(batch), int32(in), int32(out), int32(tiles))
}

// isFew reports whether few supports the step.
func (s *Step[T]) isFew(d *Device) bool {
	in, half := any(s.InProj).(Array[BFloat16])
	if !half {
		return false
	}
	x, out := any(s.XProj).(Array[BFloat16]), any(s.OutProj).(Array[BFloat16])
	return s.fewShared() <= d.shared && fewFits(d, s.Model, in, s.X) && fewFits(d, s.Channels, x, s.Norm) && fewFits(d, s.Channels, out, s.Norm)
}

// fewWidth returns the columns of XProj in whole tiles of the kernels, and fewShared the bytes of shared memory of few_scan.
func (s *Step[T]) fewWidth() int  { return (s.columns() + 15) / 16 * 16 }
func (s *Step[T]) fewShared() int { return 4 * s.fewWidth() * (max(1, 1024/s.fewWidth()) + 1) }

// few queues the step as three kernels with products of bfloat16 in tensor cores (kernels/fewrows.cuh). Unless it is the first of a chain, its
// first kernel begins before the work that was queued before it has ended.
func (s *Step[T]) few(stream *Stream, r StepResult, first bool) error {
	return s.inThree(stream, r, first, threeKernels{"fewmma", "few_in", "few_scan", s.InProj.address, s.XProj.address}, func(gated Array[float32]) error {
		return fewProduct(stream, true, s.Batch, s.Channels, s.Model, gated, any(s.OutProj).(Array[BFloat16]), s.OutBias, s.X, r.Y)
	})
}

// threeKernels is what differs between the steps of kernels/fewrows.cuh and of kernels/weightrows.cuh: kernels, and addresses of weights.
type threeKernels struct {
	module, in, scan string
	inProj, xProj    uintptr
}

// inThree queues the step as two kernels, and out for its last product.
func (s *Step[T]) inThree(stream *Stream, r StepResult, first bool, k threeKernels, out func(gated Array[float32]) error) error {
	var err error
	var work temporaries
	defer func() { work.free() }()
	inner, width := s.Batch*s.Channels, s.fewWidth()
	in := fewGrid(stream, !first, s.Batch, s.Channels, 1, 256)
	u, z := take[float32](stream, &work, inner, &err), take[float32](stream, &work, inner, &err)
	parts, gated := take[float32](stream, &work, s.Batch*int(in.x)*width, &err), take[float32](stream, &work, inner, &err)
	if err != nil {
		return err
	}
	if err := stream.run(k.module, k.in, in, s.X.address, s.Norm.address, k.inProj, s.InBias.address,
		s.Context.address, s.Conv.address, s.ConvBias.address, k.xProj, u.address, z.address, parts.address, r.Context.address, int32(s.Batch),
		int32(s.Model), int32(s.Channels), int32(s.Width), int32(s.columns()), s.Eps); err != nil {
		return err
	}
	g := fewGrid(stream, true, 0, 0, 1, 4*scanRow)
	g.x, g.y, g.shared = int64((s.Channels+scanRow-1)/scanRow), int64(s.Batch), s.fewShared()
	if err := stream.run(k.module, k.scan, g, z.address, u.address, parts.address, s.DtProj.address, s.DtBias.address, s.ALog.address, s.D.address,
		s.Scan.address, gated.address, r.Scan.address, s.Batch, s.Channels, int32(s.Channels), int32(s.State), int32(s.Rank), int32(1), int32(in.x)); err != nil {
		return err
	}
	return out(gated)
}

// rows queues the step as five kernels with products of bfloat16 in tensor cores (kernels/manyrows.cuh), and activations of bfloat16, for many
// sequences. isFew must be true.
func (s *Step[T]) rows(stream *Stream, r StepResult, first bool) error {
	return s.inFive(stream, r, first, s.manyKernels())
}

func (s *Step[T]) manyKernels() fiveKernels {
	return fiveKernels{"manymma", "many_", "steprows", typeName[T](), s.InProj.address, s.XProj.address, s.OutProj.address}
}

// fiveKernels is what differs between the steps of kernels/manyrows.cuh by the type of weights: files and names of kernels, and addresses of weights.
type fiveKernels struct {
	products, prefix       string
	scans, activations     string
	inProj, xProj, outProj uintptr
}

func (s *Step[T]) inFive(stream *Stream, r StepResult, first bool, k fiveKernels) error {
	var err error
	var work temporaries
	defer func() { work.free() }()
	inner, columns := s.Batch*s.Channels, s.columns()
	n, u := take[BFloat16](stream, &work, s.Batch*s.Model, &err), take[BFloat16](stream, &work, inner, &err)
	z, gated := take[BFloat16](stream, &work, inner, &err), take[BFloat16](stream, &work, inner, &err)
	rbc := take[BFloat16](stream, &work, s.Batch*columns, &err)
	if err != nil {
		return err
	}
	if err := s.normRows(stream, n.address, first); err != nil {
		return err
	}
	if err := stream.run(k.products, fmt.Sprintf("%sin_%d", k.prefix, rowsIn), rowsGrid(stream, true, s.Batch, s.Channels, rowsIn), n.address, k.inProj, s.InBias.address, s.Context.address,
		s.Conv.address, s.ConvBias.address, u.address, z.address, r.Context.address, int32(s.Batch), int32(s.Model), int32(s.Channels), int32(s.Width)); err != nil {
		return err
	}
	if err := s.columnsOf(stream, k, u.address, rbc.address); err != nil {
		return err
	}
	if err := s.scanRows(stream, k, z.address, u.address, rbc.address, gated.address, r.Scan.address, s.Channels); err != nil {
		return err
	}
	return stream.run(k.products, fmt.Sprintf("%sproduct_float_%d", k.prefix, rowsOut), rowsGrid(stream, true, s.Batch, s.Model, rowsOut), gated.address, k.outProj, s.OutBias.address,
		s.X.address, r.Y.address, int32(s.Batch), int32(s.Channels), int32(s.Model))
}

// rowsGrid returns the grid of a product of kernels/manyrows.cuh over rows of a weight, with groups of eight sequences in a block of threads.
func rowsGrid(s *Stream, early bool, batch, rows, groups int) grid {
	g := fewGrid(s, early, batch, rows, 1, 256)
	g.y = (g.y + int64(groups) - 1) / int64(groups)
	return g
}

// normRows queues the norm of X in bfloat16. Unless it is the first of a chain, the kernel begins early. isFew must be true, here and in columnsOf.
func (s *Step[T]) normRows(stream *Stream, n uintptr, first bool) error {
	const warps = 4
	g := fewGrid(stream, !first, 0, 0, 1, 32*warps)
	g.x = int64((s.Batch + warps - 1) / warps)
	return stream.run("manymma", "many_norm", g, s.X.address, s.Norm.address, n, int32(s.Batch), int32(s.Model), s.Eps)
}

// columnsOf queues r, B and C = x_proj · u in bfloat16.
func (s *Step[T]) columnsOf(stream *Stream, k fiveKernels, u, rbc uintptr) error {
	return stream.run(k.products, fmt.Sprintf("%sproduct_bf16_%d", k.prefix, rowsX), rowsGrid(stream, true, s.Batch, s.columns(), rowsX), u, k.xProj, uintptr(0), uintptr(0), rbc,
		int32(s.Batch), int32(s.Channels), int32(s.columns()))
}

// scanRows queues the kernel of many sequences that computes Δ, the gated output y and the next states. The rows of z are stride elements apart.
func (s *Step[T]) scanRows(stream *Stream, k fiveKernels, z, u, rbc, y, next uintptr, stride int) error {
	d, across, most := stream.device, (s.Channels+scanRow-1)/scanRow, stepRoom/s.columns()
	kernel, each := "step_scan_rows_", max(1, min(s.Batch*across/(4*d.multiprocessors), 8, most)) // each: sequences that a thread computes one after the other
	if s.Rank%4 == 0 && s.State%4 == 0 && s.State <= 16 && most >= 4 && (s.DtProj.address|s.Scan.address|next)%16 == 0 {
		blocks := 3 * d.multiprocessors // as many run at the same time
		kernel, each = "step_scan_four_", min((s.Batch*across+4*blocks-1)/(4*blocks)*4, 16, most/4*4)
	}
	g := grid{x: int64(across), y: int64((s.Batch + each - 1) / each), threads: 4 * scanRow, shared: 4 * each * s.columns()}.early(stream)
	return stream.run(k.scans, kernel+k.activations, g, z, u, rbc, s.DtProj.address, s.DtBias.address, s.ALog.address, s.D.address, s.Scan.address, y, next,
		s.Batch, s.Channels, int32(stride), int32(s.State), int32(s.Rank), int32(each))
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
