package tensorfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/gomamba/mamba/internal/half"
)

// Dtype is the type of a tensor's elements on file, by the name that the safetensors format gives it.
type Dtype string

// The types that can be read. Float16 and BFloat16 are only read, not written.
const (
	Float64  Dtype = "F64"
	Float32  Dtype = "F32"
	Float16  Dtype = "F16"
	BFloat16 Dtype = "BF16"
	Int64    Dtype = "I64"
)

// widths are the bytes of an element, for all types of the format.
var widths = map[Dtype]int64{
	Float64: 8, Float32: 4, Float16: 2, BFloat16: 2, "F8_E5M2": 1, "F8_E4M3": 1,
	Int64: 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}

// Size returns the bytes of an element, 0 for a type that the format does not have.
func (d Dtype) Size() int64 { return widths[d] }

// Float reports whether tensors of the type can be read as weights.
func (d Dtype) Float() bool { return d == Float64 || d == Float32 || d == Float16 || d == BFloat16 }

// dtypeOf returns the type on file and the length of a slice. ok is false if the slice cannot be written.
func dtypeOf(data any) (d Dtype, n int, ok bool) {
	switch data := data.(type) {
	case []float32:
		return Float32, len(data), true
	case []float64:
		return Float64, len(data), true
	case []int64:
		return Int64, len(data), true
	}
	return "", 0, false
}

// decode converts little-endian elements of type d to the type of to. If an element is not a number, or is too large for that type, it
// returns the index of the element and an error.
func decode[T float32 | float64](to []T, from []byte, d Dtype) (int, error) {
	switch d {
	case Float64:
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
	case Float32:
		for i := range to {
			x := math.Float32frombits(binary.LittleEndian.Uint32(from[4*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	case Float16:
		for i := range to {
			x := half.FromFloat16(binary.LittleEndian.Uint16(from[2*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	case BFloat16:
		for i := range to {
			x := half.FromBFloat16(binary.LittleEndian.Uint16(from[2*i:]))
			to[i] = T(x)
			if x != x {
				return i, errNaN
			}
		}
	default:
		panic("tensorfile: decode of " + string(d))
	}
	return 0, nil
}

var errNaN = errors.New("is not a number")

// nanIn returns the index of the first element that is not a number, or -1.
func nanIn(data any) int {
	switch data := data.(type) {
	case []float32:
		return slices.IndexFunc(data, func(x float32) bool { return x != x })
	case []float64:
		return slices.IndexFunc(data, func(x float64) bool { return x != x })
	}
	return -1
}
