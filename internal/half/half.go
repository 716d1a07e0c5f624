// Package half converts between float32 and the two types of 16 bits: float16 of IEEE 754, and bfloat16, the upper half of a float32.
package half

import "math"

// FromFloat16 returns the float32 of a float16. A float16 has 1 bit for the sign, 5 for the exponent with a bias of 15, and 10 for the fraction.
func FromFloat16(h uint16) float32 {
	sign, rest := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if rest >= 0x7c00 { // infinity or NaN
		return math.Float32frombits(sign | 0x7f800000 | (rest&0x3ff)<<13)
	}
	// Shifted by 13 bits, exponent and fraction are where float32 has them. The factor corrects the exponent's bias, 127 instead of 15.
	// Both operations are exact, for subnormal numbers too.
	return math.Float32frombits(sign | math.Float32bits(math.Float32frombits(rest<<13)*0x1p112))
}

// ToFloat16 returns the nearest float16, the even one of two. Numbers from 65520 on become infinite.
func ToFloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	sign, rest := uint16(bits>>16)&0x8000, bits&0x7fffffff
	switch {
	case rest > 0x7f800000:
		return sign | 0x7e00
	case rest >= 0x477ff000: // 65520
		return sign | 0x7c00
	case rest < 0x38800000: // subnormal: a multiple of 2⁻²⁴, to which the addition rounds
		return sign | uint16(math.Float32bits(math.Float32frombits(rest)+0.5)-math.Float32bits(0.5))
	}
	rest += 0xfff + rest>>13&1
	return sign | uint16((rest-0x38000000)>>13)
}

// FromBFloat16 returns the float32 of a bfloat16.
func FromBFloat16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// ToBFloat16 returns the nearest bfloat16, the even one of two.
func ToBFloat16(x float32) uint16 {
	bits := math.Float32bits(x)
	if bits&0x7fffffff > 0x7f800000 { // rounding could make a NaN infinite
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}
