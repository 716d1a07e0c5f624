package kernel

import (
	"math/cmplx"
	"sync"

	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/dsp/fourier"
)

// convolver is the workspace of a task: a Fourier transform of n elements, and memory for sequences and their transforms.
type convolver struct {
	n                int
	fft              *fourier.FFT
	time             []float64
	kernel, u, y, dk []complex128 // transforms
	modes            []mode
	grads            []modeGrad
}

// convolvers maps a transform length to a sync.Pool of convolvers that are not in use. They are reused because making the factors of a
// transform takes as long as the transform.
var convolvers sync.Map

func newConvolver(n, modes int) *convolver {
	pool, _ := convolvers.LoadOrStore(n, new(sync.Pool))
	c, ok := pool.(*sync.Pool).Get().(*convolver)
	if !ok {
		half := n/2 + 1
		c = &convolver{n: n, fft: fourier.NewFFT(n), time: make([]float64, n)}
		for _, v := range []*[]complex128{&c.kernel, &c.u, &c.y, &c.dk} {
			*v = make([]complex128, half)
		}
	}
	if cap(c.modes) < modes {
		c.modes, c.grads = make([]mode, modes), make([]modeGrad, modes)
	}
	c.modes, c.grads = c.modes[:modes], c.grads[:modes]
	return c
}

func (c *convolver) release() {
	pool, _ := convolvers.Load(c.n)
	pool.(*sync.Pool).Put(c)
}

// transformLength returns the length of the transform that convolves a kernel and a sequence of the given length without wrapping around:
// at least 2·length-1, with only the factors 2, 3 and 5, for which the transform is fast.
func transformLength(length int) int {
	best := 0
	for _, odd := range []int{1, 3, 5, 9, 15} {
		n := 2 * odd
		for n < 2*length-1 {
			n *= 2
		}
		if best == 0 || n < best {
			best = n
		}
	}
	return best
}

// transform writes to to the transform of a channel of v (batch, length, channels), and reports whether the channel is finite.
func (s *S4[T]) transform(c *convolver, to []complex128, v []T, b, d int) bool {
	row, check := v[b*s.Length*s.Channels+d:], 0.0
	for t := range s.Length {
		c.time[t] = float64(row[t*s.Channels])
		check += 0 * c.time[t]
	}
	clear(c.time[s.Length:])
	c.fft.Coefficients(to, c.time)
	return check == 0
}

// impulse computes the convolution kernel K_j = s·Re Σ_n c_n b_n w_n^j for every step j (the Vandermonde product), and writes its transform
// to c.kernel.
func (s *S4[T]) impulse(c *convolver) {
	k := c.time[:s.Length]
	clear(c.time)
	scale := complex(s.scale(), 0)
	for _, m := range c.modes {
		power := scale * m.c * m.b
		for j := range k {
			if j%anchor == 0 && j > 0 {
				power = scale * m.c * m.b * cmplx.Pow(m.w, complex(float64(j), 0))
			}
			k[j] += real(power)
			power *= m.w
		}
	}
	c.fft.Coefficients(c.kernel, c.time)
}

// anchor is the number of products after which a power of w is computed anew, so that rounding errors do not add up over the length.
const anchor = 256

// Convolve writes y = K * U + D U (batch, length, channels). It has no initial state and no starts.
func (s *S4[T]) Convolve(y []T) {
	n := transformLength(s.Length)
	norm := 1 / float64(n)
	s.each(n, func(c *convolver, d int) {
		s.modes(c.modes, d)
		s.impulse(c)
		for b := range s.Batch {
			if !s.transform(c, c.u, s.U, b, d) {
				// A transform would spread a NaN or infinity to earlier steps.
				s.scanChannel(c.modes, make([]complex128, s.Modes), b, d, y)
				continue
			}
			for i := range c.u {
				c.u[i] *= c.kernel[i]
			}
			c.fft.Sequence(c.time, c.u)
			at := b*s.Length*s.Channels + d
			for t := range s.Length {
				v := c.time[t] * norm
				if s.D != nil {
					v += float64(s.D[d]) * float64(s.U[at])
				}
				y[at] = T(v)
				at += s.Channels
			}
		}
	})
}

// each calls task for every channel, in parallel. One task takes a channel's sums over batch and time, in order.
func (s *S4[T]) each(n int, task func(c *convolver, d int)) {
	work.Parallel(s.Channels, func(d int) {
		c := newConvolver(n, s.Modes)
		defer c.release()
		task(c, d)
	})
}

// ConvolveBackward writes the gradients of all operands of Convolve, from the gradient dy of y. The gradients of U and of the convolution
// kernel are correlations. The gradients of the parameters follow from that of the kernel in closed form.
func (s *S4[T]) ConvolveBackward(dy []T, grad *S4Grad[T]) {
	n := transformLength(s.Length)
	norm := 1 / float64(n)
	s.each(n, func(c *convolver, d int) {
		s.modes(c.modes, d)
		s.impulse(c)
		clear(c.dk)
		dD := 0.0
		for b := range s.Batch {
			s.transform(c, c.u, s.U, b, d)
			s.transform(c, c.y, dy, b, d)
			for i, v := range c.y {
				c.dk[i] += cmplx.Conj(c.u[i]) * v
				c.y[i] = cmplx.Conj(c.kernel[i]) * v
			}
			c.fft.Sequence(c.time, c.y)
			at := b*s.Length*s.Channels + d
			for t := range s.Length {
				v := c.time[t] * norm
				if s.D != nil {
					v += float64(s.D[d]) * float64(dy[at])
					dD += float64(s.U[at]) * float64(dy[at])
				}
				grad.U[at] = T(v)
				at += s.Channels
			}
		}
		if s.D != nil {
			grad.D[d] = T(dD)
		}
		c.fft.Sequence(c.time, c.dk)
		dk := c.time[:s.Length]
		for j := range dk {
			dk[j] *= norm
		}
		for i, m := range c.modes {
			c.grads[i] = m.impulseBack(dk, s.scale())
		}
		s.writeGrad(grad, d, c.modes, c.grads)
	})
}

// impulseBack returns the gradients of w, b and c, from the gradient dK of the convolution kernel. With x = conj(w):
//
//	gradient of c b:  s Σ_j dK_j x^j
//	gradient of w:    s conj(c b) Σ_j j dK_j x^{j-1}
//
// Horner's scheme computes both sums in one loop. Its rounding errors do not grow, since |w| < 1.
func (m *mode) impulseBack(dk []float64, scale float64) modeGrad {
	x := cmplx.Conj(m.w)
	var sum, derivative complex128
	for j := len(dk) - 1; j >= 0; j-- {
		derivative = derivative*x + sum
		sum = sum*x + complex(dk[j], 0)
	}
	s := complex(scale, 0)
	return modeGrad{
		w: s * cmplx.Conj(m.c*m.b) * derivative,
		b: s * cmplx.Conj(m.c) * sum,
		c: s * cmplx.Conj(m.b) * sum,
	}
}
