package kernel

import (
	"fmt"
	"math"

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

// gelu returns x·Φ(x). It and geluSlope compute in float64 for both types, since Go has no error function for float32.
func gelu[T Float](x T) T { return T(float64(x) * normalCDF(float64(x))) }

func geluSlope[T Float](x T) T {
	v := float64(x)
	if math.IsInf(v, 0) {
		return T(normalCDF(v)) // v·exp(-v²/2) would be NaN
	}
	return T(normalCDF(v) + v*math.Exp(-v*v/2)/math.Sqrt(2*math.Pi))
}

func normalCDF(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }
