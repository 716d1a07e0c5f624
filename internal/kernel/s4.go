package kernel

import (
	"math"
	"math/cmplx"
)

// S4 is a time-invariant state space model for each channel (Gu and Dao, "Mamba", algorithm 1; Gu et al., "On the Parameterization and
// Initialization of Diagonal State Space Models", S4D). Δ = e^LogDelta. Each mode n has a = -e^LogDecay + i·Frequency, which is
// discretised to w and b:
//
//	h_t = w h_{t-1} + b u_t
//	y_t = s·Re Σ_n c_n h_t + D u_t
//
// A complex mode stands for itself and its conjugate, so s = 2. Real modes have no Frequency and s = 1. The input matrix B is 1, since y
// depends only on its product with c.
//
// Convolve processes whole sequences, Scan goes step by step. They compute the same function. Both compute in float64 for either type, since
// the convolution kernel is a sum of powers of w up to the length and a transform adds up all steps. Their cost is small compared with the
// matrix products around them.
type S4[T Float] struct {
	Batch, Length, Channels, Modes int
	Bilinear                       bool // w = (1 + Δa/2)/(1 - Δa/2), b = Δ/(1 - Δa/2); else w = e^{Δa}, b = (w - 1)/a

	U                   []T // (batch, length, channels)
	LogDelta            []T // (channels)
	LogDecay, Frequency []T // (channels, modes); Frequency is nil for real modes
	C                   []T // (channels, state): the real parts of all modes, then, for complex modes, the imaginary parts
	D                   []T // (channels), or nil

	Initial []T    // only for Scan: (batch, channels, state), in the order of C, or nil
	Start   []bool // only for Scan: (batch, length), or nil
}

// S4Grad receives the gradients of an S4's operands, in their shapes. Those of absent operands are nil.
type S4Grad[T Float] struct {
	U, LogDelta, LogDecay, Frequency, C, D, Initial []T
}

// state returns the number of real numbers in a channel's state.
func (s *S4[T]) state() int {
	if s.Frequency == nil {
		return s.Modes
	}
	return 2 * s.Modes
}

// mode is a discretised mode of a channel.
type mode struct {
	a, w, b, c complex128
	delta      float64
}

// scale returns s, 1 for real modes and 2 for complex modes.
func (s *S4[T]) scale() float64 {
	if s.Frequency == nil {
		return 1
	}
	return 2
}

// modes writes a channel's modes.
func (s *S4[T]) modes(m []mode, d int) {
	delta := math.Exp(float64(s.LogDelta[d]))
	for n := range m {
		at := d*s.Modes + n
		a := complex(-math.Exp(float64(s.LogDecay[at])), 0)
		if s.Frequency != nil {
			a += complex(0, float64(s.Frequency[at]))
		}
		m[n] = mode{a: a, delta: delta, c: s.complexAt(s.C, d, n)}
		m[n].discretise(s.Bilinear)
	}
}

// complexAt returns the value of mode n in row d of v (…, state), whose rows have the order of C.
func (s *S4[T]) complexAt(v []T, d, n int) complex128 {
	if s.Frequency == nil {
		return complex(float64(v[d*s.Modes+n]), 0)
	}
	v = v[2*d*s.Modes:]
	return complex(float64(v[n]), float64(v[s.Modes+n]))
}

func (s *S4[T]) setComplex(v []T, d, n int, z complex128) {
	if s.Frequency == nil {
		v[d*s.Modes+n] = T(real(z))
		return
	}
	v = v[2*d*s.Modes:]
	v[n], v[s.Modes+n] = T(real(z)), T(imag(z))
}

func (m *mode) discretise(bilinear bool) {
	z := complex(m.delta, 0) * m.a
	if bilinear {
		m.w = (1 + z/2) / (1 - z/2)
		m.b = complex(m.delta, 0) / (1 - z/2)
		return
	}
	m.w = cmplx.Exp(z)
	m.b = complex(m.delta, 0) * expm1OverZ(z)
}

// expm1OverZ returns (e^z - 1)/z, without cancellation for small z.
func expm1OverZ(z complex128) complex128 {
	if z == 0 {
		return 1
	}
	x, y := real(z), imag(z)
	sin := math.Sin(y / 2)
	return complex(math.Expm1(x)*math.Cos(y)-2*sin*sin, math.Exp(x)*math.Sin(y)) / z
}

// slope returns the derivative of (e^z - 1)/z: (z e^z - e^z + 1)/z² = Σ_k z^k (k+1)/(k+2)!. With z = Δa, Δ² times it is the derivative of b
// with respect to a.
func slope(z complex128) complex128 {
	if cmplx.Abs(z) > 0.5 {
		e := cmplx.Exp(z)
		return (z*e - e + 1) / (z * z)
	}
	sum, term := complex128(0), complex128(0.5) // term is z^k/(k+2)!
	for k := range 16 {
		sum += term * complex(float64(k+1), 0)
		term *= z / complex(float64(k+3), 0)
	}
	return sum
}

// modeGrad holds the gradients of a mode's w, b and c. The gradient of a complex number is the gradient of its real part plus i times that
// of its imaginary part. With this definition, the gradient of z is conj(f'(z)) times the gradient of f(z).
type modeGrad struct{ w, b, c complex128 }

// back returns the gradients of a and Δ, from those of w and b.
func (m *mode) back(g modeGrad, bilinear bool) (a complex128, delta float64) {
	dt := complex(m.delta, 0)
	z := dt * m.a
	var wa, wd, ba, bd complex128 // derivatives of w and b with respect to a and Δ
	if bilinear {
		square := (1 - z/2) * (1 - z/2)
		wa, wd, ba, bd = dt/square, m.a/square, dt*dt/2/square, 1/square
	} else {
		wa, wd, ba, bd = dt*m.w, m.a*m.w, dt*dt*slope(z), m.w
	}
	return cmplx.Conj(wa)*g.w + cmplx.Conj(ba)*g.b, real(cmplx.Conj(wd)*g.w + cmplx.Conj(bd)*g.b)
}

// writeGrad writes the gradients of all parameters of a channel except D.
func (s *S4[T]) writeGrad(grad *S4Grad[T], d int, m []mode, g []modeGrad) {
	delta := 0.0
	for n := range m {
		a, dt := m[n].back(g[n], s.Bilinear)
		delta += dt
		at := d*s.Modes + n
		grad.LogDecay[at] = T(real(a) * real(m[n].a)) // a = -e^LogDecay + …
		if s.Frequency != nil {
			grad.Frequency[at] = T(imag(a))
		}
		s.setComplex(grad.C, d, n, g[n].c)
	}
	grad.LogDelta[d] = T(delta * m[0].delta)
}
