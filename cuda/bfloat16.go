package cuda

import "math"

// BFloat16 is the upper half of a float32: its range, with 8 significant bits.
type BFloat16 uint16

// ToBFloat16 rounds to the nearest, halves to even.
func ToBFloat16(x float32) BFloat16 {
	u := math.Float32bits(x)
	if x != x {
		return BFloat16(u>>16 | 0x40)
	}
	return BFloat16((u + 0x7fff + u>>16&1) >> 16)
}

// Float32 is the number itself.
func (x BFloat16) Float32() float32 { return math.Float32frombits(uint32(x) << 16) }

// Activation is what activations on the device are of. All arithmetic with them is float32.
type Activation interface {
	~float32 | BFloat16
}

// typeName is what kernels call the type.
func typeName[T Activation]() string {
	var v T
	if _, ok := any(v).(BFloat16); ok {
		return "bf16"
	}
	return "float"
}

// Precision is how a model computes.
type Precision int

const (
	Strict Precision = iota // in float32
	TF32                    // matrix products round their operands to 10 bits behind the point
	BF16                    // activations and matrix products in bfloat16, weights, states and sums in float32
)

func (p Precision) String() string {
	switch p {
	case Strict:
		return "float32"
	case TF32:
		return "tf32"
	case BF16:
		return "bf16"
	}
	return "unknown"
}
