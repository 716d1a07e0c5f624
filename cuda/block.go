package cuda

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Block is one Mamba block on the device, with activations of type T. internal/kernel.Block computes the same on the host:
//
//	n       = norm(x)
//	v, z    = n·InProjᵀ + InBias           one matrix (rows, 2·channels)
//	u       = silu(conv(v))
//	r, B, C = u·XProjᵀ                     one matrix (rows, rank + 2·state)
//	Δ       = r·DtProjᵀ
//	s       = scan(u, Δ, A, B, C, D, z)    A = -exp(ALog), Δ through softplus with DtBias
//	y       = x + s·OutProjᵀ + OutBias
//
// The parts of a matrix are read in place, and their gradients are written in place. Absent operands are zero Arrays. With activations
// of bfloat16, the residual stream x and y, states, sums and gradients of weights are still float32.
type Block[T Activation] struct {
	Batch, Length                       int
	Model, Channels, State, Width, Rank int
	Eps                                 float32
	Precision                           Precision // of the matrix products

	X       Array[float32] // (batch, length, model)
	Norm    Array[float32] // (model)
	InProj  Array[T]       // (2·channels, model)
	Conv    Array[float32] // (channels, width)
	XProj   Array[T]       // (rank + 2·state, channels)
	DtProj  Array[T]       // (channels, rank)
	DtBias  Array[float32] // (channels)
	ALog    Array[float32] // (channels, state)
	D       Array[float32] // (channels)
	OutProj Array[T]       // (model, channels)

	InBias   Array[float32] // optional: (2·channels)
	ConvBias Array[float32] // optional: (channels)
	OutBias  Array[float32] // optional: (model)
	Context  Array[float32] // optional: (batch, width-1, channels): what the convolution reads before the first step
	Initial  Array[float32] // optional: (batch, channels, state): the state before the first step
	Start    Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0

	InNarrow, XNarrow, OutNarrow *Weights // optional: instead of InProj, XProj and OutProj; there is no Backward then
}

// BlockKept holds the values of a Block's forward pass that its backward pass needs. Free it once.
type BlockKept[T Activation] struct {
	vz, u, rbc, delta, y Array[T]
	checkpoints          Array[float32]
	scales               Array[float32] // (batch, length), or absent: what the norm multiplies its rows by
}

// Free frees the arrays.
func (k *BlockKept[T]) Free() {
	each, floats := k.arrays()
	for _, a := range each {
		a.Free()
	}
	for _, a := range floats {
		a.Free()
	}
	*k = BlockKept[T]{}
}

// arrays returns the arrays in the order in which Forward allocates them.
func (k *BlockKept[T]) arrays() (each []*Array[T], floats []*Array[float32]) {
	return []*Array[T]{&k.vz, &k.u, &k.rbc, &k.delta, &k.y}, []*Array[float32]{&k.checkpoints, &k.scales}
}

// Memory returns the addresses of the arrays.
func (k *BlockKept[T]) Memory() (all []uintptr) {
	if k == nil {
		return nil
	}
	each, floats := k.arrays()
	for _, a := range each {
		all = append(all, a.address)
	}
	for _, a := range floats {
		all = append(all, a.address)
	}
	return all
}

// Again returns arrays of the same sizes, which it allocates in the order in which Forward does. k may have been copied and freed.
func (k *BlockKept[T]) Again(s *Stream) (*BlockKept[T], error) {
	if k == nil {
		return nil, missing("kept values of a block")
	}
	var work temporaries
	err := s.usable()
	again := *k
	each, floats := again.arrays()
	for _, a := range each {
		if !a.Absent() {
			*a = take[T](s, &work, a.n, &err)
		}
	}
	for _, a := range floats {
		if !a.Absent() {
			*a = take[float32](s, &work, a.n, &err)
		}
	}
	if err != nil {
		work.free()
		return nil, err
	}
	return &again, nil
}

// BlockGrad receives the gradients of a Block's operands, in their shapes. Those of absent operands are absent.
type BlockGrad struct {
	X, Norm, InProj, Conv, XProj, DtProj, DtBias, ALog, D, OutProj Array[float32]
	InBias, ConvBias, OutBias, Context, Initial                    Array[float32]
}

// temporaries is a list of arrays that a function frees together.
type temporaries []interface{ Free() }

func (t *temporaries) free() {
	for _, a := range *t {
		a.Free()
	}
}

// take allocates n elements and appends them to t. It does nothing if *err is set, and sets it if it fails.
func take[T Element](s *Stream, t *temporaries, n int, err *error) Array[T] {
	if *err != nil {
		return Array[T]{}
	}
	a, wrong := NewArray[T](s, n)
	if wrong != nil {
		*err = wrong
		return a
	}
	*t = append(*t, a)
	return a
}

// as returns a as activations of type T: a itself, or a copy in bfloat16.
func as[T Activation](s *Stream, t *temporaries, a Array[float32], err *error) Array[T] {
	if same, ok := any(a).(Array[T]); ok {
		return same
	}
	c := take[T](s, t, a.Len(), err)
	if *err == nil {
		*err = Convert(s, a, c)
	}
	return c
}

func (b *Block[T]) rows() int { return b.Batch * b.Length }

// columns returns the width of the matrix of r, B and C.
func (b *Block[T]) columns() int { return b.Rank + 2*b.State }

// Fits returns an error that names the first size or option that no kernel supports.
func (b *Block[T]) Fits() error {
	if b == nil {
		return missing("block")
	}
	state, states := "State", MaxState
	if typeName[T]() == "bf16" {
		state, states = "State in bfloat16", maxStateBF16
	}
	for _, size := range []struct {
		name           string
		n, least, most int
	}{
		{"Batch", b.Batch, 0, math.MaxInt}, {"Length", b.Length, 0, math.MaxInt}, {"Model", b.Model, 1, math.MaxInt},
		{"Channels", b.Channels, 1, math.MaxInt}, {state, b.State, 1, states}, {"Width", b.Width, 1, maxConvWidth},
		{"Rank", b.Rank, 1, math.MaxInt},
	} {
		switch {
		case size.n < size.least:
			return fmt.Errorf("cuda: block: %s is %d, want at least %d", size.name, size.n, size.least)
		case size.n > size.most:
			return fmt.Errorf("cuda: block: %s is %d, want at most %d", size.name, size.n, size.most)
		}
	}
	if err := b.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: block: %w", err)
	}
	return checkEps("block", b.Eps)
}

// check returns an error that names the first size or operand that does not fit.
func (b *Block[T]) check() error {
	if err := b.Fits(); err != nil {
		return err
	}
	narrow := func(w *Weights, n *int, out, in int) error { // sets n to what is wanted if w is there instead
		if w == nil {
			return nil
		}
		*n = count(out, in)
		return w.check("block", out, in)
	}
	in, x, out := b.InProj.n, b.XProj.n, b.OutProj.n
	if err := firstError(narrow(b.InNarrow, &in, 2*b.Channels, b.Model), narrow(b.XNarrow, &x, b.columns(), b.Channels),
		narrow(b.OutNarrow, &out, b.Model, b.Channels)); err != nil {
		return err
	}
	for _, w := range []struct {
		name    string
		n, want int
	}{
		{"X", b.X.n, count(b.Batch, b.Length, b.Model)}, {"Norm", b.Norm.n, b.Model}, {"InProj", in, count(2, b.Channels, b.Model)},
		{"Conv", b.Conv.n, count(b.Channels, b.Width)}, {"XProj", x, count(b.columns(), b.Channels)},
		{"DtProj", b.DtProj.n, count(b.Channels, b.Rank)}, {"DtBias", b.DtBias.n, b.Channels}, {"ALog", b.ALog.n, count(b.Channels, b.State)},
		{"D", b.D.n, b.Channels}, {"OutProj", out, count(b.Model, b.Channels)},
	} {
		if w.n != w.want {
			return fmt.Errorf("cuda: block: %s has %d elements, want %d", w.name, w.n, w.want)
		}
	}
	return optional("block", "InBias", b.InBias, 2*b.Channels, "ConvBias", b.ConvBias, b.Channels, "OutBias", b.OutBias, b.Model,
		"Context", b.Context, b.contextLen(), "Initial", b.Initial, b.stateLen(), "Start", b.Start, b.rows())
}

func (b *Block[T]) contextLen() int { return count(b.Batch, b.Width-1, b.Channels) }
func (b *Block[T]) stateLen() int   { return count(b.Batch, b.Channels, b.State) }

// checkBackward is check for Backward's arguments.
func (b *Block[T]) checkBackward(k *BlockKept[T], dy, dcontext, dfinal Array[float32], grad *BlockGrad) error {
	for _, w := range []*Weights{b.InNarrow, b.XNarrow, b.OutNarrow} {
		if w != nil {
			return w.noGradient("block")
		}
	}
	if k == nil || grad == nil {
		return errors.New("cuda: block: the kept values or the gradients are missing, want what Forward kept, and arrays for the gradients")
	}
	if dy.n != b.X.n {
		return fmt.Errorf("cuda: block: dy has %d elements, want %d", dy.n, b.X.n)
	}
	rows := b.rows()
	if err := firstError(
		optional("block", "dcontext", dcontext, b.contextLen(), "dfinal", dfinal, b.stateLen()),
		expect("block", "kept vz", k.vz.n, 2*rows*b.Channels, "kept u", k.u.n, rows*b.Channels, "kept rbc", k.rbc.n, rows*b.columns(),
			"kept delta", k.delta.n, rows*b.Channels, "kept y", k.y.n, rows*b.Channels),
	); err != nil {
		return err
	}
	if err := firstError(expect("block", "checkpoints", k.checkpoints.n, b.scan(k).CheckpointLen()), optional("block", "scales", k.scales, rows)); err != nil {
		return err
	}
	for _, p := range []struct {
		name     string
		of, grad sized
	}{
		{"X", b.X, grad.X}, {"Norm", b.Norm, grad.Norm}, {"InProj", b.InProj, grad.InProj}, {"Conv", b.Conv, grad.Conv},
		{"XProj", b.XProj, grad.XProj}, {"DtProj", b.DtProj, grad.DtProj}, {"DtBias", b.DtBias, grad.DtBias}, {"ALog", b.ALog, grad.ALog},
		{"D", b.D, grad.D}, {"OutProj", b.OutProj, grad.OutProj}, {"InBias", b.InBias, grad.InBias}, {"ConvBias", b.ConvBias, grad.ConvBias},
		{"OutBias", b.OutBias, grad.OutBias}, {"Context", b.Context, grad.Context}, {"Initial", b.Initial, grad.Initial},
	} {
		if err := expect("block", "the gradient of "+p.name, p.grad.Len(), p.of.Len()); err != nil {
			return err
		}
	}
	return nil
}

func (b *Block[T]) conv(vz Array[T]) *Conv[T] {
	return &Conv[T]{
		Batch: b.Batch, Length: b.Length, Channels: b.Channels, Width: b.Width, X: vz, XStride: 2 * b.Channels,
		Weight: b.Conv, Bias: b.ConvBias, Context: b.Context, Start: b.Start, SiLU: true,
	}
}

// part returns a matrix without the first from elements. Read with the matrix's stride, it is the columns from from on. A matrix may have no rows.
func part[T Element](a Array[T], from int) Array[T] {
	from = min(from, a.n)
	return a.Slice(from, a.n-from)
}

func (b *Block[T]) scan(k *BlockKept[T]) *Scan[T] {
	return &Scan[T]{
		Batch: b.Batch, Length: b.Length, Channels: b.Channels, State: b.State, U: k.u, Delta: k.delta, A: b.ALog, ALog: true,
		B: Projection[T]{Data: part(k.rbc, b.Rank), Groups: 1, Stride: b.columns()},
		C: Projection[T]{Data: part(k.rbc, b.Rank+b.State), Groups: 1, Stride: b.columns()},
		D: b.D, Z: part(k.vz, b.Channels), ZStride: 2 * b.Channels, DeltaBias: b.DtBias, Softplus: true,
		Initial: b.Initial, Start: b.Start,
	}
}

// Keep queues a part of Forward: it computes the values that Backward needs, and no result.
func (b *Block[T]) Keep(s *Stream) (*BlockKept[T], error) {
	if err := firstError(b.check(), s.usable()); err != nil {
		return nil, err
	}
	return b.run(s, Array[float32]{}, Array[float32]{}, Array[float32]{}, true)
}

// Forward queues the block. It writes y (batch, length, model), which must not be X, and unless they are absent the context
// (batch, width-1, channels) and the state (batch, channels, state) after the last step. With keep, it returns the values that Backward needs.
func (b *Block[T]) Forward(s *Stream, y, context, final Array[float32], keep bool) (*BlockKept[T], error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if y.n != b.X.n {
		return nil, fmt.Errorf("cuda: block: y has %d elements, want %d", y.n, b.X.n)
	}
	if err := optional("block", "context", context, b.contextLen(), "final", final, b.stateLen()); err != nil {
		return nil, err
	}
	return b.run(s, y, context, final, keep)
}

// run is Forward of operands that fit. If y is absent, it computes only what Backward needs.
func (b *Block[T]) run(s *Stream, y, context, final Array[float32], keep bool) (*BlockKept[T], error) {
	var work temporaries
	var err error
	rows, channels := b.rows(), b.Channels
	k := &BlockKept[T]{
		vz: take[T](s, &work, rows*2*channels, &err), u: take[T](s, &work, rows*channels, &err),
		rbc: take[T](s, &work, rows*b.columns(), &err), delta: take[T](s, &work, rows*channels, &err),
		y: take[T](s, &work, rows*channels, &err),
	}
	if keep && err == nil {
		k.checkpoints = take[float32](s, &work, b.scan(k).CheckpointLen(), &err)
		if b.single(s, y) != nil && groupFits(s, rows, 2*channels, b.Model, false) && groupSumFits(s, 2*channels, b.Model, rows) {
			k.scales = take[float32](s, &work, rows, &err)
		}
	}
	kept := len(work)
	if err == nil {
		err = b.forward(s, &work, k, y, context, final)
	}
	if !keep || err != nil {
		work.free()
		return nil, err
	}
	rest := work[kept:]
	rest.free()
	return k, nil
}

func (b *Block[T]) forward(s *Stream, work *temporaries, k *BlockKept[T], y, context, final Array[float32]) (err error) {
	rows, channels := b.rows(), b.Channels
	one := b.single(s, y)
	if one != nil {
		err = splitNorm(s, rows, 2*channels, b.Model, b.Eps, b.X, b.Norm, one.InProj, any(k.vz).(Array[float32]), k.scales)
	} else if n := take[T](s, work, rows*b.Model, &err); err == nil {
		err = firstError(
			normForward(s, rows, b.Model, b.Eps, b.X, b.Norm, n, y), // y is the residual, to which the last product adds
			blockProduct(b, s, n, b.Model, b.InProj, b.InNarrow, 2*channels, 0, k.vz),
		)
	}
	if err != nil {
		return err
	}
	if !b.InBias.Absent() {
		if err := AddBias(s, rows, 2*channels, k.vz, 2*channels, b.InBias); err != nil {
			return err
		}
	}
	if err := b.conv(k.vz).Forward(s, k.u, context); err != nil {
		return err
	}
	if one != nil && groupStepsFit(s, rows, b.columns(), channels, b.Rank, one.XProj, one.DtProj) {
		err = groupSteps(s, rows, b.columns(), channels, any(k.u).(Array[float32]), one.XProj, any(k.rbc).(Array[float32]), one.DtProj, any(k.delta).(Array[float32]))
	} else {
		r := Matrix[T]{Data: k.rbc, Stride: b.columns()}
		err = firstError(
			blockProduct(b, s, k.u, channels, b.XProj, b.XNarrow, b.columns(), 0, k.rbc),
			MatMul(s, b.Precision, rows, channels, b.Rank, r, transposed(b.DtProj, b.Rank), 0, matrix(k.delta, channels)),
		)
	}
	if err != nil {
		return err
	}
	if err := b.scan(k).Forward(s, k.y, final, k.checkpoints); err != nil || y.Absent() {
		return err
	}
	if one != nil {
		err = tensorRows(s, rows, b.Model, channels, matrix(any(k.y).(Array[float32]), channels), transposed(one.OutProj, channels), matrix(y, b.Model), matrix(b.X, b.Model), 1, true)
	} else {
		err = blockProduct(b, s, k.y, channels, b.OutProj, b.OutNarrow, b.Model, 1, y)
	}
	if err != nil {
		return err
	}
	if !b.OutBias.Absent() {
		return AddBias(s, rows, b.Model, y, b.Model, b.OutBias)
	}
	return nil
}

// single returns the block if it is one of float32 for whose products, with the norm before the first and the residual of the last, there are kernels, and the other arrays, which
// these read or write too, begin at multiples of 16 bytes. Otherwise it returns nil.
func (b *Block[T]) single(s *Stream, others ...Array[float32]) *Block[float32] {
	f, ok := any(b).(*Block[float32])
	if !ok || b.Precision != Strict || b.InNarrow != nil || b.OutNarrow != nil || s.device.kernels < 80 || s.device.shared < narrowShared || !tensorFits(s, b.rows(), 2*b.Channels, b.Model, false) ||
		!tensorFits(s, b.rows(), b.Model, b.Channels, true) || !tensorFits(s, b.rows(), b.Model, 2*b.Channels, false) || b.Model > mostSplitNorm ||
		(b.Model|b.Channels)%4|int(b.X.address|b.Norm.address|f.InProj.address|f.OutProj.address)%16 != 0 ||
		slices.ContainsFunc(others, func(a Array[float32]) bool { return a.address%16 != 0 }) {
		return nil
	}
	return f
}

func matrix[T Element](a Array[T], stride int) Matrix[T] { return Matrix[T]{Data: a, Stride: stride} }

func transposed[T Element](a Array[T], stride int) Matrix[T] {
	return Matrix[T]{Data: a, Stride: stride, Transposed: true}
}

// blockProduct queues to (rows, out) = x (rows, in) · weightᵀ + beta·to. If narrow is not nil, it is the weight.
func blockProduct[T, C Activation](b *Block[T], s *Stream, x Array[T], in int, weight Array[T], narrow *Weights, out int, beta float32, to Array[C]) error {
	if narrow != nil {
		return multiplyNarrow(s, b.Precision, b.rows(), x, narrow, beta, to)
	}
	return MatMul(s, b.Precision, b.rows(), out, in, matrix(x, in), transposed(weight, in), beta, matrix(to, out))
}

// productGrad queues the gradient of a weight (out, in). dy is the gradient of the weight's product with x.
func (b *Block[T]) productGrad(s *Stream, x Matrix[T], in int, dy Matrix[T], out int, grad Array[float32]) error {
	dy.Transposed = true
	return MatMul(s, b.Precision, out, in, b.rows(), dy, x, 0, matrix(grad, in))
}

// Backward queues the gradients of every operand. Its inputs are the values that Forward kept, the gradient dy of its result and, unless
// they are absent, the gradients of the context and the state. It writes every element of grad's arrays. Two runs on the same operands
// give the same gradients, bit for bit.
func (b *Block[T]) Backward(s *Stream, k *BlockKept[T], dy, dcontext, dfinal Array[float32], grad *BlockGrad) error {
	if err := b.check(); err != nil {
		return err
	}
	if err := firstError(b.checkBackward(k, dy, dcontext, dfinal, grad), s.usable()); err != nil {
		return err
	}
	return s.together(func() error { return b.backward(s, k, dy, dcontext, dfinal, grad) })
}

func (b *Block[T]) backward(s *Stream, k *BlockKept[T], dy, dcontext, dfinal Array[float32], grad *BlockGrad) error {
	var work temporaries
	defer work.free()
	var err error
	rows, channels, columns := b.rows(), b.Channels, b.columns()
	d := as[T](s, &work, dy, &err)
	ds := take[T](s, &work, rows*channels, &err) // gradient of the scan's result, then of the convolution's result
	du, ddelta := take[T](s, &work, rows*channels, &err), take[T](s, &work, rows*channels, &err)
	dvz, drbc := take[T](s, &work, rows*2*channels, &err), take[T](s, &work, rows*columns, &err)
	if err != nil {
		return err
	}
	if !b.OutBias.Absent() {
		if err := ColumnSums(s, rows, b.Model, dy, b.Model, grad.OutBias); err != nil {
			return err
		}
	}
	if err := b.productGrad(s, matrix(k.y, channels), channels, matrix(d, b.Model), b.Model, grad.OutProj); err != nil {
		return err
	}
	if err := MatMul(s, b.Precision, rows, channels, b.Model, matrix(d, b.Model), matrix(b.OutProj, channels), 0, matrix(ds, channels)); err != nil {
		return err
	}
	if err := b.scan(k).Backward(s, k.checkpoints, ds, dfinal, &ScanGrad[T]{
		U: du, Delta: ddelta, A: grad.ALog, B: part(drbc, b.Rank), C: part(drbc, b.Rank+b.State),
		D: grad.D, Z: part(dvz, channels), DeltaBias: grad.DtBias, Initial: grad.Initial,
	}); err != nil {
		return err
	}
	if f, ok := any(b).(*Block[float32]); ok && b.Precision == Strict && stepGradientsFit(s, rows, channels, b.Rank, columns, f.DtProj) {
		err = stepGradients(s, rows, channels, columns, any(ddelta).(Array[float32]), f.DtProj, any(k.rbc).(Array[float32]), any(drbc).(Array[float32]), grad.DtProj)
	} else {
		err = firstError(
			b.productGrad(s, Matrix[T]{Data: k.rbc, Stride: columns}, b.Rank, matrix(ddelta, channels), channels, grad.DtProj),
			MatMul(s, b.Precision, rows, b.Rank, channels, matrix(ddelta, channels), matrix(b.DtProj, b.Rank), 0, matrix(drbc, columns)),
		)
	}
	if err != nil {
		return err
	}
	if err := b.productGrad(s, matrix(k.u, channels), channels, matrix(drbc, columns), columns, grad.XProj); err != nil {
		return err
	}
	if err := MatMul(s, b.Precision, rows, channels, columns, matrix(drbc, columns), matrix(b.XProj, channels), 1, matrix(du, channels)); err != nil {
		return err
	}
	if err := b.conv(k.vz).Backward(s, du, dcontext, dvz, 2*channels, grad.Conv, grad.ConvBias, grad.Context); err != nil {
		return err
	}
	if !b.InBias.Absent() {
		if err := ColumnSums(s, rows, 2*channels, dvz, 2*channels, grad.InBias); err != nil {
			return err
		}
	}
	if !k.scales.Absent() && (b.X.address|b.Norm.address)%16 == 0 { // those of Forward were aligned, but these can be others
		err = groupNormSum(s, 2*channels, b.Model, rows, any(dvz).(Array[float32]), b.X, k.scales, b.Norm, grad.InProj)
	} else if n := take[T](s, &work, rows*b.Model, &err); err == nil {
		err = firstError(
			RMSNormForward(s, rows, b.Model, b.Eps, b.X, b.Norm, n),
			b.productGrad(s, matrix(n, b.Model), b.Model, matrix(dvz, 2*channels), 2*channels, grad.InProj),
		)
	}
	if err != nil {
		return err
	}
	if one := b.single(s, dy, grad.X); one != nil {
		return splitNormBackward(s, rows, 2*channels, b.Model, b.Eps, b.X, b.Norm, one.InProj, any(dvz).(Array[float32]), dy, grad.X, grad.Norm)
	}
	dn := take[T](s, &work, rows*b.Model, &err)
	if err != nil {
		return err
	}
	if err := MatMul(s, b.Precision, rows, b.Model, 2*channels, matrix(dvz, 2*channels), matrix(b.InProj, b.Model), 0, matrix(dn, b.Model)); err != nil {
		return err
	}
	return RMSNormBackward(s, rows, b.Model, b.Eps, b.X, b.Norm, dn, dy, grad.X, grad.Norm)
}
