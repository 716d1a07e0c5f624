package cuda

import (
	"fmt"
	"math"
)

// BFloat16 is the upper half of a float32. It has the range of float32 and 8 significant bits.
type BFloat16 uint16

// ToBFloat16 rounds x to the nearest BFloat16, and ties to even.
func ToBFloat16(x float32) BFloat16 {
	u := math.Float32bits(x)
	if x != x {
		return BFloat16(u>>16 | 0x40)
	}
	return BFloat16((u + 0x7fff + u>>16&1) >> 16)
}

// Float32 returns x as a float32, which is exact.
func (x BFloat16) Float32() float32 { return math.Float32frombits(uint32(x) << 16) }

// Activation is a type that activations on the device can have. All arithmetic with activations is in float32.
type Activation interface {
	~float32 | BFloat16
}

// typeName returns the name of the type in the names of kernels.
func typeName[T Activation]() string {
	var v T
	if _, ok := any(v).(BFloat16); ok {
		return "bf16"
	}
	return "float"
}

// Precision is the number format in which a model computes.
type Precision int

const (
	Strict Precision = iota // float32
	FP16x3                  // float32, but matrix products have operands of 22 significant bits, each in two parts in float16
	TF32                    // float32, but matrix products round their operands to 11 significant bits
	BF16                    // activations and operands of matrix products in bfloat16; weights, states and sums in float32
)

// Err returns an error if p is not a precision.
func (p Precision) Err() error {
	if p < Strict || p > BF16 {
		return fmt.Errorf("precision is %d, want cuda.Strict, cuda.FP16x3, cuda.TF32 or cuda.BF16", int(p))
	}
	return nil
}

func (p Precision) String() string {
	switch p {
	case Strict:
		return "float32"
	case FP16x3:
		return "fp16x3"
	case TF32:
		return "tf32"
	case BF16:
		return "bf16"
	}
	return "unknown"
}
