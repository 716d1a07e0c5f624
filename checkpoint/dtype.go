package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// dtype is the type of a tensor's elements on file, by the name that safetensors gives it. Types other than these four are
// known by their names alone.
type dtype string

const (
	float64s  dtype = "F64"
	float32s  dtype = "F32"
	float16s  dtype = "F16"
	bfloat16s dtype = "BF16"
)

// size returns the bytes of an element, 0 for a type that cannot be read.
func (d dtype) size() int64 {
	switch d {
	case float64s:
		return 8
	case float32s:
		return 4
	case float16s, bfloat16s:
		return 2
	}
	return 0
}

// decode converts little-endian elements; it returns what is wrong with one of them, and its index.
func decode[T float32 | float64](to []T, from []byte, d dtype) (int, error) {
	switch d {
	case float64s:
		for i := range to {
			x := math.Float64frombits(binary.LittleEndian.Uint64(from[8*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
			if math.IsInf(float64(to[i]), 0) && !math.IsInf(x, 0) {
				return i, fmt.Errorf("is %g, too large for %T", x, to[i])
			}
		}
	case float32s:
		for i := range to {
			x := math.Float32frombits(binary.LittleEndian.Uint32(from[4*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	case float16s:
		for i := range to {
			x := float16(binary.LittleEndian.Uint16(from[2*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	case bfloat16s:
		for i := range to {
			x := math.Float32frombits(uint32(binary.LittleEndian.Uint16(from[2*i:])) << 16)
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	default:
		panic("checkpoint: decode of " + string(d))
	}
	return 0, nil
}

var errNaN = errors.New("is not a number")

// float16 widens a half: 1 bit of sign, 5 of exponent with a bias of 15, 10 of fraction.
func float16(h uint16) float32 {
	sign, rest := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if rest >= 0x7c00 { // infinity, or no number
		return math.Float32frombits(sign | 0x7f800000 | (rest&0x3ff)<<13)
	}
	// Exponent and fraction stand where float32 has them, and the biases differ by 112: exact, for denormals as well.
	return math.Float32frombits(sign | math.Float32bits(math.Float32frombits(rest<<13)*0x1p112))
}

// encode is decode's inverse for the two types that are written: little-endian bytes of elements that are numbers.
func encode[T float32 | float64](to []byte, from []T) (int, error) {
	switch from := any(from).(type) {
	case []float32:
		for i, x := range from {
			if x != x {
				return i, errNaN
			}
			binary.LittleEndian.PutUint32(to[4*i:], math.Float32bits(x))
		}
	case []float64:
		for i, x := range from {
			if x != x {
				return i, errNaN
			}
			binary.LittleEndian.PutUint64(to[8*i:], math.Float64bits(x))
		}
	}
	return 0, nil
}
