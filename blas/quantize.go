package blas

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"

	"github.com/gomamba/mamba/internal/half"
	memory "github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/work"
)

// Quantize returns Weights of a type with the numbers of a matrix (outputs, inputs), rounded or quantized on all processors. It keeps data if the type is
// Float32, else it does not.
//
// Errors: a size or a type as in NewWeights; data of another length; a number that is not finite, or too large for the type.
func Quantize(t Type, outputs, inputs int, data []float32) (*Weights, error) {
	if _, err := t.check(outputs, inputs); err != nil {
		return nil, err
	}
	if len(data)/inputs != outputs || len(data)%inputs != 0 {
		return nil, fmt.Errorf("blas: weights: data has %d numbers, want %d × %d", len(data), outputs, inputs)
	}
	return QuantizeRows(t, outputs, inputs, outputs, func(int) ([]float32, error) { return data, nil })
}

// QuantizeRows is Quantize for a matrix that is larger than the memory should be: read returns the next some rows, and the rest at the end, from row first on.
// It may return the same memory each time, unless the type is Float32 and some is less than outputs.
//
// Errors: those of Quantize; those of read.
func QuantizeRows(t Type, outputs, inputs, some int, read func(first int) ([]float32, error)) (*Weights, error) {
	row, err := t.check(outputs, inputs)
	switch {
	case err != nil:
		return nil, err
	case some < 1 || some < outputs && t == Float32:
		return nil, fmt.Errorf("blas: weights: the number of rows to read is %d, want at least 1, and all %d for float32", some, outputs)
	case read == nil:
		return nil, fmt.Errorf("blas: weights: read is missing, want a function that returns rows")
	}
	w := &Weights{typ: t, outputs: outputs, inputs: inputs}
	for first := 0; first < outputs; first += some {
		n := min(some, outputs-first)
		data, err := read(first)
		if err != nil {
			return nil, err
		}
		if len(data)/inputs != n || len(data)%inputs != 0 {
			return nil, fmt.Errorf("blas: weights: %d numbers from row %d on, want %d × %d", len(data), first, n, inputs)
		}
		if i := slices.IndexFunc(data, func(x float32) bool { return !t.holds(x) }); i >= 0 {
			return nil, fmt.Errorf("blas: weights: data[%d] is %v, want at most ±%v for %v", first*inputs+i, data[i], t.largest(), t)
		}
		if t == Float32 {
			w.floats = data
			break
		}
		if w.data == nil {
			w.data = make([]byte, outputs*row)
			memory.HugePages(w.data)
		}
		f, to := formats[t], w.data[first*row:(first+n)*row]
		work.ParallelRange(n, max(1, (1<<14)/inputs), func(from, end int) {
			for b := from * row / f.bytes; b < end*row/f.bytes; b++ {
				t.pack(data[b*f.block:][:f.block], to[b*f.bytes:][:f.bytes])
			}
		})
	}
	return w, nil
}

// Int8 returns weights of a quantized type in Q8_0, w itself if that is its type. The numbers of Q4_0 and Q5_0 stay as they are, and those of Q5_1, Q4_K and
// Q6_K are rounded.
//
// Errors: a matrix that is missing; a type that is not quantized; a number that is too large.
func (w *Weights) Int8() (*Weights, error) {
	switch {
	case w == nil || w.outputs == 0:
		return nil, errMissing
	case !w.typ.quantized():
		return nil, fmt.Errorf("blas: weights: the type is %v, want a quantized one", w.typ)
	case w.typ == Q8_0:
		return w, nil
	}
	defer runtime.KeepAlive(w)
	size := formats[Q8_0].bytes
	data := make([]byte, w.outputs*w.inputs/32*size)
	memory.HugePages(data)
	work.ParallelRange(w.outputs, max(1, (1<<14)/w.inputs), func(from, to int) {
		var n numbers
		var wide [32]float32
		for b := from * w.inputs / 32; b < to*w.inputs/32; b++ {
			block := data[b*size:][:size]
			w.typ.unpack(w.row(b*32/w.inputs), b%(w.inputs/32), &n)
			for j, q := range n.q {
				block[2+j], wide[j] = byte(q), n.scale[j/16]*float32(q)+n.m
			}
			if w.typ == Q4_0 || w.typ == Q5_0 {
				putScale(block, n.scale[0])
			} else {
				Q8_0.pack(wide[:], block)
			}
		}
	})
	to := &Weights{typ: Q8_0, outputs: w.outputs, inputs: w.inputs, data: data}
	if err := to.Check(); err != nil {
		return nil, fmt.Errorf("blas: weights: numbers of %v are too large for %v: %w", w.typ, Q8_0, err)
	}
	return to, nil
}

// largest returns the largest number of the type. Scales are float16.
func (t Type) largest() float32 {
	switch t {
	case Float32:
		return math.MaxFloat32
	case BFloat16:
		return 0x1.FEp127
	}
	return 65504
}

func (t Type) holds(x float32) bool { return -t.largest() <= x && x <= t.largest() }

// putScale writes the nearest float16 to b and returns it with its inverse, 0 for 0.
func putScale(b []byte, scale float32) (rounded, inverse float32) {
	binary.LittleEndian.PutUint16(b, half.ToFloat16(scale))
	if rounded = float16At(b); rounded != 0 {
		inverse = 1 / rounded
	}
	return rounded, inverse
}

// nearest returns the integer of [low, high] that is nearest to x.
func nearest(x float32, low, high int) int {
	return min(max(int(math.RoundToEven(float64(x))), low), high)
}

// pack writes a block of numbers.
func (t Type) pack(x []float32, to []byte) {
	low, high := slices.Min(x), slices.Max(x)
	largest := high // with its sign: the number of the largest magnitude
	if -low > high {
		largest = low
	}
	halves := func(to []byte, q func(x float32) int) { // as unpack reads them; returns what does not fit into four bits
		for j := range 16 {
			to[j] = byte(q(x[j])&15 | q(x[j+16])&15<<4)
		}
	}
	fifths := func(q func(x float32) int) (bits uint32) {
		for j, x := range x {
			bits |= uint32(q(x)) >> 4 & 1 << j
		}
		return bits
	}
	switch t {
	case BFloat16:
		binary.LittleEndian.PutUint16(to, half.ToBFloat16(x[0]))
	case Float16:
		binary.LittleEndian.PutUint16(to, half.ToFloat16(x[0]))
	case Q8_0:
		_, inverse := putScale(to, max(high, -low)/127)
		for j, x := range x {
			to[2+j] = byte(nearest(x*inverse, -127, 127))
		}
	case Q4_0:
		_, inverse := putScale(to, largest/-8)
		halves(to[2:], func(x float32) int { return nearest(x*inverse, -8, 7) + 8 })
	case Q5_0:
		_, inverse := putScale(to, largest/-16)
		q := func(x float32) int { return nearest(x*inverse, -16, 15) + 16 }
		binary.LittleEndian.PutUint32(to[2:], fifths(q))
		halves(to[6:], q)
	case Q5_1:
		_, inverse := putScale(to, (high-low)/31)
		m, _ := putScale(to[2:], low)
		q := func(x float32) int { return nearest((x-m)*inverse, 0, 31) }
		binary.LittleEndian.PutUint32(to[4:], fifths(q))
		halves(to[8:], q)
	case Q4_K:
		packQ4K(x, to)
	case Q6_K:
		packQ6K(x, to)
	}
}

func packQ4K(x []float32, to []byte) {
	var scale, m [8]float32
	for i := range scale {
		scale[i], m[i] = bestAffine(x[32*i:][:32], 15)
	}
	d, inverse := putScale(to, slices.Max(scale[:])/63)
	dm, inverseM := putScale(to[2:], slices.Max(m[:])/63)
	factors := to[4:16]
	for i := range scale {
		s, b := nearest(scale[i]*inverse, 0, 63), nearest(m[i]*inverseM, 0, 63)
		if i < 4 {
			factors[i] |= byte(s)
			factors[i+4] |= byte(b)
		} else {
			factors[i+4] = byte(s&15 | b&15<<4)
			factors[i-4] |= byte(s >> 4 << 6)
			factors[i] |= byte(b >> 4 << 6)
		}
		var inverse float32
		if s > 0 && d > 0 {
			inverse = 1 / (d * float32(s))
		}
		for j, x := range x[32*i:][:32] {
			to[16+i/2*32+j] |= byte(nearest((x+dm*float32(b))*inverse, 0, 15) << (i % 2 * 4))
		}
	}
}

// bestAffine returns scale and m ≥ 0 for which scale·q - m, with integers q from 0 to most, is near to x: of a few candidates, the least squares of the errors,
// in which large numbers count more.
func bestAffine(x []float32, most int) (scale, m float32) {
	low, high := min(0, slices.Min(x)), slices.Max(x)
	if high <= low {
		return 0, -low
	}
	var squares float32
	for _, x := range x {
		squares += x * x
	}
	typical := float32(math.Sqrt(float64(squares / float32(len(x)))))
	best := float32(math.Inf(1))
	for try := range 9 {
		inverse := (float32(most) - 1 + 0.25*float32(try)) / (high - low)
		var n, sq, sqq, sx, sxq, sxx float32 // weighted sums
		for _, x := range x {
			w := typical + max(x, -x)
			q := float32(nearest((x-low)*inverse, 0, most))
			n += w
			sq += w * q
			sqq += w * q * q
			sx += w * x
			sxq += w * x * q
			sxx += w * x * x
		}
		var a, b float32
		if det := n*sqq - sq*sq; det > 0 {
			a, b = (n*sxq-sx*sq)/det, (sqq*sx-sq*sxq)/det
		}
		if b > 0 && sqq > 0 { // m cannot be negative
			a, b = sxq/sqq, 0
		}
		if e := sxx + a*a*sqq + b*b*n + 2*(a*b*sq-a*sxq-b*sx); a > 0 && e < best {
			best, scale, m = e, a, -b
		}
	}
	if scale == 0 {
		return (high - low) / float32(most), -low
	}
	return scale, m
}

func packQ6K(x []float32, to []byte) {
	var scale [16]float32
	largest := 0
	for i := range scale {
		scale[i] = bestScale(x[16*i:][:16])
		if math.Abs(float64(scale[i])) > math.Abs(float64(scale[largest])) {
			largest = i
		}
	}
	d, inverse := putScale(to[208:], scale[largest]/-128)
	for i := range scale {
		s := nearest(scale[i]*inverse, -128, 127)
		to[192+i] = byte(s)
		var inverse float32
		if s != 0 && d != 0 {
			inverse = 1 / (d * float32(s))
		}
		for j, x := range x[16*i:][:16] {
			q, at := nearest(x*inverse, -32, 31)+32, 16*i+j
			to[at/128*64+at%64] |= byte(q & 15 << (at / 64 % 2 * 4))
			to[128+at/128*32+at%32] |= byte(q >> 4 << (at / 32 % 4 * 2))
		}
	}
}

// bestScale returns a scale for which scale·q, with integers q from -32 to 31, is near to x: of a few candidates, the least squares of the relative errors.
func bestScale(x []float32) (scale float32) {
	var largest float32
	for _, x := range x {
		if max(x, -x) > max(largest, -largest) {
			largest = x
		}
	}
	if largest == 0 {
		return 0
	}
	var best float32
	for try := range 7 {
		inverse := -(32 + 0.3*float32(try-3)) / largest
		var sxq, sqq float32
		for _, x := range x {
			q := float32(nearest(x*inverse, -32, 31))
			sxq += x * x * x * q
			sqq += x * x * q * q
		}
		if sqq > 0 && sxq*sxq > best*sqq {
			best, scale = sxq*sxq/sqq, sxq/sqq
		}
	}
	return scale
}
