package kernel

import (
	"math"
	"unsafe"
)

// Float is a type that the kernels compute in.
type Float interface{ float32 | float64 }

// exp returns e^x. In float64 it is math.Exp. In float32 it is a polynomial, which is three times as fast and has an error of at most two
// units in the last place.
func exp[T Float](x T) T {
	// The compiler knows the size of T when it instantiates the function, so the branch costs nothing.
	if unsafe.Sizeof(x) == 4 {
		return T(exp32(float32(x)))
	}
	return T(math.Exp(float64(x)))
}

// ln 2 in two parts. ln2Hi has few bits, so that its product with an integer is exact.
const (
	ln2Hi = 0.693359375
	ln2Lo = -2.12194440e-4
)

// exp32 writes x as k·ln 2 + r with |r| ≤ ln 2 / 2, and evaluates Cephes' polynomial for e^r.
func exp32(x float32) float32 {
	const (
		log2e = 1.44269504088896341
		// A float32 of about 1.5·2^23 has no bits for a fraction. So the low bits of the sum are x·log2e, rounded to an integer.
		toInteger = 12582912
	)
	if !(x > -87 && x < 88) { // the result is denormal or overflows, or x is NaN
		return float32(math.Exp(float64(x)))
	}
	shifted := float32(x*log2e) + toInteger
	k := shifted - toInteger
	r := x - k*ln2Hi - k*ln2Lo
	// Estrin's scheme has shorter chains of dependent operations than Horner's.
	r2 := r * r
	p := (1.9875691500e-4*r+1.3981999507e-3)*r2 + (8.3334519073e-3*r + 4.1665795894e-2)
	p = p*r2 + (1.6666665459e-1*r + 5.0000001201e-1)
	p = p*r2 + r + 1
	return p * math.Float32frombits((math.Float32bits(shifted)+127)<<23)
}

// softplus returns log(1 + e^x), or x if x > 20, the threshold of the reference implementation.
func softplus[T Float](x T) T {
	if x > 20 {
		return x
	}
	if unsafe.Sizeof(x) == 4 {
		return T(log1p32(exp32(float32(x))))
	}
	return T(math.Log1p(math.Exp(float64(x))))
}

// log1p32 returns log(1 + x) for x from 0 to 2^30, with an error of at most three units in the last place. It evaluates Cephes' polynomial
// for the logarithm of the rounded sum 1 + x, and adds a first-order correction for the rounding.
func log1p32(x float32) float32 {
	if !(x < 1<<30) { // out of range, or NaN
		return float32(math.Log1p(float64(x)))
	}
	sum := 1 + x
	lost := (x - (sum - 1)) / sum
	// sum = m·2^k with m in [√½, √2). Adding the difference between the bits of 1 and of √½ carries into the exponent if m were larger.
	bits := math.Float32bits(sum) + 0x3f800000 - 0x3f3504f3
	k := float32(int32(bits>>23) - 127)
	m := math.Float32frombits(bits&0x7fffff+0x3f3504f3) - 1
	p := float32(7.0376836292e-2)
	p = p*m - 1.1514610310e-1
	p = p*m + 1.1676998740e-1
	p = p*m - 1.2420140846e-1
	p = p*m + 1.4249322787e-1
	p = p*m - 1.6668057665e-1
	p = p*m + 2.0000714765e-1
	p = p*m - 2.4999993993e-1
	p = p*m + 3.3333331174e-1
	m2 := m * m
	return k*ln2Hi + (m + (p*m*m2 - 0.5*m2 + k*ln2Lo + lost))
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
