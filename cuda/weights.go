package cuda

import "fmt"

// WeightType is the type of the numbers of Weights.
type WeightType int

const (
	WeightInt8 WeightType = iota // integers of 8 bits, and a scale in float16 for each 32 numbers of a row
	WeightF16                    // float16
	WeightBF16                   // bfloat16
)

var weightTypes = []struct {
	name         string
	block, bytes int
}{{"int8", 32, 34}, {"f16", 1, 2}, {"bf16", 1, 2}}

func (t WeightType) String() string {
	if t.check() != nil {
		return fmt.Sprintf("WeightType(%d)", int(t))
	}
	return weightTypes[t].name
}

func (t WeightType) check() error {
	if t < 0 || int(t) >= len(weightTypes) {
		return fmt.Errorf("cuda: weights: the type is %d, want WeightInt8, WeightF16 or WeightBF16", int(t))
	}
	return nil
}

// Weights is a matrix (out, in) that is narrower than float32, for products that are not differentiated.
type Weights struct {
	typ     WeightType
	out, in int
	data    Array[uint8]
}

// NewWeights copies a matrix to the device: its numbers row by row, then, of WeightInt8, the scales of all blocks in the same order, in little endian.
//
// Errors: an unknown type; a size below 1; an in that is no multiple of 32 for WeightInt8; data of another length; an *OutOfMemory.
func NewWeights(s *Stream, t WeightType, out, in int, data []byte) (*Weights, error) {
	if err := firstError(t.check(), atLeast(1, "weights", "out", out, "in", in)); err != nil {
		return nil, err
	}
	about := weightTypes[t]
	if in%about.block != 0 {
		return nil, fmt.Errorf("cuda: weights: in is %d, want a multiple of %d for %v", in, about.block, t)
	}
	if want := count(out, in/about.block, about.bytes); len(data) != want {
		return nil, fmt.Errorf("cuda: weights: data has %d bytes, want %d", len(data), want)
	}
	a, err := Upload(s, data)
	if err != nil {
		return nil, err
	}
	return &Weights{t, out, in, a}, nil
}

// Free frees the memory on the device.
func (w *Weights) Free() {
	if w != nil {
		w.data.Free()
	}
}

// Type returns the type of the numbers, -1 for nil.
func (w *Weights) Type() WeightType {
	if w == nil {
		return -1
	}
	return w.typ
}

// Half returns the numbers of WeightBF16, and an absent array of other types.
func (w *Weights) Half() Array[BFloat16] {
	if w == nil || w.typ != WeightBF16 {
		return Array[BFloat16]{}
	}
	return ArrayAt[BFloat16](w.data.stream, w.data.address, w.out*w.in)
}

// check returns an error unless the weights are (out, in).
func (w *Weights) check(what string, out, in int) error {
	switch {
	case w == nil || w.data.Absent():
		return fmt.Errorf("cuda: %s: the weights are missing, want those that NewWeights returned", what)
	case w.out != out || w.in != in:
		return fmt.Errorf("cuda: %s: the weights are (%d, %d), want (%d, %d)", what, w.out, w.in, out, in)
	}
	return nil
}

// Widen queues the copy of all numbers of weights to an array of float32, which is exact, or of bfloat16, which rounds them.
func Widen[T Activation](s *Stream, w *Weights, to Array[T]) error {
	if w == nil {
		return w.check("widening", 0, 0)
	}
	if half, ok := any(to).(Array[BFloat16]); ok && w.typ == WeightBF16 {
		if half.n < w.out*w.in {
			return expect("widening", "to", half.n, w.out*w.in)
		}
		return half.Slice(0, w.out*w.in).copy(s, w.Half())
	}
	return widenRows(s, w, w.out, Array[int32]{}, to)
}

// WeightRows queues x (len(ids), in): for each id its row of the weights, as EmbeddingForward does it.
func WeightRows(s *Stream, w *Weights, ids Array[int32], x Array[float32]) error {
	return widenRows(s, w, ids.n, ids, x)
}

func widenRows[T Activation](s *Stream, w *Weights, rows int, ids Array[int32], to Array[T]) error {
	if w == nil {
		return w.check("widening", 0, 0)
	}
	if err := firstError(expect("widening", "to", to.n, count(rows, w.in)), w.check("widening", w.out, w.in), s.usable()); err != nil {
		return err
	}
	together := 1
	if w.in%8 == 0 && to.address%16 == 0 {
		together = 8
	}
	if w.typ == WeightInt8 && together == 1 {
		return fmt.Errorf("cuda: widening: the address of the result is %#x, want a multiple of 16", to.address)
	}
	kernel := fmt.Sprintf("widen_%v_%s_%d", w.typ, typeName[T](), together)
	return s.run("weights", kernel, blocksOf(rows*w.in/together, 256), w.data.address, ids.address, to.address, rows, w.in, w.out)
}

// weightsMost is the number of rows up to which products with narrow weights read these. For more rows the weights are widened first. From weightsMany rows on,
// products of BF16 with WeightInt8 widen a tile of them to bfloat16 in registers, and steps do so for any number of rows.
const weightsMost, weightsMany = 64, 17

func (w *Weights) noGradient(what string) error {
	return fmt.Errorf("cuda: %s: a weight is of %v, want float32 or bfloat16: narrow weights have no gradient", what, w.typ)
}

// rounds reports whether products of many rows have operands of bfloat16 in every precision, for which cuBLAS needs compute capability 8.0.
func (w *Weights) rounds(d *Device) bool { return w.typ != WeightF16 && d.kernels >= 80 }

// multiplyNarrow queues y (rows, out) = x (rows, in) · weightsᵀ + beta·y. The operands are x and the weights in type T, or in bfloat16.
func multiplyNarrow[T, C Activation](s *Stream, p Precision, rows int, x Array[T], w *Weights, beta float32, y Array[C]) (err error) {
	var work temporaries
	defer func() { work.free() }()
	if wide, ok := any(x).(Array[float32]); ok && w.rounds(s.device) {
		half := as[BFloat16](s, &work, wide.Slice(0, rows*w.in), &err)
		if err != nil {
			return err
		}
		return multiplyNarrow(s, BF16, rows, half, w, beta, y)
	}
	weight := widened[T](s, &work, w, &err)
	if err != nil {
		return err
	}
	return MatMul(s, p, rows, w.out, w.in, matrix(x, w.in), transposed(weight, w.in), beta, matrix(y, w.out))
}

// widened returns the weights in type T: as they are, or a new array.
func widened[T Activation](s *Stream, work *temporaries, w *Weights, err *error) Array[T] {
	if half, ok := any(w.Half()).(Array[T]); ok && !half.Absent() {
		return half
	}
	a := take[T](s, work, w.out*w.in, err)
	if *err == nil {
		*err = Widen(s, w, a)
	}
	return a
}

// few reports whether product supports the weights and vectors x (batch, in).
func (w *Weights) few(d *Device, x Array[float32]) bool {
	return d.kernels >= 80 && w.typ != WeightBF16 && w.in%8 == 0 && x.address%16 == 0
}

// many reports whether so many rows are multiplied by weights that are widened to bfloat16 in registers. It rounds the rows, so other precisions do not.
func (w *Weights) many(p Precision, rows int) bool {
	return p == BF16 && w.typ == WeightInt8 && rows >= weightsMany
}

// product queues y (batch, out) = weights · x (batch, in), plus bias and residual unless they are absent, in tensor cores (kernels/weightrows.cuh).
func (w *Weights) product(s *Stream, p Precision, early bool, batch int, x, bias, residual, y Array[float32]) (err error) {
	if w.many(p, batch) {
		var work temporaries
		defer work.free()
		half := as[BFloat16](s, &work, x.Slice(0, batch*w.in), &err)
		if err != nil {
			return err
		}
		const groups = 8
		return s.run("weightsmma", fmt.Sprintf("weight_many_product_float_%d", groups), rowsGrid(s, early, batch, w.out, groups), half.address,
			w.data.address, bias.address, residual.address, y.address, int32(batch), int32(w.in), int32(w.out))
	}
	ahead, tiles := 6, 1 // as fewProduct
	if w.out > 64*s.device.multiprocessors {
		ahead, tiles = 3, fewTiles
	}
	return s.run("weightsmma", fmt.Sprintf("weight_product_%v_%d", w.typ, ahead), fewGrid(s, early, batch, w.out, tiles, 256), x.address,
		w.data.address, bias.address, residual.address, y.address, int32(batch), int32(w.in), int32(w.out), int32(tiles))
}

// WeightsStep is a Step with narrow weights of one type, WeightInt8 or WeightF16, instead of its InProj, XProj and OutProj.
type WeightsStep struct {
	Step       *Step[float32]
	In, X, Out *Weights
	Precision  Precision // with BF16, a step of many sequences may round activations to bfloat16
}

// Runs reports whether Forward computes the step: whether it has few sequences, and the kernels support the device and the sizes.
func (w *WeightsStep) Runs(stream *Stream) bool {
	if w == nil || w.Step == nil || w.In == nil || w.X == nil || w.Out == nil || w.Step.Fits() != nil || stream.usable() != nil {
		return false
	}
	s, d := w.Step, stream.device
	same := w.In.typ == w.X.typ && w.X.typ == w.Out.typ
	return same && s.Norm.address%16 == 0 && (s.Batch <= weightsMost || w.In.many(w.Precision, s.Batch)) && s.fewShared() <= d.shared && w.In.few(d, s.X) && w.X.few(d, s.Norm) && w.Out.few(d, s.Norm)
}

// Forward queues the step as three kernels (kernels/weightrows.cuh) or, for many sequences, as five, as Step does for weights of bfloat16. Runs must be true. Unless it is the first of
// a chain, its first kernel begins before the work that was queued before it has ended.
func (w *WeightsStep) Forward(stream *Stream, r StepResult, first bool) error {
	if !w.Runs(stream) {
		return fmt.Errorf("cuda: step: the kernels do not support the sizes or the device, want a step for which Runs is true")
	}
	s := w.Step
	if err := firstError(
		s.checkOthers(stream, r), w.In.check("step: In", 2*s.Channels, s.Model), w.X.check("step: X", s.columns(), s.Channels),
		w.Out.check("step: Out", s.Model, s.Channels),
	); err != nil || s.Batch == 0 {
		return err
	}
	if w.In.many(w.Precision, s.Batch) {
		return s.inFive(stream, r, first, fiveKernels{"weightsmma", "weight_many_", "weightsmma", "wide", w.In.data.address, w.X.data.address, w.Out.data.address})
	}
	kernels := threeKernels{"weightsmma", fmt.Sprintf("weight_in_%v", w.In.typ), "weight_scan", w.In.data.address, w.X.data.address}
	return s.inThree(stream, r, first, kernels, func(gated Array[float32]) error {
		return w.Out.product(stream, w.Precision, true, s.Batch, gated, s.OutBias, s.X, r.Y)
	})
}
