package kernel

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/gomamba/mamba/internal/work"
)

// Activation is a function of one number.
type Activation int

// The activations.
const (
	SiLU        Activation = iota // x·sigmoid(x)
	GELU                          // x·Φ(x), with Φ the standard normal distribution (Hendrycks and Gimpel, "Gaussian Error Linear Units")
	ReLU                          // max(x, 0); its derivative at 0 is 0
	Sigmoid                       // 1/(1 + exp(-x))
	LeakyReLU                     // x, or 0.01·x if x is negative
	activations                   // their number
)

// Known reports whether a is one of the activations.
func (a Activation) Known() bool { return a >= 0 && a < activations }

func (a Activation) String() string {
	switch a {
	case SiLU:
		return "SiLU"
	case GELU:
		return "GELU"
	case ReLU:
		return "ReLU"
	case Sigmoid:
		return "Sigmoid"
	case LeakyReLU:
		return "LeakyReLU"
	}
	return fmt.Sprintf("Activation(%d)", int(a))
}

func activate[T Float](f Activation, y, x []T) {
	switch f {
	case SiLU:
		siluOf(y, x)
	case Sigmoid:
		sigmoidOf(y, x)
	case ReLU:
		for i, v := range x {
			y[i] = max(v, 0) // NaN stays
		}
	case LeakyReLU:
		for i, v := range x {
			y[i] = v * leak(v)
		}
	default:
		for i, v := range x {
			y[i] = gelu(v)
		}
	}
}

// activateBack writes dx = f'(x)·dy. dx may be dy.
func activateBack[T Float](f Activation, dx, dy, x []T) {
	switch f {
	case SiLU:
		siluBack(dx, dy, x)
	case Sigmoid:
		for i, v := range x {
			s := sigmoid(v)
			dx[i] = s * (1 - s) * dy[i]
		}
	case ReLU:
		for i, v := range x {
			d := dy[i]
			if v <= 0 {
				d = 0
			}
			dx[i] = d
		}
	case LeakyReLU:
		for i, v := range x {
			dx[i] = leak(v) * dy[i]
		}
	default:
		for i, v := range x {
			dx[i] = geluSlope(v) * dy[i]
		}
	}
}

// leak returns the slope of LeakyReLU at x: PyTorch's default for negative x.
func leak[T Float](x T) T {
	if x <= 0 {
		return 0.01
	}
	return 1
}

// Gate writes y = f(gate)·x, or y = f(gate) if x is nil.
func Gate[T Float](f Activation, y, gate, x []T) {
	work.ParallelRange(len(gate), piece, func(from, to int) {
		y := y[from:to]
		activate(f, y, gate[from:to])
		if x == nil {
			return
		}
		x := x[from:to]
		for i, v := range x {
			y[i] *= v
		}
	})
}

// GateBackward writes the gradients of Gate's operands.
func GateBackward[T Float](f Activation, dgate, dx, dy, gate, x []T) {
	work.ParallelRange(len(gate), piece, func(from, to int) {
		if x == nil {
			activateBack(f, dgate[from:to], dy[from:to], gate[from:to])
			return
		}
		dgate, dx, dy, gate, x := dgate[from:to], dx[from:to], dy[from:to], gate[from:to], x[from:to]
		for i, v := range dy {
			dx[i] = v * x[i] // temporarily the gradient of f(gate)
		}
		activateBack(f, dgate, dx, gate)
		activate(f, dx, gate)
		for i, v := range dy {
			dx[i] *= v
		}
	})
}

// gelu returns x·Φ(x).
func gelu[T Float](x T) T { return x * normalCDF(x) }

func geluSlope[T Float](x T) T {
	cdf := normalCDF(x)
	if math.IsInf(float64(x), 0) {
		return cdf // x·exp(-x²/2) would be NaN
	}
	return cdf + x*exp(-x*x/2)*T(1/math.Sqrt(2*math.Pi))
}

// normalCDF returns Φ(x). In float64 it is math.Erfc. In float32 it is a fit to erfc with a relative error of 1.2e-7 (Press et al., "Numerical
// Recipes", erfcc), which is ten times as fast.
func normalCDF[T Float](x T) T {
	if unsafe.Sizeof(x) == 8 {
		return T(math.Erfc(-float64(x)/math.Sqrt2) / 2)
	}
	z := math.Float32frombits(math.Float32bits(float32(x))&^(1<<31)) * (1 / math.Sqrt2)
	t := 1 / (1 + z/2)
	p := float32(0.17087277)
	p = p*t - 0.82215223
	p = p*t + 1.48851587
	p = p*t - 1.13520398
	p = p*t + 0.27886807
	p = p*t - 0.18628806
	p = p*t + 0.09678418
	p = p*t + 0.37409196
	p = p*t + 1.00002368
	p = p*t - 1.26551223
	tail := t * exp32(p-z*z) / 2
	if x > 0 {
		return T(1 - tail)
	}
	return T(tail)
}
