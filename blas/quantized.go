package blas

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/gomamba/mamba/internal/half"
)

// numbers are 32 numbers of a row of a quantized type: scale[i/16]·q[i] + m.
type numbers struct {
	q     [32]int8
	scale [2]float32
	m     float32
}

func float16At(b []byte) float32 { return half.FromFloat16(binary.LittleEndian.Uint16(b)) }

// unpack reads the numbers from 32·i on of a row. The layouts are those of llama.cpp (ggml-common.h).
func (t Type) unpack(row []byte, i int, to *numbers) {
	f := formats[t]
	at := 32 * i % f.block // within the block
	b := row[32*i/f.block*f.bytes:][:f.bytes]
	to.m = 0
	one := func(scale float32) { to.scale = [2]float32{scale, scale} }
	nibbles := func(b []byte, low int8) { // the lower halves of the bytes, then the upper ones
		for j, v := range b[:16] {
			to.q[j], to.q[j+16] = int8(v&15)-low, int8(v>>4)-low
		}
	}
	fifth := func(bits uint32) { // the highest of five bits
		for j := range to.q {
			to.q[j] += int8(bits>>j&1) << 4
		}
	}
	switch t {
	case Q8_0:
		one(float16At(b))
		for j, v := range b[2:] {
			to.q[j] = int8(v)
		}
	case Q4_0:
		one(float16At(b))
		nibbles(b[2:], 8)
	case Q5_0:
		one(float16At(b))
		nibbles(b[6:], 16)
		fifth(binary.LittleEndian.Uint32(b[2:]))
	case Q5_1:
		one(float16At(b))
		to.m = float16At(b[2:])
		nibbles(b[8:], 0)
		fifth(binary.LittleEndian.Uint32(b[4:]))
	case Q4_K:
		scale, m := factors(b[4:16], at/32)
		one(float16At(b) * float32(scale))
		to.m = -float16At(b[2:]) * float32(m)
		shift := at / 32 % 2 * 4
		for j, v := range b[16+at/64*32:][:32] {
			to.q[j] = int8(v >> shift & 15)
		}
	case Q6_K:
		d := float16At(b[208:])
		for j := range 2 {
			to.scale[j] = d * float32(int8(b[192+at/16+j]))
		}
		low, high := b[at/128*64+at/32%2*32:], b[128+at/128*32:]
		lowShift, highShift := at/64%2*4, at/32%4*2
		for j := range to.q {
			to.q[j] = int8(low[j]>>lowShift&15|high[j]>>highShift&3<<4) - 32
		}
	}
}

// factors returns the factors of the scale and of m for the eight parts of a block of Q4_K: six bits each, in twelve bytes.
func factors(b []byte, part int) (scale, m uint8) {
	if part < 4 {
		return b[part] & 63, b[part+4] & 63
	}
	return b[part+4]&15 | b[part-4]>>6<<4, b[part+4]>>4 | b[part]>>6<<4
}

// dot returns the product of the blocks of 32 from first on of a row with activations.
func (t Type) dot(row []byte, x quantized, first int) (sum float32) {
	var b numbers
	for i := first; i < x.blocks; i++ {
		t.unpack(row, i, &b)
		q, scale, total := x.block(i)
		var part [2]int32
		for j, w := range b.q {
			part[j/16] += int32(w) * int32(q[j])
		}
		sum += *scale*(b.scale[0]*float32(part[0])+b.scale[1]*float32(part[1])) + b.m**total
	}
	return sum
}

// quantized is a row of activations in blocks of 32: each number is q·scale. The memory has two blocks together, as the kernels read them: 64 q, the two
// scales, and the two sums of the numbers after rounding.
type quantized struct {
	memory []float32
	blocks int
}

const quantizedUnit = 20 // float32

// quantizedRow returns the number of float32 whose memory a row takes.
func quantizedRow(inputs int) int { return (inputs + 63) / 64 * quantizedUnit }

func (r quantized) block(i int) (q *[32]int8, scale, sum *float32) {
	unit := r.memory[i/2*quantizedUnit:][:quantizedUnit]
	return (*[32]int8)(unsafe.Pointer(&unit[i%2*8])), &unit[16+i%2], &unit[18+i%2]
}

// quantize writes the row. A block with a number that is not finite becomes NaN, and one of numbers below 2⁻¹⁰⁰ zero.
func (r quantized) quantize(x []float32) {
	if r.blocks%2 == 1 { // kernels of panels read a neighbour
		q, scale, sum := r.block(r.blocks)
		*q, *scale, *sum = [32]int8{}, 0, 0
	}
	for i := 2 * quantizeUnits(x[:32*r.blocks], r.memory); i < r.blocks; i++ {
		q, scale, total := r.block(i)
		block := x[32*i : 32*i+32]
		var largest float32
		for _, v := range block {
			largest = max(largest, max(v, -v)) // NaN if there is one
		}
		if !(largest <= math.MaxFloat32) {
			*q, *scale, *total = [32]int8{}, float32(math.NaN()), float32(math.NaN())
			continue
		}
		var inverse float32
		if *scale = 0; largest > 0x1p-100 { // below, the inverse could be infinite
			*scale, inverse = largest/127, 127/largest
		}
		var sum int32
		for j, v := range block {
			// Adding 1.5·2²³ rounds to the nearest integer, which is then in the low bits.
			n := int8(math.Float32bits(v*inverse + 0x1.8p23))
			q[j] = n
			sum += int32(n)
		}
		*total = *scale * float32(sum)
	}
}
