package blas

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"unsafe"

	"github.com/gomamba/mamba/internal/half"
	"github.com/gomamba/mamba/internal/work"
)

// Type is the type of the numbers of Weights. The names of the quantized types are those of llama.cpp and of GGUF files, and the bytes are the same.
type Type uint8

// The types. In a quantized type, a number is scale·q, or scale·q + m, with an integer q. The scale is a float16 for a block of
// numbers of a row.
const (
	Float32  Type = iota
	BFloat16      // activations are rounded to bfloat16
	Float16
	Q8_0 // 8 bits; a scale for 32 numbers: 8.5 bits a number
	Q4_0 // 4 bits; a scale for 32: 4.5 bits
	Q5_0 // 5 bits; a scale for 32: 5.5 bits
	Q5_1 // 5 bits; a scale and an m for 32: 6 bits
	Q4_K // 4 bits; a scale for 256, and for 32 of them a factor and an m of 6 bits: 4.5 bits
	Q6_K // 6 bits; a scale for 256, and for 16 of them a factor of 8 bits: 6.56 bits
	types
)

// format describes a type: blocks of numbers.
type format struct {
	name         string
	block, bytes int
}

var formats = [types]format{
	Float32:  {"float32", 1, 4},
	BFloat16: {"bfloat16", 1, 2},
	Float16:  {"float16", 1, 2},
	Q8_0:     {"Q8_0", 32, 34},
	Q4_0:     {"Q4_0", 32, 18},
	Q5_0:     {"Q5_0", 32, 22},
	Q5_1:     {"Q5_1", 32, 24},
	Q4_K:     {"Q4_K", 256, 144},
	Q6_K:     {"Q6_K", 256, 210},
}

func (t Type) String() string {
	if t >= types {
		return fmt.Sprintf("Type(%d)", uint8(t))
	}
	return formats[t].name
}

// Block returns the number of inputs that the rows of the type are a multiple of, 1 for a type that is not quantized, and 0 for no type.
func (t Type) Block() int {
	if t >= types {
		return 0
	}
	return formats[t].block
}

// BlockBytes returns the bytes of such a block.
func (t Type) BlockBytes() int {
	if t >= types {
		return 0
	}
	return formats[t].bytes
}

// quantized reports whether the type has blocks. Activations are then quantized too, to 8 bits in blocks of 32.
func (t Type) quantized() bool { return t >= Q8_0 }

// Weights is a matrix (outputs, inputs) for products with activations, in one of the types. It does not change, so any number of
// goroutines may use it.
type Weights struct {
	typ             Type
	outputs, inputs int
	data            []byte    // rows, one after another; nil for Float32
	floats          []float32 // of Float32
	owner           any       // of data
}

// NewWeights returns Weights of the bytes of a matrix, row by row. It keeps data, which must not change: it may be a part of a file that is mapped
// into memory. Only the data of Float32 is copied where it cannot be used in place.
//
// Errors: an unknown type; a size below 1; inputs that are no multiple of the type's block; data of another length.
func NewWeights(t Type, outputs, inputs int, data []byte) (*Weights, error) {
	row, err := t.check(outputs, inputs)
	if err != nil {
		return nil, err
	}
	if len(data)/row != outputs || len(data)%row != 0 {
		return nil, fmt.Errorf("blas: weights: data has %d bytes, want %d rows of %d for %d inputs of %v", len(data), outputs, row, inputs, t)
	}
	w := &Weights{typ: t, outputs: outputs, inputs: inputs, data: data}
	if t == Float32 {
		if w.data = nil; uintptr(unsafe.Pointer(&data[0]))%4 == 0 && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
			w.floats = unsafe.Slice((*float32)(unsafe.Pointer(&data[0])), outputs*inputs)
		} else {
			w.floats = make([]float32, outputs*inputs)
			for i := range w.floats {
				w.floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			}
		}
	}
	return w, nil
}

// WeightsOf returns Weights of the float32 numbers of a matrix (outputs, inputs), which share data: products see what is written to it later.
//
// Errors: a size below 1; data of another length.
func WeightsOf(outputs, inputs int, data []float32) (*Weights, error) {
	if _, err := Float32.check(outputs, inputs); err != nil {
		return nil, err
	}
	if len(data)/inputs != outputs || len(data)%inputs != 0 {
		return nil, fmt.Errorf("blas: weights: data has %d numbers, want %d × %d", len(data), outputs, inputs)
	}
	return &Weights{outputs: outputs, inputs: inputs, floats: data}, nil
}

// check returns the bytes of a row.
func (t Type) check(outputs, inputs int) (row int, err error) {
	switch {
	case t >= types:
		return 0, fmt.Errorf("blas: weights: the type is %v, want one of %v to %v", t, Float32, types-1)
	case outputs < 1:
		return 0, fmt.Errorf("blas: weights: outputs is %d, want at least 1", outputs)
	case inputs < 1 || inputs > math.MaxInt32: // sums of integers would overflow
		return 0, fmt.Errorf("blas: weights: inputs is %d, want 1 to %d", inputs, math.MaxInt32)
	case inputs%formats[t].block != 0:
		return 0, fmt.Errorf("blas: weights: inputs is %d, want a multiple of %d for %v", inputs, formats[t].block, t)
	}
	return inputs / formats[t].block * formats[t].bytes, nil
}

// Hold makes the weights keep a reference to the owner of their data, such as a file that is mapped into memory and unmapped when nothing refers to it.
func (w *Weights) Hold(owner any) { w.owner = owner }

// Type returns the type of the numbers.
func (w *Weights) Type() Type { return w.typ }

// Outputs returns the number of rows.
func (w *Weights) Outputs() int { return w.outputs }

// Inputs returns the length of a row.
func (w *Weights) Inputs() int { return w.inputs }

// Bytes returns the size of the matrix in memory.
func (w *Weights) Bytes() int { return len(w.data) + 4*len(w.floats) }

func (w *Weights) row(i int) []byte {
	n := len(w.data) / w.outputs
	return w.data[i*n : (i+1)*n]
}

// Row writes row i, as float32, to to.
func (w *Weights) Row(i int, to []float32) {
	defer runtime.KeepAlive(w) // and so the owner of the data
	switch to = to[:w.inputs]; {
	case w.typ == Float32:
		copy(to, w.floats[i*w.inputs:])
	case w.typ == BFloat16:
		for j, row := 0, w.row(i); j < len(to); j++ {
			to[j] = half.FromBFloat16(binary.LittleEndian.Uint16(row[2*j:]))
		}
	case w.typ == Float16:
		for j, row := 0, w.row(i); j < len(to); j++ {
			to[j] = half.FromFloat16(binary.LittleEndian.Uint16(row[2*j:]))
		}
	default:
		var b numbers
		for j, row := 0, w.row(i); j < len(to); j += 32 {
			w.typ.unpack(row, j/32, &b)
			for l, q := range b.q {
				to[j+l] = b.scale[l/16]*float32(q) + b.m
			}
		}
	}
}

// RowBytes returns row i as NewWeights has got it, nil for Float32. It must not be changed, and not be used after w is unreachable.
func (w *Weights) RowBytes(i int) []byte {
	if w.typ == Float32 {
		return nil
	}
	return w.row(i)
}

var errMissing = errors.New("blas: weights: the matrix is missing, want one that NewWeights or Quantize returned")

// Check returns an error if a number is NaN, if a scale of a block is not finite, or if the memory cannot be read, as that of a mapped file that has become
// shorter. It reads all of the matrix.
func (w *Weights) Check() error {
	if w == nil || w.outputs == 0 {
		return errMissing
	}
	bad := make([]string, w.outputs)
	work.ParallelRange(w.outputs, max(1, (1<<16)/w.inputs), func(from, to int) {
		i := from
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // by default a fault ends the program
		defer func() {
			if r := recover(); r != nil {
				if _, isFault := r.(interface{ Addr() uintptr }); !isFault {
					panic(r)
				}
				bad[i] = "cannot be read: has its file become shorter?"
			}
		}()
		for ; i < to; i++ {
			if !w.sound(i) {
				bad[i] = "has a NaN, or a scale that is not finite"
			}
		}
	})
	for i, why := range bad {
		if why != "" {
			return fmt.Errorf("row %d %s", i, why)
		}
	}
	return nil
}

// sound reports whether row i has neither a NaN nor a scale that is not finite.
func (w *Weights) sound(i int) bool {
	if w.typ == Float32 {
		return !slices.ContainsFunc(w.floats[i*w.inputs:(i+1)*w.inputs], func(x float32) bool { return x != x })
	}
	defer runtime.KeepAlive(w)
	f, row := formats[w.typ], w.row(i)
	for b := row; len(b) > 0; b = b[f.bytes:] {
		at, more := 0, 0 // where a float16 is, and how many after it
		switch w.typ {
		case BFloat16:
			if x := half.FromBFloat16(binary.LittleEndian.Uint16(b)); x != x {
				return false
			}
			continue
		case Q5_1, Q4_K:
			more = 1
		case Q6_K:
			at = 208
		}
		for j := range more + 1 {
			if x := float16At(b[at+2*j:]); x != x || w.typ.quantized() && x-x != 0 {
				return false
			}
		}
	}
	return true
}

// Prepared are rows of activations in the form that MulRange multiplies. They are valid until their scratch or their x is written.
type Prepared struct {
	rows, ld int
	data     []float32
}

// Rows returns the number of rows.
func (p Prepared) Rows() int { return p.rows }

// Scratch returns the number of float32 that Prepare needs for rows of activations: 0 for a type that multiplies activations as they are.
func (w *Weights) Scratch(rows int) int { return rows * w.scratchRow() }

func (w *Weights) scratchRow() int {
	switch {
	case w.typ == BFloat16 && wordProducts():
		return (w.inputs + 1) / 2
	case w.typ == BFloat16:
		return w.inputs
	case w.typ.quantized():
		return quantizedRow(w.inputs)
	}
	return 0
}

// Prepare rounds or quantizes activations: rows of x (rows, inputs) that are ldx ≥ inputs apart. scratch has at least Scratch(rows) elements. The result of
// weights of one type and number of inputs serves all others of that type and number.
func (w *Weights) Prepare(x []float32, ldx, rows int, scratch []float32) Prepared {
	ld := w.scratchRow()
	within("x", rows, ldx, w.inputs, len(x))
	if ld == 0 {
		return Prepared{rows, ldx, x}
	}
	within("scratch", rows, ld, ld, len(scratch))
	for i := range rows {
		w.prepareRow(x[i*ldx:][:w.inputs], scratch[i*ld:][:ld])
	}
	return Prepared{rows, ld, scratch}
}

func (w *Weights) prepareRow(x, to []float32) {
	switch {
	case w.typ != BFloat16:
		quantized{to, w.inputs / 32}.quantize(x)
	case wordProducts():
		rounded := words(to)
		clear(rounded[len(x):])
		for j := roundVectors(x, to); j < len(x); j++ {
			rounded[j] = half.ToBFloat16(x[j])
		}
	default:
		for j := roundVectors(x, to); j < len(x); j++ {
			to[j] = half.FromBFloat16(half.ToBFloat16(x[j]))
		}
	}
}

// within panics unless n elements hold rows of that width, ld apart.
func within(name string, rows, ld, width, n int) {
	bounded(name, rows, ld, width)
	if ld < width || rows > 0 && n < (rows-1)*ld+width {
		panic("blas: weights: insufficient length of " + name)
	}
}

// words returns the memory of float32 as numbers of 16 bits.
func words(v []float32) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(v))), 2*len(v))
}

// MulRange computes the outputs [from, to) of each row of activations that Prepare returned: dst[i*ldDst+j] for row i and output j. If add, it adds them to dst
// instead. It starts no goroutine. An output has the same bits whatever the range is.
func (w *Weights) MulRange(dst []float32, ldDst int, x Prepared, from, to int, add bool) {
	if from >= to || x.rows < 1 {
		return
	}
	defer runtime.KeepAlive(w)
	if from < 0 || to > w.outputs {
		panic(fmt.Sprintf("blas: weights: the range is %d to %d, want one within %d outputs", from, to, w.outputs))
	}
	within("dst", x.rows, ldDst, to, len(dst))
	width := w.scratchRow()
	if width == 0 {
		width = w.inputs
	}
	within("the prepared x", x.rows, x.ld, width, len(x.data))
	if w.typ == Float32 {
		w.mulFloat32(w.floats[from*w.inputs:], dst[from:], ldDst, x, to-from, add)
		return
	}
	if k := panelKernel(w.typ); k != nil && x.rows > fewRows {
		w.mulPanels(k, dst, ldDst, x, from, to, add)
		return
	}
	if w.typ == Float16 && x.rows > fewRows && current() != nil {
		s := work.Borrow[float32]((to - from) * w.inputs)
		defer s.Return()
		for j := range to - from {
			w.Row(from+j, s.Data[j*w.inputs:])
		}
		w.mulFloat32(s.Data, dst[from:], ldDst, x, to-from, add)
		return
	}
	if k := narrowKernel(w.typ); k != nil && w.outputs >= fewest {
		w.mulNarrow(k, dst, ldDst, x, from, to, add)
		return
	}
	for j := from; j < to; j++ {
		for i := range x.rows {
			sum := w.dot(j, x.data[i*x.ld:], 0)
			if add {
				sum += dst[i*ldDst+j]
			}
			dst[i*ldDst+j] = sum
		}
	}
}

// product returns the product of rows of activations with rows of float32 weights.
func (w *Weights) product(weights, dst []float32, ldDst int, x Prepared, outputs int, add bool) product {
	var beta float32
	if add {
		beta = 1
	}
	return product{
		kernels: current(), m: x.rows, n: outputs, k: w.inputs, alpha: 1, beta: beta, a: x.data, aRow: x.ld, aCol: 1,
		b: weights, ldb: w.inputs, bTrans: true, c: dst, ldc: ldDst,
	}
}

func (w *Weights) mulFloat32(weights, dst []float32, ldDst int, x Prepared, outputs int, add bool) {
	p := w.product(weights, dst, ldDst, x, outputs, add)
	switch {
	case p.kernels == nil:
		for i := range x.rows {
			for j := range outputs {
				sum := dot(weights[j*w.inputs:][:w.inputs], x.data[i*x.ld:])
				if add {
					sum += dst[i*ldDst+j]
				}
				dst[i*ldDst+j] = sum
			}
		}
	case p.dotsApply():
		p.dotColumns(0, outputs)
	default:
		p.inTasks(true)
	}
}

func dot(w, x []float32) (sum float32) {
	for i, w := range w {
		sum += w * x[i]
	}
	return sum
}

// dot returns the product of row j, from its number first on, with a row that Prepare returned.
func (w *Weights) dot(j int, x []float32, first int) (sum float32) {
	row := w.row(j)
	if w.typ.quantized() {
		return w.typ.dot(row, quantized{x, w.inputs / 32}, first/32)
	}
	number := half.FromBFloat16
	if w.typ == Float16 {
		number = half.FromFloat16
	}
	for i := first; i < w.inputs; i++ {
		bits := binary.LittleEndian.Uint16(row[2*i:])
		if w.typ == BFloat16 && wordProducts() {
			sum += number(bits) * half.FromBFloat16(words(x)[i])
		} else {
			sum += number(bits) * x[i]
		}
	}
	return sum
}

// Fetch reads a part of the rows [from, to) from memory, as work.Fetch does, so that a product of these rows that follows finds it in the cache. The first
// parts are those that MulRange reads first.
func (w *Weights) Fetch(from, to, part int) {
	if w.typ == Float32 {
		stream := streamRows(to-from) * w.inputs
		rows := w.floats[from*w.inputs : to*w.inputs]
		rows = rows[min(part%dotRows*stream, len(rows)):]
		work.Fetch(rows[:min(stream, len(rows))], part/dotRows)
		return
	}
	n := len(w.data) / w.outputs
	work.Fetch(w.data[from*n:to*n], part)
}

// FetchParts returns the number of parts of rows.
func (w *Weights) FetchParts(rows int) int {
	if w.typ == Float32 {
		return dotRows * parts(4*w.inputs*streamRows(rows), work.FetchBytes)
	}
	f := formats[w.typ]
	return parts(w.inputs/f.block*f.bytes*rows, work.FetchBytes)
}

// Mul computes all outputs of rows of x, ldx apart, on all processors: dst (rows, outputs), ldDst apart. If add, it adds them to dst instead.
func (w *Weights) Mul(dst []float32, ldDst int, x []float32, ldx, rows int, add bool) {
	if rows < 1 {
		return
	}
	within("x", rows, ldx, w.inputs, len(x))
	within("dst", rows, ldDst, w.outputs, len(dst))
	if w.typ == Float32 && current() != nil && w.outputs > 1 { // run sums one column in another order than MulRange
		p := w.product(w.floats, dst, ldDst, Prepared{rows, ldx, x}, w.outputs, add)
		p.run()
		return
	}
	s := work.Borrow[float32](w.Scratch(rows))
	defer s.Return()
	ld := w.scratchRow()
	p := Prepared{rows, ldx, x}
	if ld > 0 {
		p = Prepared{rows, ld, s.Data}
		work.ParallelRange(rows, max(1, (1<<14)/w.inputs), func(from, to int) {
			w.Prepare(x[from*ldx:], ldx, to-from, s.Data[from*ld:])
		})
	}
	const bytes = 1 << 18 // of a task: 20 µs at the speed of memory
	size := max(1, bytes/max(1, w.Bytes()/w.outputs)/dotRows) * dotRows
	if rows > fewRows {
		size = 3 * panelWidth
	}
	work.ParallelRange(w.outputs, size, func(from, to int) { w.MulRange(dst, ldDst, p, from, to, add) })
}
