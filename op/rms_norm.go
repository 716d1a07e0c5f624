package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/kernel"
)

// RMSNorm returns x / sqrt(mean(x²) + eps) · weight, where the mean is over the last axis: x (batch, length, width), weight (width), and
// the result has x's shape. Both operands have gradients.
//
// Errors: an operand that is missing, or of another type or shape; an eps that is negative or not finite.
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.
func RMSNorm(x, weight *G.Node, eps float64) (*G.Node, error) {
	c := newChecker("RMS norm", "x", x)
	c.required("x", x, "(batch, length, width)", 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := x.Shape()
	c.required("weight", weight, "(width)", s[2])
	if !(eps >= 0) || math.IsInf(eps, 1) {
		c.errorf("eps is %v, want a finite number that is not negative", eps)
	}
	if c.err != nil {
		return nil, c.err
	}
	return apply1(rmsNorm{eps}, operands{[]string{"x", "weight"}, G.Nodes{x, weight}}, c.dt, s)
}

type rmsNorm struct{ eps float64 }

func (f rmsNorm) String() string       { return fmt.Sprintf("RMS norm{eps: %v}", f.eps) }
func (rmsNorm) differentiable() []bool { return []bool{true, true} }

func (f rmsNorm) forward(in, out []operand) {
	if out[0].is32() {
		rmsKernel[float32](f, in).Forward(floats[float32](out[0]))
	} else {
		rmsKernel[float64](f, in).Forward(floats[float64](out[0]))
	}
}

func (f rmsNorm) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		rmsKernel[float32](f, in).Backward(floats[float32](dout[0]), floats[float32](grad[0]), floats[float32](grad[1]))
	} else {
		rmsKernel[float64](f, in).Backward(floats[float64](dout[0]), floats[float64](grad[0]), floats[float64](grad[1]))
	}
}

func rmsKernel[T kernel.Float](f rmsNorm, in []operand) *kernel.RMSNorm[T] {
	return &kernel.RMSNorm[T]{Width: in[0].shape[2], Eps: f.eps, X: floats[T](in[0]), Weight: floats[T](in[1])}
}
