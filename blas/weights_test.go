package blas

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/cpu"
	"github.com/gomamba/mamba/internal/half"
)

func allTypes() (all []Type) {
	for t := range types {
		all = append(all, t)
	}
	return all
}

// randomWeights returns weights whose bytes are arbitrary, but for scales of moderate size.
func randomWeights(t Type, outputs, inputs int, r fill) *Weights {
	f := formats[t]
	data := make([]byte, outputs*inputs/f.block*f.bytes)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	scale := func(b []byte) {
		h := half.ToFloat16(float32(r.NormFloat64()))
		b[0], b[1] = byte(h), byte(h>>8)
	}
	for b := data; len(b) > 0; b = b[f.bytes:] {
		switch t {
		case Float32:
			bits := math.Float32bits(float32(r.NormFloat64()))
			b[0], b[1], b[2], b[3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
		case BFloat16:
			h := half.ToBFloat16(float32(r.NormFloat64()))
			b[0], b[1] = byte(h), byte(h>>8)
		case Q6_K:
			scale(b[208:])
		case Q5_1, Q4_K:
			scale(b[2:])
			fallthrough
		default:
			scale(b)
		}
	}
	w, err := NewWeights(t, outputs, inputs, data)
	if err != nil {
		panic(err)
	}
	return w
}

// activations returns what the weights multiply after Prepare, for one row.
func (w *Weights) activations(p Prepared, row int) []float64 {
	x := make([]float64, w.inputs)
	at := p.data[row*p.ld:]
	switch {
	case w.typ == BFloat16 && wordProducts():
		for j := range x {
			x[j] = float64(half.FromBFloat16(words(at)[j]))
		}
	case w.typ.quantized():
		for j := range x {
			q, scale, _ := quantized{at, w.inputs / 32}.block(j / 32)
			x[j] = float64(q[j%32]) * float64(*scale)
		}
	default:
		for j := range x {
			x[j] = float64(at[j])
		}
	}
	return x
}

// reference returns the product in float64, and a bound of the error of an element: the sum of the magnitudes of its terms.
func (w *Weights) reference(p Prepared, add []float32) (want, magnitude []float64) {
	row := make([]float32, w.inputs)
	want, magnitude = make([]float64, p.rows*w.outputs), make([]float64, p.rows*w.outputs)
	for i := range p.rows {
		x := w.activations(p, i)
		for j := range w.outputs {
			w.Row(j, row)
			at := i*w.outputs + j
			if add != nil {
				want[at], magnitude[at] = float64(add[at]), math.Abs(float64(add[at]))
			}
			for l, v := range row {
				want[at] += float64(v) * x[l]
				magnitude[at] += math.Abs(float64(v) * x[l])
			}
			if w.typ.quantized() { // q and m are multiplied separately
				var b numbers
				for l := 0; l < w.inputs; l += 32 {
					w.typ.unpack(w.row(j), l/32, &b)
					_, _, sum := quantized{p.data[i*p.ld:], w.inputs / 32}.block(l / 32)
					magnitude[at] += 2 * math.Abs(float64(b.m)*float64(*sum))
					for n := range b.q {
						magnitude[at] += 32 * math.Abs(float64(b.scale[n/16])*x[l+n])
					}
				}
			}
		}
	}
	return want, magnitude
}

func TestWeights(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, typ := range allTypes() {
			t.Run(typ.String(), func(t *testing.T) {
				rapid.Check(t, func(t *rapid.T) {
					unit := typ.Block()
					outputs := rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(31, 70)).Draw(t, "outputs")
					inputs := unit * rapid.IntRange(1, max(1, 100/unit)).Draw(t, "blocks")
					rows := rapid.SampledFrom([]int{1, 1, 2, 3, 4, 7, 8, 9, 25, 34}).Draw(t, "rows")
					r := newFill(rapid.Uint64().Draw(t, "seed"))
					w := randomWeights(typ, outputs, inputs, r)
					ldx, ldd := inputs+rapid.IntRange(0, 3).Draw(t, "gap"), outputs+rapid.IntRange(0, 3).Draw(t, "gap of dst")
					x := newMatrix((rows-1)*ldx+inputs, rapid.IntRange(0, 15).Draw(t, "shift"))
					r.normal(x.data)
					scratch := newMatrix(w.Scratch(rows), 3)
					p := w.Prepare(x.data, ldx, rows, scratch.data)
					if p.Rows() != rows || !scratch.intact() {
						t.Fatalf("%d rows, want %d; the scratch is intact: %t", p.Rows(), rows, scratch.intact())
					}
					for _, add := range []bool{false, true} {
						dst := newMatrix((rows-1)*ldd+outputs, rapid.IntRange(0, 15).Draw(t, "shift of dst"))
						r.normal(dst.data)
						var before []float32
						for i := range rows {
							before = append(before, dst.data[i*ldd:][:outputs]...)
						}
						parts := dst.clone()
						whole := dst.clone()
						w.MulRange(dst.data, ldd, p, 0, outputs, add)
						w.Mul(whole.data, ldd, x.data, ldx, rows, add)
						middle := rapid.IntRange(0, outputs).Draw(t, "middle")
						w.MulRange(parts.data, ldd, p, 0, middle, add)
						w.MulRange(parts.data, ldd, p, middle, outputs, add)
						if !add {
							before = nil
						}
						want, magnitude := w.reference(p, before)
						for i := range rows {
							for j := range outputs {
								got, at := float64(dst.data[i*ldd+j]), i*outputs+j
								if !(math.Abs(got-want[at]) <= float64(inputs+8)*0x1p-24*magnitude[at]) {
									t.Fatalf("%d×%d, %d rows, add %t: output %d of row %d is %g, want %g of %g", outputs, inputs, rows, add, j, i, got, want[at], magnitude[at])
								}
							}
						}
						if !dst.intact() || !slices.Equal(dst.all, parts.all) || !slices.Equal(dst.all, whole.all) {
							t.Fatalf("%d×%d, %d rows, add %t: parts or other memory differ", outputs, inputs, rows, add)
						}
					}
				})
			})
		}
	})
}

// Rows of weights that are longer than a part of a panel.
func TestWeightsLong(t *testing.T) {
	const rows, outputs = 26, 33
	for _, typ := range allTypes() {
		inputs := max(1055/typ.Block(), 1) * typ.Block()
		w, x := randomWeights(typ, outputs, inputs, newFill(4)), normal(rows*inputs)
		for _, add := range [][]float32{nil, normal(rows * outputs)} {
			dst := make([]float32, rows*outputs)
			copy(dst, add)
			p := w.Prepare(x, inputs, rows, make([]float32, w.Scratch(rows)))
			w.MulRange(dst, outputs, p, 0, outputs, add != nil)
			want, magnitude := w.reference(p, add)
			for i, y := range dst {
				if !(math.Abs(float64(y)-want[i]) <= float64(inputs+8)*0x1p-24*magnitude[i]) {
					t.Fatalf("%v, add %t: %d is %g, want %g", typ, add != nil, i, y, want[i])
				}
			}
		}
	}
}

// Up to fewRows rows, each has the bits that it has alone: what a sequence of a batch gets does not depend on the others.
func TestWeightsRowsAlone(t *testing.T) {
	const outputs = 9
	eachLevel(t, func(t *testing.T) {
		for _, typ := range append(allTypes(), Float32) {
			inputs := max(345/typ.Block(), 1) * typ.Block()
			w, x := randomWeights(typ, outputs, inputs, newFill(6)), normal(fewRows*inputs)
			var alone []float32
			for i := range fewRows {
				alone = append(alone, make([]float32, outputs)...)
				w.Mul(alone[i*outputs:], outputs, x[i*inputs:], inputs, 1, false)
			}
			for rows := 2; rows <= fewRows; rows++ {
				dst := make([]float32, rows*outputs)
				w.Mul(dst, outputs, x, inputs, rows, false)
				if !slices.Equal(dst, alone[:len(dst)]) {
					t.Fatalf("%v: of %d rows, one has other bits than alone", typ, rows)
				}
			}
		}
	})
}

// A NaN or an infinity of the activations reaches all outputs of its row, and no other row.
func TestWeightsSpecialValues(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, typ := range allTypes() {
			for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e-45, 0, 3e38} {
				const rows, outputs, inputs = 26, 9, 256
				w := randomWeights(typ, outputs, inputs, newFill(5))
				for _, rows := range []int{3, rows} {
					x, dst := make([]float32, rows*inputs), make([]float32, rows*outputs)
					x[inputs+7] = float32(v)
					w.Mul(dst, outputs, x, inputs, rows, false)
					for i, y := range dst {
						finite := y-y == 0
						if special := math.IsNaN(v) || math.IsInf(v, 0); i/outputs == 1 && special == finite && v < 3e38 || i/outputs != 1 && y != 0 {
							t.Errorf("%v, %v: output %d is %v", typ, v, i, y)
						}
					}
				}
			}
		}
	})
}

// A processor with AVX-512 but without the products of integers and of bfloat16 computes what one with AVX2 does.
func TestWeightsOldAVX512(t *testing.T) {
	best, integers, words := level, cpu.IntegerProducts, cpu.BFloat16
	if best != cpu.AVX512 {
		t.Skip("the processor has no AVX-512")
	}
	defer func() { level, cpu.IntegerProducts, cpu.BFloat16 = best, integers, words }()
	for _, typ := range []Type{BFloat16, Q8_0, Q4_0, Q5_0, Q5_1, Q4_K, Q6_K} {
		for _, rows := range []int{1, 30} {
			w, x, dst := randomWeights(typ, 50, 512, newFill(3)), normal(rows*512), [2][]float32{}
			for i := range dst {
				cpu.IntegerProducts, cpu.BFloat16, level = false, false, best-cpu.Level(i)
				dst[i] = make([]float32, rows*50)
				w.Mul(dst[i], 50, x, 512, rows, false)
			}
			if !slices.Equal(dst[0], dst[1]) {
				t.Errorf("%v, %d rows: bits differ", typ, rows)
			}
		}
	}
}

// The result is the same for any number of processors.
func TestWeightsProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, typ := range allTypes() {
		for _, rows := range []int{1, 30} {
			w := randomWeights(typ, 1200, 512, newFill(3))
			x, dst := normal(rows*512), [2][]float32{}
			for i := range dst {
				runtime.GOMAXPROCS(1 + 2*i)
				dst[i] = make([]float32, rows*1200)
				w.Mul(dst[i], 1200, x, 512, rows, false)
			}
			if !slices.Equal(dst[0], dst[1]) {
				t.Errorf("%v, %d rows: bits differ", typ, rows)
			}
		}
	}
}

// Quantized numbers are near to what they stand for; a second quantization of the same type changes little.
func TestQuantize(t *testing.T) {
	relative := map[Type]float64{ // root mean square of the error of normal numbers, divided by theirs
		Float32: 0, BFloat16: 0.0017, Float16: 0.00025, Q8_0: 0.0056, Q4_0: 0.11, Q5_0: 0.055, Q5_1: 0.043, Q4_K: 0.075, Q6_K: 0.024,
	}
	const outputs, inputs = 16, 512
	for _, typ := range allTypes() {
		for _, scale := range []float32{1, 1e-3, 200} {
			data := normal(outputs * inputs)
			for i := range data {
				data[i] *= scale
			}
			w, err := Quantize(typ, outputs, inputs, data)
			if err != nil {
				t.Fatal(err)
			}
			f := formats[typ]
			if w.Type() != typ || w.Outputs() != outputs || w.Inputs() != inputs || w.Bytes() != outputs*inputs/f.block*f.bytes {
				t.Errorf("%v: %v, %d×%d, %d bytes", typ, w.Type(), w.Outputs(), w.Inputs(), w.Bytes())
			}
			got := make([]float32, inputs)
			var errors, squares float64
			for i := range outputs {
				w.Row(i, got)
				for j, x := range data[i*inputs:][:inputs] {
					errors += float64(got[j]-x) * float64(got[j]-x)
					squares += float64(x) * float64(x)
				}
			}
			if e := math.Sqrt(errors / squares); e > relative[typ] || e < relative[typ]/2 {
				t.Errorf("%v: the error is %.5f at %g, want at most %g, and more than half of it", typ, e, scale, relative[typ])
			}
		}
	}
}

// What is exact in a type stays exact: zeros, one number repeated, and extreme numbers do not become NaN.
func TestQuantizeSpecial(t *testing.T) {
	for _, typ := range allTypes() {
		for _, x := range [][2]float32{{0, 0}, {1, 1}, {-1, -1}, {-2, 0}, {0, 2}, {1e-30, -1e-30}, {6e4, -6e4}} {
			data := make([]float32, 256)
			for i := range data {
				data[i] = x[i%2]
			}
			w, err := Quantize(typ, 1, 256, data)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]float32, 256)
			w.Row(0, got)
			for i, y := range got {
				if diff := math.Abs(float64(y - data[i])); !(diff <= 0.13*math.Abs(float64(x[0]-x[1]))+0.01*math.Abs(float64(x[0]))+0x1p-25) {
					t.Fatalf("%v: %v becomes %v", typ, x, got[:2])
				}
			}
		}
	}
}

func TestWeightsErrors(t *testing.T) {
	nan := make([]float32, 256)
	nan[3] = float32(math.NaN())
	large := make([]float32, 256)
	large[9] = 1e5
	for _, c := range []struct {
		want string
		f    func() (*Weights, error)
	}{
		{"the type is Type(77), want one of float32 to Q6_K", func() (*Weights, error) { return NewWeights(77, 1, 1, make([]byte, 4)) }},
		{"outputs is 0, want at least 1", func() (*Weights, error) { return NewWeights(Q8_0, 0, 32, nil) }},
		{"inputs is -32, want 1 to", func() (*Weights, error) { return NewWeights(Q8_0, 1, -32, nil) }},
		{"inputs is 128, want a multiple of 256 for Q4_K", func() (*Weights, error) { return NewWeights(Q4_K, 1, 128, make([]byte, 72)) }},
		{"data has 33 bytes, want 1 rows of 34", func() (*Weights, error) { return NewWeights(Q8_0, 1, 32, make([]byte, 33)) }},
		{fmt.Sprintf("data has 34 bytes, want %d rows of 34", math.MaxInt), func() (*Weights, error) { return NewWeights(Q8_0, math.MaxInt, 32, make([]byte, 34)) }},
		{"data has 256 numbers, want 2 × 256", func() (*Weights, error) { return Quantize(Q8_0, 2, 256, make([]float32, 256)) }},
		{"data[3] is NaN, want at most ±3.3895314e+38 for bfloat16", func() (*Weights, error) { return Quantize(BFloat16, 1, 256, nan) }},
		{"data[9] is 100000, want at most ±65504 for Q4_K", func() (*Weights, error) { return Quantize(Q4_K, 1, 256, large) }},
	} {
		if _, err := c.f(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// Activations differ from their blocks by at most half a step.
func TestQuantizedActivations(t *testing.T) {
	x := normal(320)
	for i := range x {
		x[i] *= float32(math.Exp(float64(i/32*9 - 40)))
	}
	r := quantized{make([]float32, quantizedRow(len(x))), len(x) / 32}
	r.quantize(x)
	for i, v := range x {
		q, scale, total := r.block(i / 32)
		var sum float64
		for _, q := range q {
			sum += float64(q) * float64(*scale)
		}
		if d := math.Abs(float64(q[i%32])*float64(*scale) - float64(v)); d > 0.501*float64(*scale) || math.Abs(sum-float64(*total)) > 1e-6*math.Abs(sum) {
			t.Fatalf("%d: %g differs by %g, scale %g; sum %g, want %g", i, v, d, *scale, *total, sum)
		}
	}
}

// Each level prepares activations to the same bits.
func TestPrepareLevels(t *testing.T) {
	x := append(normal(64*7), make([]float32, 64+32+5)...)
	for i, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 3.4e38, -3.4e38, 0x1p-101, 1e-45, math.Copysign(0, -1)} {
		x[40*i+i*i] = float32(v)
	}
	for i := range 32 {
		x[64*7+i] = 0x1p-140 * float32(i)
		x[64*8+i] = math.Float32frombits(0x3f808000 + uint32(i)<<16) // between two bfloat16
		x[96+i] *= 1e-20
	}
	for _, typ := range []Type{BFloat16, Q8_0} {
		inputs := len(x) / typ.Block() * typ.Block()
		w := randomWeights(typ, 1, inputs, newFill(1))
		var want []uint64
		eachLevel(t, func(t *testing.T) {
			p := w.Prepare(x, inputs, 1, make([]float32, w.Scratch(1)))
			var got []uint64
			if typ == BFloat16 {
				for _, v := range w.activations(p, 0) {
					got = append(got, math.Float64bits(v))
				}
			} else {
				for _, v := range p.data {
					got = append(got, uint64(math.Float32bits(v)))
				}
			}
			if want == nil {
				want = got
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v: bits differ from those of the lowest level", typ)
			}
		})
	}
}

// TestInt8 checks that weights in Q8_0 have the numbers of the type that they were made of: the same of Q4_0 and Q5_0, and those of others within half a step.
func TestInt8(t *testing.T) {
	r := rand.New(rand.NewPCG(41, 41))
	const outputs, inputs = 3, 512
	numbers := make([]float32, outputs*inputs)
	for i := range numbers {
		numbers[i] = float32(r.NormFloat64())
	}
	clear(numbers[64:128])
	for typ := range types {
		w, err := Quantize(typ, outputs, inputs, numbers)
		if err != nil {
			t.Fatal(err)
		}
		q, err := w.Int8()
		if !typ.quantized() {
			if err == nil || !strings.Contains(err.Error(), "want a quantized one") {
				t.Errorf("%v: %v", typ, err)
			}
			continue
		}
		if err != nil || q.Type() != Q8_0 || typ == Q8_0 && q != w {
			t.Fatalf("%v: %v, %v", typ, q.Type(), err)
		}
		exact := typ == Q4_0 || typ == Q5_0 || typ == Q8_0
		var got, want [inputs]float32
		for i := range outputs {
			if row := q.RowBytes(i); len(row) != inputs/32*34 {
				t.Fatalf("%v: a row has %d bytes", typ, len(row))
			}
			q.Row(i, got[:])
			w.Row(i, want[:])
			for j := range got {
				most := slices.Max(want[j/32*32:][:32])
				most = max(most, -slices.Min(want[j/32*32:][:32]))
				if far := got[j] - want[j]; exact && far != 0 || max(far, -far) > 0.51*most/127 {
					t.Fatalf("%v: number %d of row %d is %v, want %v", typ, j, i, got[j], want[j])
				}
			}
		}
	}
	large, err := NewWeights(Q4_K, 1, 256, slices.Concat([]byte{0xff, 0x7b, 0, 0, 63, 63, 63, 63, 0, 0, 0, 0, 0, 0, 0, 0}, slices.Repeat([]byte{0xff}, 128)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := large.Int8(); err == nil || !strings.Contains(err.Error(), "numbers of Q4_K are too large for Q8_0") {
		t.Errorf("large numbers: %v", err)
	}
}
